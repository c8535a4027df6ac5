"""Traces of one process: nothing without a collector, spans with one, and no harm from one that is out of order.

Each scenario is a process of its own, as a process decides once whether it sends.
"""

import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curator import tracing

PARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"

DRIVER = """
    import logging, pickle, sys, time
    from dataclasses import dataclass
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    from curator import tracing
    @dataclass(frozen=True)
    class Shard:
        number: int
    class Work:
        def open(self): pass
        def load(self, task): time.sleep(0.01); return "rows"
        def run(self, task, inputs, on_tokens):
            assert inputs == "rows"
            if task == Shard(2): raise ValueError("the canary text")
            with tracing.span("publish shard"): on_tokens(7)
            return task.number
    began_s = time.monotonic()
    with tracing.process("driver"), tracing.span("job.run", tracing.of_job("job_1", 1, 2), parent=PARENT):
        with tracing.stage(Work(), "score base") as stage:
            stage = pickle.loads(pickle.dumps(stage))
            stage.open()
            done = []
            for shard in [Shard(n) for n in range(4)]:
                try:
                    done.append(stage.run(shard, stage.load(shard), lambda tokens: None))
                except ValueError:
                    done.append(None)
    print(done, round(time.monotonic() - began_s, 3))
    print(sorted(name for name in sys.modules if name.split(".")[0] == "opentelemetry"))
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Run:
    """Runs a script with these variables and no others of OpenTelemetry."""

    def begin(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TRACEP"))}
        code = textwrap.dedent(script).replace("PARENT", repr(PARENT))
        return subprocess.run(
            [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, timeout=60
        )

    return begin


def test_without_a_collector_nothing_is_loaded_and_the_work_is_the_same(run: Run) -> None:
    done = run(DRIVER)
    assert done.stdout.splitlines()[0].startswith("[0, 1, None, 3]") and done.stdout.splitlines()[1] == "[]"
    assert done.stderr == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_what_the_standard_says_switches_it_off_does(run: Run, collector: Any, variables: dict[str, str]) -> None:
    done = run(DRIVER, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variables)
    assert done.stdout.splitlines()[1] == "[]" and done.stderr == "" and not collector.bodies


def test_spans_tell_of_every_attempt_under_the_parent_that_was_given(run: Run, collector: Any) -> None:
    began_ns = time.time_ns()
    done = run(
        DRIVER, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_HEADERS="x-team=blue",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    spans = collector.spans()
    names = {span["id"]: span["name"] for span in spans}
    assert {span["trace"] for span in spans} == {PARENT.split("-")[1]}
    edges = sorted((span["name"], names.get(span["parent"], span["parent"])) for span in spans)
    assert edges == sorted(
        [("job.run", PARENT.split("-")[2]), ("stage score base", "job.run"), ("open", "stage score base")]
        + [("shard", "stage score base"), ("load", "shard"), ("compute", "shard")] * 4
        + [("publish shard", "compute")] * 3
    )
    shards = {span["attributes"]["curator.shards"][0]: span for span in spans if span["name"] == "shard"}
    assert sorted(shards) == [0, 1, 2, 3]
    assert [number for number, span in shards.items() if span["status"] == 2] == [2]
    assert shards[2]["attributes"]["error.type"] == "ValueError" and not shards[2]["events"]
    for span in spans:
        assert began_ns <= span["start"] <= span["end"] <= time.time_ns()
        assert span["resource"]["service.name"] == "curator-driver"
        assert span["resource"]["deployment.environment.name"] == "test" and "telemetry.sdk.name" in span["resource"]
    assert b"canary" not in b"".join(collector.bodies)
    assert all(headers["x-team"] == "blue" for headers in collector.headers)


def test_an_attempt_that_ends_while_it_loads_has_its_span(run: Run, collector: Any) -> None:
    bad = DRIVER.replace('return "rows"', 'return "rows" if task != Shard(1) else int("the canary text")')
    done = run(bad, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert done.stdout.startswith("[0, None, None, 3]") and done.stderr == "", done.stderr
    spans = collector.spans()
    (shard,) = (span for span in spans if span["attributes"].get("curator.shards") == [1])
    below = [span for span in spans if span["parent"] == shard["id"]]
    assert [span["name"] for span in below] == ["load"] and below[0]["end"] - below[0]["start"] >= 10_000_000
    assert {span["attributes"]["error.type"] for span in (shard, *below)} == {"ValueError"}
    assert b"canary" not in b"".join(collector.bodies)


def test_the_environment_may_name_the_service(run: Run, collector: Any) -> None:
    run(DRIVER, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces", OTEL_SERVICE_NAME="mine")
    assert {span["resource"]["service.name"] for span in collector.spans()} == {"mine"}


@pytest.mark.parametrize("mood", ["hang", "error", "away"])
def test_a_collector_out_of_order_costs_three_seconds_at_most_and_one_line(run: Run, collector: Any, mood: str) -> None:
    collector.mood = mood
    if mood == "away":
        collector.shutdown()
        collector.server_close()
    url = collector.url.replace("http://", "http://user:hunter2@")
    began_s = time.monotonic()
    done = run(DRIVER, OTEL_EXPORTER_OTLP_ENDPOINT=url)
    whole_s = time.monotonic() - began_s
    result, seconds = done.stdout.splitlines()[0].rsplit(" ", 1)
    assert result == "[0, 1, None, 3]" and done.returncode == 0
    assert float(seconds) < 3.0 and whole_s - float(seconds) < 10  # and its threads do not hold up the process's end
    assert done.stderr.count("\n") == 1 and "traces cannot be sent to http://127.0.0.1" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("before", "variables", "told"),
    [
        ("import sys; sys.modules['opentelemetry.exporter'] = None", {}, "install token-curator[otel]"),
        ("", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'grpc' is not supported; use http/protobuf"),
        ("", {"OTEL_BSP_MAX_QUEUE_SIZE": "-5"}, "check the variables OTEL_*"),
        ("", {"OTEL_EXPORTER_OTLP_COMPRESSION": "rar"}, "Unsupported compression type: rar"),
        ("from curator import logs; logs.start('json')", {"OTEL_EXPORTER_OTLP_COMPRESSION": "rar"}, "sion type: rar"),
    ],
)
def test_what_cannot_be_is_one_warning(
    run: Run, collector: Any, before: str, variables: dict[str, str], told: str
) -> None:
    done = run(before + textwrap.dedent(DRIVER), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variables)
    assert done.stdout.startswith("[0, 1, None, 3]") and done.stderr.count("\n") == 1 and told in done.stderr


def test_a_malformed_parent_begins_a_new_trace(run: Run, collector: Any) -> None:
    run(DRIVER.replace("PARENT", "'00-zz-1-01'"), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    root = next(span for span in collector.spans() if span["name"] == "job.run")
    assert root["parent"] == "" and len(root["trace"]) == 32


def test_lines_of_the_log_name_the_span_that_they_belong_to(run: Run, collector: Any) -> None:
    script = """
        import logging
        from curator import logs, tracing
        logs.start("json")
        with tracing.process("driver"), tracing.span("job.run", parent=PARENT):
            logging.getLogger("curator").info("inside")
        logging.getLogger("curator").info("outside")
    """
    done = run(script, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    inside, outside = done.stderr.splitlines()
    (span,) = collector.spans()
    assert f'"trace_id": "{span["trace"]}", "span_id": "{span["id"]}"' in inside and "trace_id" not in outside


def test_a_stage_that_is_not_traced_is_itself() -> None:
    work = object()
    with tracing.stage(work, "select") as stage:
        assert stage is work and tracing.traceparent() is None and tracing.ids() == {}


def test_only_one_module_needs_opentelemetry_and_importing_curator_loads_neither(run: Run) -> None:
    code = Path(tracing.__file__).parents[1]
    files = [*(code / "curator").rglob("*.py"), *(code / "service").rglob("*.py")]
    found = {path.name for path in files if re.search(r"^(from|import) opentelemetry", path.read_text(), re.MULTILINE)}
    assert found == {"trace_export.py"}
    script = "import sys, curator, curator.cli, curator.pipeline, curator.job_runner, service.app; print([m for m in sys.modules if m.startswith(('opentelemetry', 'curator.trace_export'))])"  # noqa: E501
    assert run(script).stdout.strip() == "[]"
