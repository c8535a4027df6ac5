"""What a log holds and what it must not: one JSON object a line, no secret, no text of the corpus."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydantic
import pytest
import sqlalchemy as sa
from rich.console import Console

from curator import hiding, logs
from curator.errors import CorpusError
from curator.event_reporter import EventReporter
from curator.progress import Bars, Lines, Reporter

CANARY = "the quick canary sang of 4711 secrets"


@pytest.fixture
def logged(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Log in the form of the test's parameter (default JSON); gives what was written. Undone afterwards."""
    root, stream = logging.getLogger(), io.StringIO()
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    handlers, level = list(root.handlers), root.level
    logs.start(getattr(request, "param", "json"), stream, job="job_1")
    yield stream.getvalue
    logging.captureWarnings(False)
    logs.start("json")
    root.handlers[:], root.level = handlers, level
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)


both = pytest.mark.parametrize("logged", ["json", "text"], indirect=True)


def test_a_line_says_when_who_what_and_what_is_known(logged: Callable[[], str]) -> None:
    before = datetime.now(UTC)
    with logs.known(request_id="r1", stage="score reference"):
        logging.getLogger("curator.x").warning("said\n%s", "so", extra={"shard": 3, "text": CANARY, "stage": "select"})
    logging.getLogger("uvicorn.error").info("plain")
    first, second = (json.loads(line) for line in logged().splitlines())
    moment = datetime.fromisoformat(first.pop("timestamp"))
    assert moment.utcoffset() is not None and abs((moment - before).total_seconds()) < 5
    assert first == {
        "level": "warning", "logger": "curator.x", "message": "said\nso", "job": "job_1", "request_id": "r1",
        "stage": "select", "shard": 3,
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", second["timestamp"])
    assert (second["logger"], second["message"], "stage" in second) == ("uvicorn.error", "plain", False)


def test_text_for_a_person_is_the_message_and_a_word_before_what_is_wrong() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.TextLines())
    for name, level in (("curator.progress", 20), ("curator.job", 30), ("ray.worker", 40)):
        handler.handle(logging.LogRecord(name, level, "f", 1, "said %d", (1,), None))
    assert stream.getvalue() == "said 1\nwarning: said 1\nerror ray.worker: said 1\n"


SECRETS = {
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hunter2-otlp,x-team=blue-whale-9",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-key=hunter2-traces",
    "CURATOR_DATABASE_URL": "postgresql://curator:hunter%402-db@db/name",
    "AWS_SECRET_ACCESS_KEY": "hunter2/aws",
    "HF_TOKEN": "hunter2hf",
    "PGPASSWORD": "hunter2pg",
    "MY_API_KEY": "hunter2-api",
}
SAID = (
    "Bearer hunter2-otlp", "team blue-whale-9", "key hunter2-traces", "url postgresql://curator:hunter%402-db@db/name",
    "password hunter@2-db", "aws hunter2/aws", "token hunter2hf", "api hunter2-api", "pg hunter2pg",
    "other postgresql://me:short@elsewhere/x", "Authorization: Bearer abcdefgh12345678",
    "https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature=abcdef0123", "named hunter2-by-spec",
)  # fmt: skip


