"""Every setting of the service, in one place; environment variables `CURATOR_*`, or a TOML file.

The command line of `curator serve` overrides the environment, which overrides the file. Each field's description is
what `docs/service.md` says of it; a test keeps the two the same.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from curator.errors import SpecError

_REMOTE_ROOT = re.compile(r"(?:s3|gs)://[^/]")


def _split(value: object) -> object:
    """`a,b` or `["a","b"]` as an environment variable holds it."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f'{value!r} begins like JSON and is none: {error}; write ["a", "b"] or a,b') from error


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Several names; in the environment separated by commas, or as JSON."""


class Settings(BaseSettings):
    """How the service runs."""

    model_config = SettingsConfigDict(
        env_prefix="CURATOR_", frozen=True, extra="forbid", toml_file=None,
        hide_input_in_errors=True,  # database_url holds a password, also where its name is misspelt
    )  # fmt: skip

    data_dir: Path = Field(default=Path("curator-data"), description="jobs, uploads and the embedded database")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 = any free one")
    public_url: str | None = Field(
        default=None, description="address that browsers use, such as https://curator.example; makes cookies Secure"
    )

    database_url: SecretStr | None = Field(
        default=None, description="postgresql://USER:PASSWORD@HOST/NAME; unset = SQLite in data_dir"
    )
    launcher: Literal["subprocess", "ray"] = Field(
        default="subprocess",
        description="where a job's driver runs: a process beside the service, or the Ray cluster's Jobs API",
    )
    ray_address: str | None = Field(
        default=None,
        description="Ray cluster of every job: with launcher ray the Jobs API (http://HEAD:8265), with subprocess the "
        "address of run.address; unset = each job starts its own local Ray",
    )
    output_root: str | None = Field(
        default=None,
        description="where outputs go that a spec leaves open, such as s3://bucket/curated; unset = with the job",
    )

    allow_root: Names = Field(
        default=(), description="folders and s3:// or gs:// prefixes that corpora, models and outputs may lie under"
    )
    allow_models: Names = Field(default=(), description="hub models that specs may name, as org/name@revision")
    allow_datasets: Names = Field(default=(), description="hub data sets that specs may name, as org/name")
    allow_hosts: Names = Field(default=(), description="servers that engine openai may call, as http://host:port")
    allow_key_variables: Names = Field(
        default=(), description="environment variables that api_key_env may name; all others are refused"
    )

    log_format: Literal["json", "text"] = Field(default="json", description="of the service's own log, on stderr")
    job_log_format: Literal["text", "json"] = Field(
        default="text", description="of each job's log, which /logs and the dashboard show"
    )

    max_running_jobs: int = Field(default=1, ge=0, description="jobs that run at once; 0 = none is started")
    max_queued_jobs: int = Field(default=10_000, ge=1, description="jobs that may wait, over all tenants")
    tenant_running_jobs: int | None = Field(default=None, ge=1, description="jobs of one tenant that run at once")
    tenant_queued_jobs: int = Field(default=1000, ge=1, description="jobs of one tenant that may wait")
    max_workers_per_job: int | None = Field(
        default=None, ge=1, description="most workers of one job; a larger run.workers is lowered"
    )
    max_relaunches: int = Field(
        default=5, ge=0, description="times that a job whose driver died is started again without having got further"
    )
    heartbeat_s: float = Field(default=10.0, gt=0, description="how often a running job says that it lives")
    stalled_s: float = Field(
        default=30.0, gt=0, description="silence after which a job is taken from its owner; more than twice heartbeat_s"
    )
    retention_days: float | None = Field(
        default=None, gt=0, description="finished jobs older than this are deleted with their directory; unset = never"
    )

    max_upload_bytes: int = Field(default=1 << 30, ge=1, description="largest uploaded file")
    upload_quota_bytes: int = Field(default=10 << 30, ge=1, description="uploaded bytes that one tenant may keep")
    requests_per_second: float = Field(
        default=1000.0, gt=0, description="requests that one key may make, sustained; twice as many in a burst"
    )
    validate_timeout_s: float = Field(default=60.0, gt=0, description="longest dry run that jobs:validate may take")
    session_hours: float = Field(default=12.0, gt=0, description="how long a browser stays signed in")
    x_accel_prefix: str | None = Field(
        default=None,
        description="internal location of a proxy (nginx) that serves data_dir: it then sends the shards",
    )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("allow_root")
    @classmethod
    def _check_roots(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            if not os.path.isabs(root) and not _REMOTE_ROOT.match(root):
                raise ValueError(
                    f"root {root!r} is neither an absolute path nor s3://BUCKET or gs://BUCKET; write it so"
                )
        return roots

    @field_validator("stalled_s")
    @classmethod
    def _check_patience(cls, stalled_s: float, info: ValidationInfo) -> float:
        heartbeat_s = info.data.get("heartbeat_s", 0.0)  # missing when it is wrong itself
        if stalled_s <= 2 * heartbeat_s:
            raise ValueError(
                f"{stalled_s} s is not more than twice heartbeat_s ({heartbeat_s} s): one late sign of life would take "
                "a job from its owner; raise stalled_s or lower heartbeat_s"
            )
        return stalled_s

    @model_validator(mode="after")
    def _check_cluster(self) -> Self:
        if self.launcher == "ray" and self.ray_address is None:
            raise ValueError("launcher ray needs a cluster; set ray_address to its Jobs API, such as http://HEAD:8265")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment, then file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def jobs_dir(self) -> Path:
        """One folder per job."""
        return self.data_dir / "jobs"

    @property
    def uploads_dir(self) -> Path:
        """One folder per tenant."""
        return self.data_dir / "uploads"


def load_settings(file: Path | None = None, **overrides: object) -> Settings:
    """Settings from the command line's overrides, the environment and a TOML file.

    Raises:
        SpecError: there is no such file.
        ValueError: a setting is wrong, or the file is no TOML.
    """
    if file is not None and not file.is_file():
        raise SpecError(
            f"settings: there is no file {str(file)!r}; write one (docs/service.md), or leave --settings out"
        )

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    return FromFile(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
