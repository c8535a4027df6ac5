"""Logs of the service, of drivers and of `curator run`: for a person one line of text, for a machine one of JSON.

A line of JSON holds `timestamp` (RFC 3339, UTC), `level`, `logger` and `message`, then whatever is known of: `job`,
`attempt`, `epoch`, `stage`, `shard`, `worker`, `request_id`, `trace_id`, `span_id`, and the figures of progress; an
error's traceback is one string, `exception`. What libraries log, and Python's own warnings, come in the same form.

Invariant: neither form holds a secret or a text of the corpus (`curator.hiding`).
"""

import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, TextIO

from curator import tracing
from curator.hiding import describe, describe_trace, hide
from curator.progress import LINE_INTERVAL_S, Lines, Reporter, make_reporter

LogFormat = Literal["text", "json"]
FORMAT_VARIABLE = "CURATOR_LOG_FORMAT"

FIELDS = (
    "job", "attempt", "epoch", "stage", "shard", "worker", "request_id", "error_type", "shards_done", "shards",
    "tokens_done", "tokens", "workers", "tokens_per_s", "eta_s", "seconds",
)  # fmt: skip
"""What a line may carry beside its message; nothing else that is attached to a record gets into it."""

_known: ContextVar[dict[str, Any] | None] = ContextVar("known", default=None)
_everywhere: dict[str, Any] = {}
_ends_too = False
_progress = logging.getLogger("curator.progress")
_log = logging.getLogger("curator")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "timestamp": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower(),
            "logger": record.name, "message": _message(record),
        }  # fmt: skip
        line |= _everywhere | (_known.get() or {})
        line |= {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}
        line |= tracing.ids()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["exception"] = describe_trace(error)
        return json.dumps({name: hide(value) if isinstance(value, str) else value for name, value in line.items()})


class TextLines(logging.Formatter):
    """What a person reads in a job's log: the message alone of what is told, level and logger before what is wrong."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or with a traceback several."""
        own = record.name == "curator" or record.name.startswith("curator.")
        head = f"{record.levelname.lower()}: " if own else f"{record.levelname.lower()} {record.name}: "
        head = head if record.levelno >= logging.WARNING else ""
        error = record.exc_info[1] if record.exc_info else None
        return hide(head + _message(record)) + ("" if error is None else "\n" + describe_trace(error))


def _message(record: logging.LogRecord) -> str:
    """The message; errors among its arguments are described, so that none of them quotes the corpus."""
    if isinstance(record.args, tuple) and any(isinstance(value, BaseException) for value in record.args):
        values = tuple(describe(value) if isinstance(value, BaseException) else value for value in record.args)
        return str(record.msg) % values
    return describe(record.msg) if isinstance(record.msg, BaseException) else record.getMessage()


def start(form: LogFormat, stream: TextIO | None = None, *, ends_too: bool = False, **known: Any) -> None:
    """Log to standard error from now on, what Python and libraries say included.

    Args:
        form: of each line.
        stream: instead of standard error.
        ends_too: the error that ends the command is a line of the log, not a message for a person beside it.
        known: fields that hold for the whole process, such as its job.
    """
    global _ends_too
    _ends_too = ends_too
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("alembic", "httpx", "httpcore", "botocore", "s3fs", "fsspec", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings.formatwarning = _one_line
    _everywhere.clear()
    _everywhere.update(known)
    sys.excepthook = _last_words
    threading.excepthook = _last_words_of_thread
    sys.unraisablehook = _words_from_nowhere


@contextmanager
def for_a_person() -> Iterator[None]:
    """What libraries and Python warn of comes as text beside what a person is shown, without secrets.

    Where the program has a handler of its own, that one stays. Afterwards all is as before.
    """
    root, form = logging.getLogger(), warnings.formatwarning
    if root.handlers:
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines())
    root.addHandler(handler)
    logging.captureWarnings(True)
    warnings.formatwarning = _one_line
    try:
        yield
    finally:
        warnings.formatwarning = form
        logging.captureWarnings(False)
        root.removeHandler(handler)


def also(**known: Any) -> None:
    """More fields that hold for the whole process."""
    _everywhere.update(known)