@both
def test_secrets_are_hidden_wherever_they_stand(logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PRIVATE_VARIABLE", "hunter2-by-spec")
    hiding.keep_keys_of({"models": {"reference": {"engine": "openai", "api_key_env": "PRIVATE_VARIABLE"}}})
    for text in SAID:
        logging.getLogger("curator").error("it said: %s", text)
        try:
            raise CorpusError(text)
        except CorpusError:
            logging.getLogger("curator").exception("failed")
    written = logged()
    for secret in ("hunter", "blue-whale", "short", "abcdefgh", "abcdef0123"):
        assert secret not in written
    assert written.count("[hidden]") >= 2 * len(SAID) and "elsewhere/x" in written and "X-Amz-Date=1" in written


def test_a_jobs_log_in_text_its_events_and_bars_hide_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2-api")
    shown, written = io.StringIO(), io.StringIO()
    told: list[dict[str, Any]] = []
    said = "attempt 1 of 4 failed: the server knows no key hunter2-api; dbname=x password=hunter2-db"
    EventReporter(lambda _, data: told.append(data), Lines(written)).say(said)
    Bars(Console(file=shown, width=200)).say(said)
    hidden = "attempt 1 of 4 failed: the server knows no key [hidden]; dbname=x password=[hidden]"
    assert told == [{"text": hidden}] and written.getvalue() == shown.getvalue() == hidden + "\n"


def test_ordinary_variables_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TOKENIZERS_PARALLELISM": "false!", "RAY_AUTH_MODE": "token!", "MY_TOKEN": "short"}.items():
        monkeypatch.setenv(name, value)
    assert hiding.hide("false! token! short http://host/a@b") == "false! token! short http://host/a@b"


@pytest.mark.parametrize(
    ("said", "hidden"),
    [
        ("cannot clone https://ghp-0123456789@git.host/x", "cannot clone https://[hidden]@git.host/x"),
        ("git+https://u:p@ss:word@host:8/x@main", "git+https://[hidden]@host:8/x@main"),
        ('{"a":"https://host","b":"me@x"}', '{"a":"https://host","b":"me@x"}'),
        (
            "s3://bucket/a@b and https://host/?q=a@b, file:///x@y",
            "s3://bucket/a@b and https://host/?q=a@b, file:///x@y",
        ),
    ],
)
def test_whatever_stands_before_a_host_is_hidden(said: str, hidden: str) -> None:
    assert hiding.hide(said) == hidden


BATCH = """
import logging, sys, warnings
from curator import batch, logs, pipeline
def curate(spec, reporter):
    assert logging.getLogger().handlers
    logging.getLogger("curator.trace").warning("cannot reach https://hunter2-token@host")
    logging.getLogger("botocore").info("not for a person")
    warnings.warn("the address https://u:hunter2@host is old")
    return "done"
pipeline.curate = curate
assert batch.run_spec(sys.argv[1]) == "done"
assert not logging.getLogger().handlers
warnings.warn("afterwards")
"""


def test_in_text_too_what_libraries_say_during_a_batch_job_is_shown_without_secrets(tmp_path: Path) -> None:
    spec = {
        "name": "x", "corpus": {"kind": "jsonl", "uri": "a"}, "models": {"reference": {"engine": "bigram"}},
        "policy": {"kind": "loss", "keep": 0.5}, "output": {"uri": str(tmp_path / "out")},
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-c", BATCH, str(tmp_path / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    first, second, *rest = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    assert first == "warning: cannot reach https://[hidden]@host"
    assert re.fullmatch(
        r"warning py.warnings: UserWarning at <string>:\d+: the address .*\[hidden\]@host is old", second
    )
    assert "hunter2" not in done.stderr and "UserWarning: afterwards" in rest[0]


class Row(pydantic.BaseModel):
    text: int


def _chain() -> None:
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        raise CorpusError("row 7 is bad") from error


def _group() -> None:
    raise ExceptionGroup("several", [KeyError(CANARY), ValueError(CANARY)])


def _statement() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(sa.text("insert into missing values (:text)"), {"text": CANARY})


QUOTING: dict[str, Callable[[], Any]] = {
    "ValueError": lambda: int(CANARY),
    "KeyError": lambda: {}[CANARY],
    "ArrowInvalid": lambda: pa.array([CANARY], pa.string()).cast(pa.int64()),
    "ValidationError": lambda: Row.model_validate({"text": CANARY}),
    "CorpusError: row 7 is bad": _chain,
    "ExceptionGroup": _group,
    "OperationalError: OperationalError: no such table": _statement,
}


@both
@pytest.mark.parametrize("told", QUOTING)
def test_errors_over_rows_are_told_without_what_they_quote(logged: Callable[[], str], told: str) -> None:
    with pytest.raises(Exception) as caught:
        QUOTING[told]()
    assert CANARY in "".join(hiding.traceback.format_exception(caught.value))  # Python itself would have told
    logging.getLogger("curator").error("job failed: %s", caught.value, exc_info=caught.value)
    logging.getLogger("curator").error(caught.value)
    written = logged()
    assert CANARY not in written and "canary" not in written
    assert told.split(":")[0] in written and told.rpartition(": ")[2] in written
    assert "test_logs.py" in written  # where it came from is told instead


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "/data/a.jsonl"), RuntimeError("CUDA error: device lost"),
        MemoryError("no room"), CorpusError("a, row 7: not_json"), json.JSONDecodeError("Expecting value", "x", 0),
    ],
)  # fmt: skip
def test_errors_of_the_system_and_our_own_are_told_in_full(error: Exception) -> None:
    assert str(error) in hiding.describe(error)


