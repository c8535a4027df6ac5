"""One trace per attempt at a job, over the processes of a real service, driver and workers, as a collector gets it."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "zebra canary quartz"

PARENTS = {
    "POST /v1/jobs": {CLIENT},
    "job.queued": {"POST /v1/jobs"}, "job.launch": {"POST /v1/jobs"}, "job.run": {"job.launch"},
    "plan": {"job.run"}, "publish": {"job.run"},
    "stage tokenize": {"job.run"}, "stage score reference": {"job.run"}, "stage score base": {"job.run"},
    "stage calibrate": {"job.run"}, "stage calibrate ties": {"job.run"}, "stage select": {"job.run"},
    "load": {"shard"}, "compute": {"shard"}, "publish shard": {"compute"},
}  # fmt: skip
"""Under what each kind of span is to be found; `open` and `shard` are under the stage that they name."""


@pytest.fixture
def corpus(tmp_path: Path, mix_rows: list[dict[str, str]]) -> Path:
    """Real rows, each with a text that must not be found anywhere else."""
    path = tmp_path / "canaries.jsonl"
    path.write_text("".join(json.dumps(row | {"text": f"{CANARY} {row['text']}"}) + "\n" for row in mix_rows[:80]))
    return path


def test_a_jobs_trace_is_one_tree_over_service_driver_and_workers(
    start: Any, job_spec: Any, corpus: Path, collector: Any
) -> None:
    service = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20hunter2-otlp"
    )
    spec = job_spec(corpus={"kind": "jsonl", "uri": str(corpus), "id_field": "id"}, run={"workers": 2})
    job = service.submit(spec, traceparent=f"00-{TRACE}-{CLIENT}-01")
    assert service.wait(job["id"])["status"] == "completed"
    folder = service.data_dir / "jobs" / job["id"]
    service.stop()
    spans = [span for span in collector.spans() if span["trace"] == TRACE]
    by_id = {span["id"]: span for span in spans}
    assert (
        len(by_id) == len(spans) and json.loads((folder / "job.json").read_text())["traceparent"].split("-")[1] == TRACE
    )

    for span in spans:
        parent = by_id.get(span["parent"])
        above = span["parent"] if parent is None else parent["name"]
        stage = span["attributes"].get("curator.stage")
        assert above in PARENTS.get(span["name"], {f"stage {stage}"}), span
        assert parent is None or span["start"] >= parent["start"] or span["name"] == "load", span
    assert Counter(span["name"] for span in spans if span["name"] in PARENTS)["POST /v1/jobs"] == 1
    for name in set(PARENTS) - {"load", "compute", "publish shard"}:
        assert sum(span["name"] == name for span in spans) == 1, name

    pids: dict[str, set[int]] = {}
    for span in spans:
        pids.setdefault(span["resource"]["service.name"], set()).add(span["resource"]["process.pid"])
    assert pids["curator-service"] == {service.process.pid} and len(pids["curator-driver"]) == 1
    assert 1 <= len(pids["curator-worker"]) <= 2 and len(set().union(*pids.values())) >= 3

    manifest = json.loads((folder / "output" / "manifest.json").read_text())
    every = list(range(len(manifest["shards"])))
    for stage in ("tokenize", "score reference", "score base", "calibrate", "calibrate ties", "select"):
        own = [s for s in spans if s["name"] == "shard" and s["attributes"]["curator.stage"] == stage]
        assert sorted(number for span in own for number in span["attributes"]["curator.shards"]) == every, stage

    run = next(span for span in spans if span["name"] == "job.run")
    assert run["attributes"] == {"curator.job.id": job["id"], "curator.job.attempt": 1, "curator.job.epoch": 2}
    queued = next(span for span in spans if span["name"] == "job.queued")
    created = datetime.fromisoformat(job["created_at"]).astimezone(UTC).timestamp()
    assert abs(queued["start"] / 1e9 - created) < 0.5 and queued["end"] <= run["start"]

    events = (folder / "events.jsonl").read_text() + (folder / "log.txt").read_text() + "".join(service.log)
    sent = b"".join(collector.bodies)
    assert CANARY.encode() not in sent and CANARY not in events and "hunter2" not in events
    assert b"hunter2" not in sent and all(h["authorization"] == "Bearer hunter2-otlp" for h in collector.headers)
    _requests_are_named_by_route(collector.spans(), job["id"])


def _requests_are_named_by_route(spans: list[dict[str, Any]], job_id: str) -> None:
    asked = [span for span in spans if span["name"] == "GET /v1/jobs/{job_id}"]
    assert asked and all(span["kind"] == 2 and span["trace"] != TRACE for span in asked)
    assert {span["attributes"]["http.route"] for span in asked} == {"/v1/jobs/{job_id}"}
    assert {span["attributes"]["http.response.status_code"] for span in asked} == {200}
    for span in spans:
        if span["kind"] == 2:
            assert job_id not in json.dumps(span["attributes"]) + span["name"]
        assert not any("livez" in span["name"] or "static" in span["name"] for span in spans)


CURATE = """
import json, sys
from pathlib import Path
from curator.pipeline import curate
from curator.spec import load_spec
manifest = curate(load_spec(sys.argv[1]))
ours = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp", "curator.trace_export")  # Ray has metrics of its own
print([name for name in sys.modules if name.startswith(ours)])
"""


def _digests(folder: Path) -> list[str]:
    return [shard["sha256"] for shard in json.loads((folder / "manifest.json").read_text())["shards"]]


def test_a_collector_that_hangs_leaves_a_job_as_it_is_and_costs_it_seconds_at_most(
    make_spec: Callable[..., dict[str, Any]], tmp_path: Path, collector: Any
) -> None:
    collector.mood = "hang"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "CURATOR_"))}
    files = {}
    for name in ("plain", "hung"):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(make_spec(80, run={"workers": 2}, output={"uri": str(tmp_path / name)})))
    plain = subprocess.run(
        [sys.executable, "-c", CURATE, str(files["plain"])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert plain.returncode == 0 and plain.stdout.strip() == "[]", plain.stderr
    command = [str(Path(sys.executable).with_name("curator")), "run", str(files["hung"]), "--log-format", "json"]
    hung = subprocess.run(
        command, env=environment | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    ended = datetime.now(UTC)
    assert hung.returncode == 0, hung.stderr
    lines = [json.loads(line) for line in hung.stderr.splitlines()]
    assert sum("traces cannot be sent" in line["message"] for line in lines) == 1
    published = next(line for line in lines if line["message"].startswith("publish: done"))
    assert (ended - datetime.fromisoformat(published["timestamp"])).total_seconds() < 3
    assert _digests(tmp_path / "hung") == _digests(tmp_path / "plain")
