"""The figures for Prometheus: what they are called, what they say from the beginning, and what readiness rests on."""

import logging
import re
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import curator
from service.context import Services

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
STATES = "queued", "validating", "in_progress", "finalizing", "completed", "cancelling", "cancelled", "failed"

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: bytes) -> Figures:
    """Every sample by name and labels."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(services: Services, name: str, **labels: str) -> float:
    return read(services.metrics.expose(services.readiness.checks()))[name, frozenset(labels.items())]


def test_every_state_and_label_is_there_from_the_beginning(open_services: Callable[..., Services]) -> None:
    services = open_services()
    for state in STATES:
        assert value(services, "jobs", state=state) == 0
    assert value(services, "curations_in_progress") == 0
    for name, label, values in (
        ("tokens_total", "decision", ("kept", "dropped")),
        ("documents_total", "outcome", ("published", "quarantined")),
        ("shard_commits_total", "result", ("published", "adopted", "retried", "failed", "lost")),
        ("stage_tokens_total", "stage", ("tokenize", "score", "calibrate", "select")),
        ("job_duration_seconds_count", "state", ("completed", "cancelled", "failed")),
    ):
        assert [value(services, name, **{label: each}) for each in values] == [0] * len(values)
    assert value(services, "curator_build_info", version=curator.__version__) == 1
    assert value(services, "process_resident_memory_bytes") > 1 << 20
    assert value(services, "storage_size_bytes") > value(services, "storage_free_bytes") > 0


def test_what_strangers_send_makes_no_new_labels(open_services: Callable[..., Services]) -> None:
    metrics = open_services().metrics
    for method in ("GET", "BREW", "\x00", "get"):
        metrics.observe({"type": "http", "method": method, "query_string": b"wait=1"}, 401, 0.1)
    route = type("Route", (), {"path": "/v1/jobs/{job_id}"})()
    for query in (b"", b"wait=30", b"wait=7&x=y"):
        metrics.observe({"type": "http", "method": "GET", "route": route, "query_string": query}, 200, 0.1)
    seen = {dict(labels)["method"] + " " + dict(labels)["route"] for name, labels in read(metrics.expose({}))
            if name == "http_request_duration_seconds_count"}  # fmt: skip
    assert seen == {"GET none", "other none", "GET /v1/jobs/{job_id}", "GET /v1/jobs/{job_id}?wait"}


def test_names_and_labels_keep_the_conventions(open_services: Callable[..., Services]) -> None:
    services = open_services()
    services.metrics.observe({"type": "http", "method": "GET"}, 200, 0.1)
    text = services.metrics.expose(services.readiness.checks())
    forbidden = {"job", "job_id", "user", "tenant", "key", "name", "model", "path", "instance", "source"}
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families)  # two registries, and no name in both
    for family in families:
        assert re.fullmatch("[a-z][a-z0-9_]*", family.name), family.name
        assert not re.search("_(ms|milliseconds|minutes|hours|kb|mb|gb|percent)(_|$)", family.name), family.name
        for sample in family.samples:
            assert not forbidden & set(sample.labels), sample
            assert not sample.name.endswith("_created")
            if family.type == "counter":
                assert sample.name.endswith("_total")
            if family.type in ("gauge", "histogram"):
                assert not sample.name.endswith("_total")


def test_the_documentation_lists_every_figure_as_it_is(open_services: Callable[..., Services]) -> None:
    services = open_services(ray_address="http://127.0.0.1:1")
    services.metrics.observe({"type": "http", "method": "GET"}, 200, 0.1)
    shown = {}
    for family in text_string_to_metric_families(services.metrics.expose(services.readiness.checks()).decode()):
        if not family.name.startswith(("process_", "python_")):
            labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
            name = family.name + ("_total" if family.type == "counter" else "")
            shown[name] = (family.type, ", ".join(labels), family.documentation)
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE)
    listed = {name: (kind, re.sub(r"`|=.*?(?=,|$)", "", labels), text) for name, kind, labels, text in rows}
    assert listed == shown


# ------------------------------------------------------------------------------------------------ readiness


class _Closed(BaseHTTPRequestHandler):
    """A head that wants a token."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_readiness_sees_whether_the_head_of_the_cluster_is_there(open_services: Callable[..., Services]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        free = taken.getsockname()[1]
    for address in (f"http://127.0.0.1:{free}", f"127.0.0.1:{free}", f"ray://127.0.0.1:{free}"):
        gone = open_services(ray_address=address)
        assert gone.readiness.checks() == {"database": True, "data_dir": True, "watcher": False, "ray": False}
        assert value(gone, "ready", check="ray") == 0 and value(gone, "ready", check="database") == 1
    with HTTPServer(("127.0.0.1", 0), _Closed) as head:
        threading.Thread(target=head.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{head.server_address[1]}"
        for address in (f"http://{host}", host, f"ray://{host}"):
            assert open_services(ray_address=address).readiness.checks()["ray"]
        head.shutdown()


def test_a_database_that_is_away_is_told_and_hides_no_other_figure(
    open_services: Callable[..., Services], tmp_path: Path
) -> None:
    services = open_services()
    services.store.engine.dispose()
    (tmp_path / "data" / "service.db").unlink()
    (tmp_path / "data" / "service.db").mkdir()
    checks = services.readiness.checks()
    assert checks["database"] is False
    figures = {name for name, _ in read(services.metrics.expose(checks))}
    assert {"ready", "storage_free_bytes", "tokens_total"} <= figures and "jobs" not in figures


def test_a_disk_that_is_away_is_told_though_the_one_below_has_room(open_services: Callable[..., Services]) -> None:
    services = open_services()
    assert services.readiness.checks()["data_dir"]
    services.settings.jobs_dir.rename(services.settings.jobs_dir.with_name("elsewhere"))
    services.readiness._until_s = 0.0  # what was known is old
    assert not services.readiness.checks()["data_dir"]


def test_the_log_tells_a_change_of_readiness_once_however_often_it_is_asked(
    open_services: Callable[..., Services], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "curator.service")
    readiness = open_services().readiness
    alive = False
    monkeypatch.setitem(readiness._checks, "watcher", lambda: alive)
    for alive in (False, False, True, True, False):
        readiness._until_s = 0.0  # what was known is old
        for _ in range(3):
            assert readiness.checks()["watcher"] is alive
    assert caplog.messages == ["not ready: watcher", "ready again", "not ready: watcher"]
