"""What the service answers, typed.

A newer service may send more than these fields: what is not known here is kept as it came and does no harm, so that an
older client goes on working.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

TERMINAL = frozenset({"completed", "cancelled", "failed"})


class Answer(BaseModel):
    """Base of all answers: frozen; unknown fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class StageProgress(Answer):
    """One stage of a job: tokenize, score a model, calibrate, select."""

    stage: str
    shards: int | None = None
    tokens: int | None = Field(default=None, description="an estimate before the stage has ended")
    state: str = Field(default="started", description="started or finished")
    seconds: float | None = None


class Progress(Answer):
    """How far the running stage of a job is."""

    stage: str | None = None
    stages: tuple[StageProgress, ...] = ()
    shards_done: int = 0
    shards: int | None = None
    tokens_done: int = 0
    tokens: int | None = None
    workers: int | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None


class RemoteJob(Answer):
    """A job of the service.

    `status` is one of queued, validating, in_progress, finalizing, completed, cancelling, cancelled, failed.
    """

    id: str
    status: str
    kind: str = "curate"
    name: str | None = None
    attempt: int = 1
    epoch: int = 0
    output: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    updated_at: datetime | None = None
    progress: Progress | None = None
    totals: dict[str, Any] | None = Field(default=None, description="as in manifest.json")
    quarantined: dict[str, Any] | None = Field(default=None, description="rows by reason")
    error: dict[str, Any] | None = Field(default=None, description="type and message, of a failed job")
    queue_position: int | None = None
    spec: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether the job is over, well or not."""
        return self.status in TERMINAL

    @property
    def quarantined_rows(self) -> int:
        """Rows that the job could not use."""
        return int((self.totals or {}).get("quarantined_rows") or sum((self.quarantined or {}).values()))


class JobEvent(Answer):
    """One line of a job's history; ids count 1, 2, 3 ... within a job.

    `type` is one of state, stage, progress, message.
    """

    id: int
    type: str
    at: datetime
    attempt: int = 1
    epoch: int = 0
    data: dict[str, Any] = Field(default_factory=dict)


class LogLine(Answer):
    """One line that the job's process printed; `id` is the byte offset of the line's end in the log."""

    id: int
    text: str


class RemoteShard(Answer):
    """A published shard of a job's dataset."""

    number: int
    file: str = Field(description="path within the dataset, such as curated/00000.parquet")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int | None = None
    tokens: int | None = None
    kept_tokens: int | None = None
    url: str | None = None


class RemoteUpload(Answer):
    """A file on the service; a spec names it as `corpus.uri: upload://...`."""

    id: str
    filename: str
    uri: str
    bytes: int
    sha256: str
    created_at: datetime | None = None


class ModelEstimate(Answer):
    """What scoring with one model will take; `basis` says where the figure comes from."""

    name: str
    engine: str | None = None
    id: str | None = None
    context: int | None = None
    tokens_per_s: float | None = None
    seconds: float | None = None
    basis: str | None = None


class Estimate(Answer):
    """What a valid spec will take; fields are null when no plan was asked for."""

    valid: bool
    name: str | None = None
    shards: int | None = None
    tokens: int | None = None
    disk_bytes: int | None = None
    free_bytes: int | None = None
    eta_s: float | None = None
    workers: int | None = None
    models: tuple[ModelEstimate, ...] | None = None
    warnings: tuple[str, ...] | None = None


class Identity(Answer):
    """Whose key this is and what it allows: read, write, admin."""

    tenant: str
    scopes: tuple[str, ...]
    key_id: str | None = None
