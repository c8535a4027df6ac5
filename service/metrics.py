"""The service's figures for Prometheus, in base units, without labels that name a job or a user."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from curator import storage
from service.settings import Settings
from service.store import Job, Store

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_SECONDS = (1, 10, 60, 300, 1800, 7200, 28800, 86400, 604800)


class Metrics:
    """Counted in this process since it started; the gauges are read when asked for."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._registry = registry = CollectorRegistry()
        self._requests = Histogram(
            "http_request_duration_seconds", "Time to the first byte of an answer", ["method", "route", "status"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._jobs = Gauge("jobs", "Jobs by state", ["state"], registry=registry)
        self._free = Gauge("storage_free_bytes", "Free space under the data directory", registry=registry)
        self._duration = Histogram(
            "job_duration_seconds", "From start to end of a job's last attempt", ["state"], buckets=_LONG_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._queue_wait = Histogram(
            "queue_wait_seconds", "From submission to start", buckets=_LONG_SECONDS, registry=registry
        )
        self._commits = Counter("shard_commits", "Shards that stages have published", ["result"], registry=registry)
        self._tokens = Counter("tokens", "Tokens of completed jobs", ["decision"], registry=registry)
        self._documents = Counter("documents", "Documents of completed jobs", ["outcome"], registry=registry)

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """One request was answered."""
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(scope["method"], route, str(status)).observe(seconds)

    def job_started(self, job: Job) -> None:
        """A job was taken from the queue for the first time."""
        if (job.attempt, job.relaunches) == (1, 0):
            self._queue_wait.observe(max(time.time() - job.created_at.timestamp(), 0.0))

    def stage_finished(self, shards: int) -> None:
        """All shards of a stage are published."""
        self._commits.labels("published").inc(shards)

    def job_ended(self, job: Job) -> None:
        """A job has reached its end."""
        if job.started_at is not None and job.finished_at is not None:
            self._duration.labels(job.status).observe((job.finished_at - job.started_at).total_seconds())
        if job.totals is not None:
            kept, tokens = job.totals["kept_tokens"], job.totals["tokens"]
            self._tokens.labels("kept").inc(kept)
            self._tokens.labels("dropped").inc(tokens - kept)
            self._documents.labels("published").inc(job.totals["rows"])
            self._documents.labels("quarantined").inc(job.totals["quarantined_rows"])

    def expose(self) -> bytes:
        """All figures in Prometheus' text format."""
        self._jobs.clear()
        for state, number in self._store.counts().items():
            self._jobs.labels(state).set(number)
        self._free.set(storage.free_bytes(str(self._settings.data_dir)) or 0)
        return generate_latest(self._registry)