def chosen_format() -> LogFormat:
    """What the environment asks of a driver; text unless it says json."""
    return "json" if os.environ.get(FORMAT_VARIABLE) == "json" else "text"


@contextmanager
def known(**fields: Any) -> Iterator[None]:
    """Fields of every line that is logged inside, by this thread or task."""
    token = _known.set({**(_known.get() or {}), **fields})
    try:
        yield
    finally:
        _known.reset(token)


def adopt_ray() -> None:
    """Let Ray's lines pass through the handler of `start`; Ray gives its logger one of its own when it is imported."""
    logger = logging.getLogger("ray")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def told(problem: BaseException | str) -> bool:
    """Log what ends a command, if `start` was asked for that; else the caller says it."""
    if not _ends_too:
        return False
    if isinstance(problem, BaseException):
        say_error(problem)
    else:
        _log.error("%s", problem)
    return True


def say_error(error: BaseException) -> None:
    """An error that ends a process, as one line."""
    _log.error("%s", error, extra={"error_type": type(error).__name__})


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.critical(
        "%s ended the process", kind.__name__, exc_info=(kind, error, trace), extra={"error_type": kind.__name__}
    )


def _last_words_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None or issubclass(ended.exc_type, SystemExit):
        return
    name = "a thread" if ended.thread is None else f"thread {ended.thread.name}"
    error, kind = ended.exc_value, ended.exc_type.__name__
    _log.error("%s ended %s", kind, name, exc_info=error, extra={"error_type": kind})


def _words_from_nowhere(said: "sys.UnraisableHookArgs") -> None:
    """Of what was raised where nobody could take it, such as in `__del__`."""
    kind = said.exc_type.__name__
    _log.error("%s was raised where it could not be handled", kind, exc_info=said.exc_value, extra={"error_type": kind})


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__} at {filename}:{lineno}: {message}"


# ------------------------------------------------------------------------------------------------ progress as lines


class LogReporter:
    """A Reporter that logs: when a stage begins, every ten seconds, when it ends, and what is said between."""

    def __init__(self) -> None:
        self._stage, self._shards, self._tokens = "", 0, 0
        self._started_s = self._told_s = 0.0
        self._done = (0, 0)

    def start(self, stage: str, shards: int, tokens: int) -> None:
        """A stage begins."""
        self._stage, self._shards, self._tokens, self._done = stage, shards, tokens, (0, 0)
        self._started_s = self._told_s = time.monotonic()
        self._tell(f"{stage}: started", shards=shards, tokens=tokens)

    def update(self, shards_done: int, tokens_done: int, workers: int) -> None:
        """Log a line if the last one is old enough."""
        self._done = (shards_done, tokens_done)
        now_s = time.monotonic()
        if now_s - self._told_s < LINE_INTERVAL_S:
            return
        self._told_s = now_s
        rate = tokens_done / (now_s - self._started_s)
        left = max(self._tokens - tokens_done, 0)
        self._tell(
            f"{self._stage}: {shards_done:,}/{self._shards:,} shards, {tokens_done:,} tokens",
            shards_done=shards_done, shards=self._shards, tokens_done=tokens_done, tokens=self._tokens,
            workers=workers, tokens_per_s=round(rate, 1), eta_s=round(left / rate, 1) if rate else None,
        )  # fmt: skip

    def finish(self) -> None:
        """The stage has ended."""
        seconds = time.monotonic() - self._started_s
        shards_done, tokens_done = self._done
        rate = round(tokens_done / seconds, 1) if tokens_done and seconds else None
        self._tell(
            f"{self._stage}: done, {shards_done:,} shards, {tokens_done:,} tokens in {seconds:.1f} s",
            shards_done=shards_done, tokens_done=tokens_done, seconds=round(seconds, 3), tokens_per_s=rate,
        )  # fmt: skip
        self._stage = ""

    def say(self, message: str) -> None:
        """One line."""
        self._tell(message)

    def _tell(self, message: str, **figures: Any) -> None:
        _progress.info("%s", message, extra={"stage": self._stage or None, **figures})


def reporter(form: LogFormat, *, terminal: bool = False) -> Reporter:
    """Lines of JSON, or for a person: bars on a terminal if there may be one, else plain lines."""
    if form == "json":
        return LogReporter()
    return make_reporter() if terminal else Lines()
