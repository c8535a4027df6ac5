"""The side of tracing that needs OpenTelemetry: spans are made, queued, and sent by a thread of their own.

The only module that imports it, loaded by `curator.tracing` once a collector is named.
"""

import logging
import os
import platform
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import curator

if TYPE_CHECKING:
    from curator.tracing import Attributes, Kind, Role

_EVERY_MS = 1000
_DELAY = "OTEL_BSP_SCHEDULE_DELAY"
_FAILING_S = 0.2
_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER}
_log = logging.getLogger("curator.tracing")
_propagator = TraceContextTextMapPropagator()


class Sender:
    """Makes this process's spans and sends them to one collector."""

    def __init__(self, role: "Role", endpoint: str) -> None:
        self._exporter = _Exporter(endpoint)
        self._processor = BatchSpanProcessor(
            self._exporter, schedule_delay_millis=None if _DELAY in os.environ else _EVERY_MS
        )
        provider = TracerProvider(resource=_resource(role), shutdown_on_exit=False)  # which waits for half a minute
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("curator", curator.__version__)
        self._flushing: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextmanager
    def started(
        self,
        name: str,
        attributes: "Attributes",
        parent: str | None,
        tracestate: str | None,
        kind: "Kind",
        start_ns: int | None,
    ) -> Iterator[Span]:
        """A span that is the current one inside; of an error it keeps the kind, as messages may quote the corpus."""
        with self._tracer.start_as_current_span(
            name, _context(parent, tracestate), _KINDS[kind], attributes, start_time=start_ns,
            record_exception=False, set_status_on_exception=False,
        ) as span:  # fmt: skip
            try:
                yield span
            except GeneratorExit:
                raise
            except BaseException as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    def record(self, name: str, start_ns: int, end_ns: int, attributes: "Attributes", parent: str | None) -> None:
        """A span that is over."""
        context = _context(parent, None)
        self._tracer.start_span(name, context, attributes=attributes, start_time=start_ns).end(end_ns)

    def describe_request(self, method: str, route: str | None, status: int) -> None:
        """Complete the span of a request, by the semantic conventions for HTTP servers."""
        span = get_current_span()
        span.set_attribute("http.response.status_code", status)
        if route is not None:
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))

    def traceparent(self) -> str | None:
        """The current span's."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier.get("traceparent")

    def flush(self, timeout_s: float, *, last: bool = False) -> None:
        """Send what is queued, and wait for that so long at most; hardly at all for a collector known to be away."""
        with self._lock:
            busy = self._flushing is not None and self._flushing.is_alive()
            if not last and (busy or self._exporter.failing):
                return
            thread = self._flushing = threading.Thread(target=self._processor.force_flush, name="flush", daemon=True)
        thread.start()
        thread.join(min(timeout_s, _FAILING_S) if self._exporter.failing else timeout_s)
        if thread.is_alive():
            self._exporter.note_failure(f"it has not answered within {timeout_s:g} s")


class _Exporter(SpanExporter):
    """The library's exporter, whose troubles make one line in the log until it works again."""

    def __init__(self, endpoint: str) -> None:
        self._where = _without_login(endpoint)
        self.failing = False
        self._reason = ""
        self._exporter = OTLPSpanExporter()
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # it repeats itself
        logging.getLogger("opentelemetry.sdk").setLevel(logging.CRITICAL)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(self._keep_reason)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send; the caller is a thread that does nothing else."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._reason, result = f"{type(error).__name__}: {error}", SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.failing = False
        else:
            self.note_failure(self._reason or "it refused them")
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return True

    def note_failure(self, reason: str) -> None:
        """Say it, once."""
        if not self.failing:
            self.failing = True
            _log.warning("traces cannot be sent to %s: %s; the work goes on without them", self._where, reason)

    def _keep_reason(self, record: logging.LogRecord) -> bool:
        self._reason = " ".join(record.getMessage().split())
        return False


def _context(parent: str | None, tracestate: str | None) -> Context | None:
    if parent is None:
        return None
    carrier = {"traceparent": parent} | ({"tracestate": tracestate} if tracestate else {})
    return _propagator.extract(carrier, Context())


def _resource(role: "Role") -> Resource:
    """Who sends; the variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first."""
    asked = Resource.create()
    name = asked.attributes.get(SERVICE_NAME, "")
    given = {key for key in asked.attributes if key != SERVICE_NAME or not str(name).startswith("unknown_service")}
    own: dict[str, str | int] = {
        SERVICE_NAME: f"curator-{role}", "service.namespace": "token-curator", "service.version": curator.__version__,
        "service.instance.id": str(uuid.uuid4()), "host.name": platform.node(), "process.pid": os.getpid(),
    }  # fmt: skip
    return asked.merge(Resource({key: value for key, value in own.items() if key not in given}))


def _without_login(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
