"""Traces of a job across processes, by OpenTelemetry; optional, and nothing is loaded unless asked for.

A process sends spans if the packages are there (`token-curator[otel]`) and OTEL_EXPORTER_OTLP_ENDPOINT (or
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) names a collector. One trace tells one attempt at a job: the request that queued it,
its wait, its launch (service), its plan and stages (driver), each attempt at each shard (workers). What ties them is a
W3C traceparent: in job.json, in the driver's environment, and in the stage that an actor is given. The exporter's own
settings, which may hold credentials, never travel: every process reads those of its own environment.

Invariants: no span holds text of the corpus, nor the message of an error (only its kind); a collector that is away,
slow or broken fails no job, and delays it by at most `_AT_THE_END_S` in all and `_AFTER_A_SHARD_S` once per worker.
"""

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from curator.hiding import describe

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from curator.trace_export import Sender

Role = Literal["service", "driver", "worker"]
Kind = Literal["internal", "server"]
Attributes = Mapping[str, str | int | float | bool | list[int]]

VARIABLE = "TRACEPARENT"
"""Where a process finds the span that started it, by OpenTelemetry's convention for environments."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_AT_THE_END_S = 2.0
_AFTER_A_SHARD_S = 0.5
_log = logging.getLogger("curator.tracing")

_sender: "Sender | None" = None
_begun = False


def begin(role: Role) -> None:
    """Send this process's spans from now on, if its environment asks for it; the first call decides."""
    global _begun, _sender
    if _begun:
        return
    _begun = True
    endpoint = next((os.environ[name].strip() for name in _ENDPOINTS if os.environ.get(name, "").strip()), None)
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if endpoint is None or off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        _log.warning("no traces are sent: protocol %r is not supported; use http/protobuf, mostly port 4318", protocol)
        return
    try:
        from curator.trace_export import Sender

        _sender = Sender(role, endpoint)
    except ImportError as error:
        _log.warning("no traces are sent: %s is not installed; install token-curator[otel]", error.name)
    except Exception as error:  # a wrong setting of the exporter must not keep a job from running
        _log.warning("no traces are sent: %s; check the variables OTEL_*", describe(error, over_rows=False))


def sends() -> bool:
    """Whether this process sends spans."""
    return _sender is not None


@contextmanager
def process(role: Role) -> Iterator[None]:
    """Trace what this process does inside; at the end, wait a moment for the collector to take the last spans."""
    begin(role)
    try:
        yield
    finally:
        finish()


def finish() -> None:
    """Send what is left, within two seconds or not at all."""
    if _sender is not None:
        _sender.flush(_AT_THE_END_S, last=True)


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    parent: str | None = None,
    tracestate: str | None = None,
    kind: Kind = "internal",
    start_ns: int | None = None,
) -> Iterator["Span | None"]:
    """A span around what is inside; None, and no cost, where nothing is sent.

    Args:
        name: of few values: no id, no path.
        attributes: by OpenTelemetry's conventions, else `curator.*`.
        parent: a traceparent; without one the span that this thread or task is in, else a new trace begins.
        tracestate: that came with it.
        kind: `server` for a request's.
        start_ns: when it began, if that was earlier.
    """
    if _sender is None:
        yield None
        return
    with _sender.started(name, attributes or {}, parent, tracestate, kind, start_ns) as opened:
        yield opened


def record(name: str, start_ns: int, end_ns: int, attributes: Attributes, parent: str | None = None) -> None:
    """A span that is over already."""
    if _sender is not None:
        _sender.record(name, start_ns, max(start_ns, end_ns), attributes, parent)


def describe_request(method: str, route: str | None, status: int) -> None:
    """Name the current span, a request's, after its route, and say how it was answered."""
    if _sender is not None:
        _sender.describe_request(method, route, status)


def traceparent() -> str | None:
    """The current span as others refer to it; None where there is none."""
    return None if _sender is None else _sender.traceparent()


def ids() -> dict[str, str]:
    """`trace_id` and `span_id` of the current span, for a line of a log."""
    parts = (traceparent() or "").split("-")
    return {"trace_id": parts[1], "span_id": parts[2]} if len(parts) == 4 else {}


def of_job(job_id: str, attempt: int, epoch: int) -> dict[str, str | int]:
    """Attributes that say which job a span is about."""
    return {"curator.job.id": job_id, "curator.job.attempt": attempt, "curator.job.epoch": epoch}


# ------------------------------------------------------------------------------------------------ on the workers


@contextmanager
def stage(work: Any, name: str) -> Iterator[Any]:
    """A span around a stage; inside, the stage tells of its shards in spans below it. Itself where nothing is sent."""
    with span(f"stage {name}", {"curator.stage": name}):
        parent = traceparent()
        yield work if parent is None else TracedStage(work, name, parent)


@dataclass(frozen=True)
class _Loaded:
    inputs: Any
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class TracedStage:
    """A stage whose every attempt at a shard is a span `shard`, with `load` and whatever it does within.

    A shard's attempt begins when it is loaded, which may be while the worker computes the one before it.
    """

    stage: Any
    name: str
    parent: str

    def open(self) -> None:
        """Open the stage, such as its engine."""
        begin("worker")
        with span("open", self._attributes(), parent=self.parent):
            self.stage.open()

    def load(self, task: Any) -> _Loaded:
        """Load, and note when; an attempt that ends here is told here, as there will be no run."""
        start_ns = time.time_ns()
        try:
            return _Loaded(self.stage.load(task), start_ns, time.time_ns())
        except Exception:
            with self._shard(task, start_ns), span("load", start_ns=start_ns):
                raise

    def run(self, task: Any, inputs: _Loaded, on_tokens: Callable[[int], None]) -> Any:
        """Run one attempt, and see that its spans are on their way: this process may be killed at any time."""
        with self._shard(task, inputs.start_ns):
            record("load", inputs.start_ns, inputs.end_ns, {})
            with span("compute"):
                return self.stage.run(task, inputs.inputs, on_tokens)

    @contextmanager
    def _shard(self, task: Any, start_ns: int) -> Iterator[None]:
        shards = [shard.number for shard in (task if isinstance(task, tuple) else (task,))]
        attributes = {**self._attributes(), "curator.shards": shards}
        try:
            with span("shard", attributes, parent=self.parent, start_ns=start_ns):
                yield
        finally:
            if _sender is not None:
                _sender.flush(_AFTER_A_SHARD_S)

    def _attributes(self) -> dict[str, str | int | float | bool | list[int]]:
        return {"curator.stage": self.name, "curator.worker": f"{platform.node()}:{os.getpid()}"}
