"""The service's figures for Prometheus, in base units, without labels that name a job or a user.

Counters and histograms count what this process has learned of since it started, and begin at 0 with every label that
they can have, so that the first increase is seen. Each event of a job is learned of by one service, once: the one that
moves the job's place in its log forward. A service that is killed in that moment takes the count with it; nothing is
counted twice. Gauges are read when they are asked for; those of the database are the same in every service.

Invariant: labels have few values, whatever users and strangers send. `docs/observability.md` lists every figure, with
the text that is given here; a test keeps the two the same.
"""

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_args

import sqlalchemy as sa
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from starlette.types import Scope

import curator
from curator.job_directory import TERMINAL, Event, Status
from curator.progress import ShardResult
from service.observe import METHODS
from service.settings import Settings
from service.store import Job, Store

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_SECONDS = (1, 10, 60, 300, 1800, 7200, 28800, 86400, 604800)
_STAGES = ("tokenize", "score", "calibrate", "select")
_LONG_POLL = "?wait"
_FIRST_EPOCH_AT_WORK = 2  # the first is that of submitting

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each that nothing here reads


class Metrics:
    """Counted in this process since it started; the gauges are read when asked for."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        Info("curator_build", "Version of this service", registry=registry).info({"version": curator.__version__})
        self._requests = Histogram(
            "http_request_duration_seconds", "Time to the first byte of an answer; requests that wait for a change "
            "have a route of their own", ["method", "route", "status"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._duration = Histogram(
            "job_duration_seconds", "From the start of a job's last driver to the job's end", ["state"],
            buckets=_LONG_SECONDS, registry=registry,
        )  # fmt: skip
        self._queue_wait = Histogram(
            "queue_wait_seconds", "From a job's submission to its first turn", buckets=_LONG_SECONDS, registry=registry
        )
        self._relaunches = Counter(
            "relaunches", "Jobs queued again because their driver had died or fallen silent", registry=registry
        )
        self._start_failures = Counter("start_failures", "Drivers that could not be started", registry=registry)
        self._worked = Counter(
            "stage_tokens", "Tokens that stages have worked through, counted while they run", ["stage"],
            registry=registry,
        )  # fmt: skip
        self._commits = Counter(
            "shard_commits", "Shards by what became of them in a stage, counted while it runs", ["result"],
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter("tokens", "Tokens of completed jobs", ["decision"], registry=registry)
        self._documents = Counter("documents", "Documents of completed jobs", ["outcome"], registry=registry)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        for state in TERMINAL:
            self._duration.labels(state)
        for stage in _STAGES:
            self._worked.labels(stage)
        for result in get_args(ShardResult):
            self._commits.labels(result)
        for decision in ("kept", "dropped"):
            self._tokens.labels(decision)
        for outcome in ("published", "quarantined"):
            self._documents.labels(outcome)

    # -------------------------------------------------------------------------------------------- counting

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """One request was answered."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        if route != "none" and b"wait=" in scope.get("query_string", b""):
            route += _LONG_POLL
        self._requests.labels(method, route, str(status)).observe(seconds)

    def job_started(self, job: Job) -> None:
        """A job was taken from the queue; only its first turn counts, not those after a driver's death or a resume."""
        if job.epoch == _FIRST_EPOCH_AT_WORK and job.started_at is not None:
            self._queue_wait.observe(max((job.started_at - job.created_at).total_seconds(), 0.0))

    def driver_not_started(self) -> None:
        """A job's driver could not be started: now, or ever."""
        self._start_failures.inc()

    def job_relaunched(self) -> None:
        """A job was queued again, as its driver had died or fallen silent."""
        self._relaunches.inc()

    def event_read(self, event: Event) -> None:
        """An event was read for the first time by any service; figures that are none are no reason to end a job."""
        counted = event.data.get("counted")
        if event.type != "progress" or not isinstance(counted, dict):
            return
        stage = str(event.data.get("stage")).partition(" ")[0]  # `score reference`: users name their models
        if stage in _STAGES and _is_number(counted.get("tokens")):
            self._worked.labels(stage).inc(counted["tokens"])
        results = counted.get("shards")
        for result, shards in results.items() if isinstance(results, dict) else ():
            if result in get_args(ShardResult) and _is_number(shards):
                self._commits.labels(result).inc(shards)

    def job_ended(self, job: Job) -> None:
        """A job has reached its end."""
        if job.started_at is not None and job.finished_at is not None:
            seconds = (job.finished_at - job.started_at).total_seconds()
            self._duration.labels(job.status).observe(max(seconds, 0.0))  # two machines' clocks
        if job.status == "completed" and job.totals is not None:
            kept, tokens = job.totals["kept_tokens"], job.totals["tokens"]
            self._tokens.labels("kept").inc(kept)
            self._tokens.labels("dropped").inc(tokens - kept)
            self._documents.labels("published").inc(job.totals["rows"])
            self._documents.labels("quarantined").inc(job.totals["quarantined_rows"])

    # -------------------------------------------------------------------------------------------- showing

    def expose(self, checks: Mapping[str, bool]) -> bytes:
        """All figures in Prometheus' text format.

        Args:
            checks: what readiness depends on, and whether it is well.
        """
        now = CollectorRegistry()
        now.register(_Gauges([*self._of_database(), *self._of_disk(), _ready(checks)]))
        return generate_latest(self._registry) + generate_latest(now)

    def _of_database(self) -> list[GaugeMetricFamily]:
        """How the jobs stand; nothing when the database does not answer, which `ready` tells."""
        jobs = GaugeMetricFamily("jobs", "Jobs by state", labels=["state"])
        working = GaugeMetricFamily(
            "curations_in_progress", "Curation jobs that are in progress: their stages work through tokens"
        )
        oldest = GaugeMetricFamily("queue_oldest_seconds", "How long the oldest waiting job has waited; 0 if none does")
        try:
            counts, since = self._store.counts(), self._store.waiting_since()
        except sa.exc.SQLAlchemyError:
            return [jobs, working, oldest]
        for state in get_args(Status):
            jobs.add_metric([state], sum(number for (_, its), number in counts.items() if its == state))
        working.add_metric([], counts.get(("curate", "in_progress"), 0))
        oldest.add_metric([], 0.0 if since is None else max(time.time() - since, 0.0))
        return [jobs, working, oldest]

    def _of_disk(self) -> list[GaugeMetricFamily]:
        free = GaugeMetricFamily("storage_free_bytes", "Free space under the data directory")
        size = GaugeMetricFamily("storage_size_bytes", "Size of the file system of the data directory")
        with suppress(OSError):  # the disk is away, which `ready` tells
            space = shutil.disk_usage(self._settings.data_dir)
            free.add_metric([], space.free)
            size.add_metric([], space.total)
        return [free, size]


def _ready(checks: Mapping[str, bool]) -> GaugeMetricFamily:
    ready = GaugeMetricFamily("ready", "Whether what readiness depends on is well: 1, else 0", labels=["check"])
    for check, well in checks.items():
        ready.add_metric([check], float(well))
    return ready


class _Gauges:
    """A collector of families that were made for one answer."""

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Any:
        return self._families


def _is_number(value: object) -> bool:
    return isinstance(value, int) and value >= 0
