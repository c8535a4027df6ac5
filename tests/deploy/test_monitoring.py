"""Dashboard and alerts ask only for what the service exposes, and each alert fires when it should and not else."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.app import make_services
from service.settings import Settings

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}
SCRAPED = ("up",)  # Prometheus' own
TARGET = {"job", "instance", "namespace"}  # labels that scraping adds
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}


# ------------------------------------------------------------------------------------------------ names


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """Families by the names of their samples, as a new service exposes them after one request."""
    services = make_services(Settings(data_dir=tmp_path_factory.mktemp("data"), ray_address="http://127.0.0.1:1"))
    services.metrics.observe({"type": "http", "method": "GET"}, 200, 0.1)
    text = services.metrics.expose(services.readiness.checks()).decode()
    services.store.engine.dispose()
    return {sample.name: family for family in text_string_to_metric_families(text) for sample in family.samples}


def queries() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of dashboard and alerts, with where it is."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']!r} {target['refId']}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        if "expr" in annotation:
            yield f"annotation {annotation['name']!r}", annotation["expr"]
    for name, rule in RULES.items():
        yield f"alert {name}", rule["expr"]


def selectors(expression: str) -> list[tuple[str, str]]:
    """Names of the series of an expression, each with its matchers, after taking out all that is none."""
    strings: list[str] = []

    def keep(match: re.Match[str]) -> str:
        strings.append(match.group(1))
        return f"#{len(strings) - 1}#"

    text = re.sub(r'"((?:[^"\\]|\\.)*)"', keep, expression)
    text = re.sub(r"\[[^\]]*\]", "", text)  # ranges
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    found = []
    for match in re.finditer(r"(?<![\w#.$])([a-zA-Z_:][\w:]*)\s*(\(|\{[^}]*\})?", text):
        name, behind = match.group(1), match.group(2) or ""
        if behind != "(" and name not in WORDS:
            matchers = re.sub(r"#(\d+)#", lambda number: f'"{strings[int(number.group(1))]}"', behind.strip("{}"))
            found.append((name, matchers))
    return found


def test_the_reader_of_expressions_finds_series_and_nothing_else() -> None:
    expression = 'sum by (a, le) (rate(x_total{b="c{d}", e=~"f|g"}[5m])) / on (h) y unless 1e9 * vector(2) > 0.5'
    assert selectors(expression) == [("x_total", 'b="c{d}", e=~"f|g"'), ("y", "")]


@pytest.mark.parametrize(("where", "expression"), [pytest.param(*query, id=query[0]) for query in queries()])
def test_every_query_asks_for_series_labels_and_values_that_there_are(
    where: str, expression: str, exposed: dict[str, Metric]
) -> None:
    asked = selectors(expression)
    assert asked, where
    for name, matchers in asked:
        assert name in exposed or name in SCRAPED, f"{where}: the service exposes no {name}"
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label in TARGET:
                continue
            samples = [sample.labels for sample in exposed[name].samples if sample.name == name]
            assert all(label in labels for labels in samples), f"{where}: {name} has no label {label}"
            if label in ("route", "status"):  # values of requests, of which there was one
                continue
            known = {labels[label] for labels in samples}
            for each in value.split("|") if operator in ("=~", "!~") else [value]:
                assert each in known, f"{where}: {name} has no {label} {each!r}, but {sorted(known)}"
    if name not in SCRAPED:
        for grouped in re.findall(r"\bby\s*\(([^)]*)\)", expression):
            known = {label for name, _ in asked if name in exposed for sample in exposed[name].samples
                     for label in sample.labels}  # fmt: skip
            assert {label.strip() for label in grouped.split(",")} <= known | TARGET | {"le"}, where


def test_every_figure_that_tells_of_work_is_on_the_dashboard(exposed: dict[str, Metric]) -> None:
    shown = {exposed[name].name for where, expr in queries() if "panel" in where for name, _ in selectors(expr)}
    own = {family.name for family in exposed.values() if not family.name.startswith(("process_", "python_"))}
    assert own - shown == {"curations_in_progress"}  # what alerts alone need


# ------------------------------------------------------------------------------------------------ dashboard


def test_panels_stand_side_by_side_and_use_the_chosen_source() -> None:
    places: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        covered = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24 and not covered & places, panel["title"]
        places |= covered
        if panel["type"] != "row":
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources), panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_variables_are_defined_and_builtin() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and set(variables) == {"datasource", "job", "instance"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval", "__range", "__all"} == set(variables)
    assert DASHBOARD["schemaVersion"] >= 41 and DASHBOARD["uid"] and DASHBOARD["id"] is None


# ------------------------------------------------------------------------------------------------ alerts


def test_every_alert_says_how_bad_it_is_and_what_to_do_first() -> None:
    for name, rule in RULES.items():
        assert name.startswith("Curator") and rule["labels"]["severity"] in ("critical", "warning"), name
        assert len(rule["annotations"]["description"]) > 80 and rule["annotations"]["summary"], name
        assert set(rule["annotations"]) == {"summary", "description"}
        assert 'job=~".*curator.*"' in rule["expr"], f"{name} looks at everybody's series"
    documented = (MONITORING.parents[1] / "docs" / "observability.md").read_text()
    listed = re.findall(r"^\| `(Curator\w+)` \| (\w+) \|", documented, re.MULTILINE)
    assert dict(listed) == {name: rule["labels"]["severity"] for name, rule in RULES.items()}


HEALTHY = {
    "up": "1x600",
    'ready{check="database"}': "1x600",
    'ready{check="ray"}': "1x600",
    "process_start_time_seconds": "1000x600",
    'curator_build_info{version="1.0"}': "1x600",
    "storage_size_bytes": "1e12x600",
    "storage_free_bytes": "9e11x600",
    'jobs{state="queued"}': "3x600",
    'jobs{state="in_progress"}': "1x600",
    'jobs{state="validating"}': "0x600",
    "curations_in_progress": "1x600",
    "queue_oldest_seconds": "0+60x600",
    "start_failures_total": "0x600",
    "relaunches_total": "0x600",
    'job_duration_seconds_count{state="completed"}': "0+1x600",
    'job_duration_seconds_count{state="failed"}': "0x600",
    'job_duration_seconds_count{state="cancelled"}': "0+3x600",
    'stage_tokens_total{stage="score"}': "0+60000x600",
    'shard_commits_total{result="published"}': "0+10x600",
    'shard_commits_total{result="retried"}': "0x600",
    'shard_commits_total{result="failed"}': "0x600",
    'shard_commits_total{result="lost"}': "0x600",
    'documents_total{outcome="published"}': "0+1000x600",
    'documents_total{outcome="quarantined"}': "0+10x600",
    'http_request_duration_seconds_count{status="200",route="/v1/jobs"}': "0+600x600",
    'http_request_duration_seconds_count{status="503",route="/v1/jobs"}': "0x600",
    'http_request_duration_seconds_count{status="503",route="/readyz"}': "0+60x600",
    'http_request_duration_seconds_bucket{route="/v1/jobs",le="1"}': "0+600x600",
    'http_request_duration_seconds_bucket{route="/v1/jobs",le="10"}': "0+600x600",
    'http_request_duration_seconds_bucket{route="/v1/jobs",le="+Inf"}': "0+600x600",
    'http_request_duration_seconds_bucket{route="/v1/jobs/{job_id}?wait",le="1"}': "0x600",
    'http_request_duration_seconds_bucket{route="/v1/jobs/{job_id}?wait",le="10"}': "0+100000x600",
    'http_request_duration_seconds_bucket{route="/v1/jobs/{job_id}?wait",le="+Inf"}': "0+100000x600",
}
"""A service that does well, minute by minute for ten hours."""

QUEUED, RUNS, VALIDATES = 'jobs{state="queued"}', 'jobs{state="in_progress"}', 'jobs{state="validating"}'
FAILED = 'job_duration_seconds_count{state="failed"}'
COMPLETED = 'job_duration_seconds_count{state="completed"}'
RETRIED, LOST = 'shard_commits_total{result="retried"}', 'shard_commits_total{result="lost"}'
QUARANTINED = 'documents_total{outcome="quarantined"}'
PUBLISHED = 'documents_total{outcome="published"}'
ERRORS = 'http_request_duration_seconds_count{status="503",route="/v1/jobs"}'
FASTER = 'http_request_duration_seconds_bucket{route="/v1/jobs",le="1"}'

CASES: list[tuple[str, int, dict[str, str | None], dict[str, str | None]]] = [
    # alert, minute, what makes it fire, what is near to it and does not
    ("CuratorDown", 14, {"up": "1x10 0x90"}, {"up": "1x10 0 0 1x90"}),
    ("CuratorNotScraped", 40, dict.fromkeys(HEALTHY), {"up": "1x20 _x10 1x90"}),
    ("CuratorNotReady", 14, {'ready{check="ray"}': "1x10 0x90"}, {'ready{check="ray"}': "1x12 0x90"}),
    ("CuratorRestarting", 40, {"process_start_time_seconds": "1x20 2x5 3x5 4x90"},
     {"process_start_time_seconds": "1x20 2x5 3x90"}),
    ("CuratorVersionsDiffer", 60, {'curator_build_info{version="1.1"}': "1x600"},
     {'curator_build_info{version="1.0"}': "1x20 stale", 'curator_build_info{version="1.1"}': "_x15 1x90"}),
    ("CuratorStorageLow", 60, {"storage_free_bytes": "9e10x600"}, {"storage_free_bytes": "1.1e11x600"}),
    ("CuratorStorageFull", 60, {"storage_free_bytes": "9e8x600", "storage_size_bytes": "5e9x600"},
     {"storage_free_bytes": "1.1e9x600", "storage_size_bytes": "5e9x600"}),
    ("CuratorStorageFillsUp", 120, {"storage_free_bytes": "4.9e11-1.5e9x300"},
     {"storage_free_bytes": "4.9e11-5e8x300"}),
    ("CuratorQueueStuck", 30, {RUNS: "1x10 0x90"}, {RUNS: "1x10 0x90", VALIDATES: "1x90"}),
    ("CuratorQueueOld", 60, {"queue_oldest_seconds": "86500+60x600"}, {"queue_oldest_seconds": "82500+60x600"}),
    ("CuratorDriversDoNotStart", 30, {"start_failures_total": "0+12x600"}, {"start_failures_total": "0x10 4x600"}),
    ("CuratorJobsFail", 90, {FAILED: "0+1x600", COMPLETED: "0+2x600"}, {FAILED: "0x60 1x600", COMPLETED: "0x600"}),
    ("CuratorRelaunches", 60, {"relaunches_total": "0+1x600"}, {"relaunches_total": "0x40 2x600"}),
    ("CuratorScoringStandsStill", 120, {'stage_tokens_total{stage="score"}': "0+60000x60 3600000x600"},
     {'stage_tokens_total{stage="score"}': "0+60000x60 3600000x600", "curations_in_progress": "0x600"}),
    ("CuratorShardsRetried", 60, {RETRIED: "0+2x600"}, {RETRIED: "0+0.5x600"}),
    ("CuratorShardsLost", 60, {LOST: "0x50 1x600"}, {LOST: "1x600"}),
    ("CuratorQuarantineHigh", 500, {QUARANTINED: "0+100x600"}, {QUARANTINED: "0x480 90x600", PUBLISHED: "0x600"}),
    ("CuratorErrors", 60, {ERRORS: "0+9x600"}, {ERRORS: "0+3x600"}),
    ("CuratorSlow", 60, {FASTER: "0+500x600"}, {FASTER: "0+590x600"}),
]  # fmt: skip


def test_each_alert_has_a_case() -> None:
    assert [case[0] for case in CASES] == list(RULES)


def _series(changes: dict[str, str | None]) -> list[dict[str, str]]:
    """Series of one service, as a scrape would label them."""
    found = []
    for name, values in (HEALTHY | changes).items():
        if values is not None:
            metric, _, labels = name.partition("{")
            both = ",".join(filter(None, ['job="curator"', 'instance="a:1"', labels.rstrip("}")]))
            found.append({"series": f"{metric}{{{both}}}", "values": values})
    return found


def _labelled(name: str) -> str:
    return f'{{alertname="{name}"}}'


@pytest.mark.slow
def test_each_alert_fires_when_it_should_and_no_other_does(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", ALERTS], check=True, capture_output=True)
    tests = []
    for name, minute, firing, near in [*CASES, ("", 590, {}, {})]:
        for changes, expected in ((firing, [name] if name else []), (near, [])):
            question = {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": f"{minute}m",
                "exp_samples": [{"labels": _labelled(each), "value": 1} for each in expected],
            }  # fmt: skip
            case = {"interval": "1m", "input_series": _series(changes), "promql_expr_test": [question]}
            tests.append({"name": f"{name} {'fires' if expected else 'is silent'}", **case})
    path = tmp_path / "alerts_test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    ran = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_the_sample_configuration_is_sound(tmp_path: Path) -> None:
    for file in ("prometheus.yml", "alerts.yaml"):
        (tmp_path / file).write_bytes((MONITORING / file).read_bytes())
    (tmp_path / "curator.key").write_text("tc_key")
    ran = subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert ran.returncode == 0 and "1 rule files found" in ran.stdout, ran.stdout + ran.stderr
