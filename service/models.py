"""What the API answers, as pydantic models: the OpenAPI document is made of these."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from curator.job_directory import JOB_ID_PATTERN, JobKind, Status
from service.keys import TENANT_PATTERN, Key, Scope
from service.store import Job

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """Part of a list."""

    data: list[Item]
    has_more: bool = Field(description="whether `next_cursor` leads to more")
    next_cursor: str | None = None


class StageModel(BaseModel):
    """One stage of a running job."""

    stage: str
    shards: int
    tokens: int = Field(description="about")
    state: Literal["started", "finished"]
    seconds: float | None = None


class ProgressModel(BaseModel):
    """How far the current stage is."""

    stage: str
    stages: list[StageModel]
    shards_done: int
    shards: int
    tokens_done: int
    tokens: int = Field(description="of this stage, about")
    workers: int
    tokens_per_s: float | None
    eta_s: float | None = Field(description="seconds until this stage ends, about")


class ErrorModel(BaseModel):
    """Why a job failed."""

    type: str
    message: str


class JobModel(BaseModel):
    """A job."""

    id: str = Field(pattern=JOB_ID_PATTERN)
    kind: JobKind
    name: str
    status: Status
    attempt: int = Field(description="raised by each resume")
    epoch: int = Field(description="raised whenever the job changes hands")
    output: str = Field(description="URI of the dataset or the reference")
    created_at: str
    started_at: str | None
    finished_at: str | None
    updated_at: str
    progress: ProgressModel | None
    totals: dict[str, Any] | None = Field(description="of the finished dataset, as in its manifest")
    quarantined: dict[str, int] | None = Field(description="rows by reason")
    error: ErrorModel | None
    queue_position: int | None = Field(description="among your own, 1 = the next; turns are fair between tenants")
    spec: dict[str, Any]


class EventModel(BaseModel):
    """One thing that happened to a job."""

    id: int = Field(ge=1, description="1, 2, 3 ... without a gap")
    at: str
    type: Literal["state", "stage", "progress", "message"]
    attempt: int
    epoch: int
    data: dict[str, Any]


class LogModel(BaseModel):
    """One line that the job's process printed."""

    id: int = Field(ge=1, description="byte offset behind the line")
    text: str


class ModelEstimateModel(BaseModel):
    """What one model will take."""

    name: str
    engine: str
    id: str
    context: int
    tokens_per_s: float | None
    seconds: float | None
    basis: str = Field(description="measured, or what was assumed")


class EstimateModel(BaseModel):
    """What a job would take; nulls where only the spec was checked."""

    valid: Literal[True] = True
    name: str
    shards: int | None = None
    tokens: int | None = None
    disk_bytes: int | None = None
    free_bytes: int | None = None
    eta_s: float | None = Field(default=None, description="of scoring")
    workers: int | None = None
    models: list[ModelEstimateModel] = []
    warnings: list[str] = []


class NewKeyModel(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(default="key", min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")
    tenant: str = Field(pattern=TENANT_PATTERN)
    scopes: list[Scope] = Field(default=["read", "write"], min_length=1, max_length=4)
    expires_in_days: float | None = Field(default=None, gt=0, le=36500)


class KeyModel(BaseModel):
    """A key, without its text."""

    id: str
    name: str
    tenant: str
    scopes: list[Scope]
    created_at: float = Field(description="seconds since 1970")
    expires_at: float | None
    revoked_at: float | None


class CreatedKeyModel(KeyModel):
    """A new key: the only answer that ever shows its text."""

    key: str


class MeModel(BaseModel):
    """Who is asking."""

    tenant: str
    scopes: list[Scope]
    key_id: str


def job_model(job: Job, queue_position: int | None) -> JobModel:
    """A job as the API shows it."""
    return JobModel(
        id=job.id,
        kind=job.kind,
        name=job.name,
        status=job.status,
        attempt=job.attempt,
        epoch=job.epoch,
        output=job.output,
        created_at=_shown(job.created_at),
        started_at=None if job.started_at is None else _shown(job.started_at),
        finished_at=None if job.finished_at is None else _shown(job.finished_at),
        updated_at=_shown(job.updated_at),
        progress=None if job.progress is None else ProgressModel.model_validate(job.progress),
        totals=job.totals,
        quarantined=job.quarantined,
        error=None if job.error is None else ErrorModel.model_validate(job.error),
        queue_position=queue_position,
        spec=job.spec,
    )


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def key_model(key: Key) -> KeyModel:
    """A key as the API shows it."""
    return KeyModel(**{name: getattr(key, name) for name in KeyModel.model_fields})