class _Grumbler:
    def __del__(self) -> None:
        raise ValueError(CANARY)


@both
def test_what_a_thread_or_a_finalizer_dies_of_is_told_like_all_else(logged: Callable[[], str]) -> None:
    thread = threading.Thread(target=int, args=(CANARY,), name="beats")
    thread.start()
    thread.join()
    assert "ValueError ended thread beats" in logged() and "threading.py" in logged()
    _Grumbler()
    assert "ValueError was raised where it could not be handled" in logged()
    assert CANARY not in logged() and "canary" not in logged()


def test_an_engine_that_does_not_start_says_why() -> None:
    error = ValueError("max seq len 8192 is larger than the KV cache")
    assert "KV cache" in hiding.describe(error, over_rows=False) and "KV cache" not in hiding.describe(error)


def test_a_process_says_everything_in_lines_of_json() -> None:
    script = (
        "import logging, sys, warnings\n"
        "from curator import logs\n"
        "logs.start('json', job='job_2')\n"
        "reporter = logs.reporter('json')\n"
        "reporter.start('score base', 3, 100); reporter.update(1, 50, 2); reporter.finish(); reporter.say('a\\nb')\n"
        "warnings.warn('old thing', DeprecationWarning, stacklevel=1)\n"
        "logging.getLogger('some.library').error('boom')\n"
        "{}['key']\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1 and done.stdout == "" and all(line["job"] == "job_2" for line in lines)
    began, ended, said, warned, boom, last = lines
    assert (began["stage"], began["shards"], began["tokens"]) == ("score base", 3, 100)
    assert (ended["shards_done"], ended["tokens_done"]) == (1, 50) and ended["seconds"] >= 0
    assert said["message"] == "a\nb" and "stage" not in said
    assert "old thing" in warned["message"] and boom["logger"] == "some.library"
    assert last["level"] == "critical" and last["error_type"] == "KeyError" and "Traceback" in last["exception"]


def test_progress_is_logged_every_ten_seconds(logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
    reporter: Reporter = logs.LogReporter()
    reporter.start("select", 40, 4000)
    for second in range(1, 26):
        clock[0] += 1
        reporter.update(second, 100 * second, 2)
    lines = [json.loads(line) for line in logged().splitlines()][1:]
    assert [line["shards_done"] for line in lines] == [10, 20]
    assert (lines[1]["tokens_per_s"], lines[1]["eta_s"], lines[1]["workers"]) == (100.0, 20.0, 2)


@pytest.mark.slow
def test_a_batch_job_ends_with_its_error_as_a_line_of_json(tmp_path: Path) -> None:
    spec = {
        "name": "bad", "corpus": {"kind": "jsonl", "uri": str(tmp_path / "absent.jsonl")},
        "models": {"reference": {"engine": "bigram"}}, "policy": {"kind": "loss", "keep": 0.5},
        "output": {"uri": str(tmp_path / "out")},
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [str(Path(sys.executable).with_name("curator")), "run", str(tmp_path / "spec.json")]
    environment = os.environ | {"CURATOR_LOG_FORMAT": "json"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 2 and (lines[-1]["level"], lines[-1]["error_type"]) == ("error", "SpecError")
    assert "absent.jsonl" in lines[-1]["message"] and "exception" not in lines[-1]
