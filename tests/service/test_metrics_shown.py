"""The figures for Prometheus: what they are called, and what they say from the beginning."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import curator
from service.context import Services

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
STATES = "queued", "validating", "in_progress", "finalizing", "completed", "cancelling", "cancelled", "failed"

_FIGURES = runpy.run_path(str(Path(__file__).with_name("figures.py")))
read, value = _FIGURES["read"], _FIGURES["value"]


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
