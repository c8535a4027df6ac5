"""A real Prometheus scrapes a real service while it runs a job, and is asked everything that the dashboard asks."""

import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
CHOSEN = {"$__rate_interval": "20s", "$__range": "10m", "$job": ".*curator.*", "$instance": ".*"}
NOTHING_YET = {("Duration of jobs", "C")}  # of failed jobs


class Prometheus:
    """What is asked of a running server."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=30)

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self.client.get(path, params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def value(self, expression: str) -> float:
        """Of an expression that has one."""
        (sample,) = self.get("/api/v1/query", query=expression)["result"]
        return float(sample["value"][1])

    def until(self, expression: str, within_s: float = 30) -> None:
        """Wait until an expression has a value."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                if self.get("/api/v1/query", query=expression)["result"]:
                    return
            except httpx.TransportError:  # it is starting
                pass
            assert time.monotonic() < deadline_s, expression
            time.sleep(0.2)


@pytest.fixture
def scrape(tmp_path: Path) -> Iterator[Callable[[Any], Prometheus]]:
    """Start a Prometheus for a service: with the sample configuration, but every second."""
    assert shutil.which("prometheus"), "prometheus is not installed; run `make system`"
    started: list[tuple[subprocess.Popen[bytes], Prometheus]] = []

    def begin(service: Any) -> Prometheus:
        folder = tmp_path / "prometheus"
        folder.mkdir()
        configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (scraped,) = configuration["scrape_configs"]
        scraped["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
        (folder / scraped["authorization"]["credentials_file"]).write_text(service.new_key("default", "metrics"))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        shutil.copy(MONITORING / "alerts.yaml", folder)
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"]
        with (folder / "log.txt").open("wb") as log:
            command.append(f"--web.listen-address={address}")
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        started.append((process, Prometheus(f"http://{address}")))
        return started[-1][1]

    yield begin
    for process, prometheus in started:
        prometheus.client.close()
        process.kill()
        process.wait()


def asked(expression: str) -> str:
    for name, text in CHOSEN.items():
        expression = expression.replace(name, text)
    return expression


def figures(service: Any) -> dict[tuple[str, tuple[str, ...]], float]:
    """All samples of a service by name and the values of their labels."""
    with service.client() as client:
        text = client.get("/metrics").raise_for_status().text
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def test_every_query_of_the_dashboard_has_an_answer_after_a_job(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]], scrape: Callable[[Any], Prometheus]
) -> None:
    service = start()
    prometheus = scrape(service)
    prometheus.until('up{job="curator"} == 1 and on (job) jobs{state="completed"} == 0')
    job = service.submit(job_spec())
    assert service.wait(job["id"])["status"] == "completed"
    prometheus.until('sum(tokens_total) > 0 and on () max(jobs{state="completed"}) == 1')
    while_it_ran = "max_over_time((sum(stage_tokens_total) * on () max(curations_in_progress))[5m:1s])"
    assert prometheus.value(while_it_ran) > 0

    with service.client() as client:
        manifest = client.get(f"/v1/jobs/{job['id']}/manifest").raise_for_status().json()
    totals, shards = manifest["totals"], len(manifest["shards"])
    assert prometheus.value('tokens_total{decision="kept"}') == totals["kept_tokens"] > 0
    assert prometheus.value("sum(tokens_total)") == totals["tokens"]
    assert prometheus.value('documents_total{outcome="published"}') == totals["rows"] == 200
    assert prometheus.value('stage_tokens_total{stage="tokenize"}') == totals["tokens"]
    assert prometheus.value('stage_tokens_total{stage="score"}') == 2 * totals["tokens"]  # two models
    assert prometheus.value('shard_commits_total{result="published"}') == 4 * shards  # tokens, two scores, selected
    assert prometheus.value("sum(shard_commits_total)") == 4 * shards
    assert prometheus.value("queue_wait_seconds_count") == 1
    assert prometheus.value('job_duration_seconds_count{state="completed"}') == 1

    end = time.time()
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            series = prometheus.get(
                "/api/v1/query_range", query=asked(target["expr"]), start=end - 60, end=end, step=1
            )["result"]  # fmt: skip
            has_data = any(math.isfinite(float(text)) for each in series for _, text in each["values"])
            where = (panel["title"], target["refId"])
            assert has_data == (where not in NOTHING_YET), (where, target["expr"], series[:1])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            assert len(prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": asked(series)})) == 1

    routes = {labels[1] for name, labels in figures(service) if name == "http_request_duration_seconds_count"}
    assert {"/v1/jobs/{job_id}", "/v1/jobs", "/metrics"} <= routes and not any(job["id"] in route for route in routes)
    rules = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 19 and {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


def test_a_job_that_ends_while_its_service_is_away_is_counted_by_the_next(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = start()
    job = first.submit(job_spec())
    first.wait(job["id"], "in_progress", within_s=60)
    first.kill()
    events = tmp_path / "data" / "jobs" / job["id"] / "events.jsonl"
    deadline_s = time.monotonic() + 60
    while '"completed"' not in events.read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    time.sleep(2)  # which must not be in the duration
    second = start(key=first.key)
    shown = second.wait(job["id"])
    second_figures = figures(second)
    assert second_figures["job_duration_seconds_count", ("completed",)] == 1
    assert second_figures["tokens_total", ("kept",)] == shown["totals"]["kept_tokens"] > 0
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    states = {line["data"]["status"]: line["at"] for line in lines if line["type"] == "state"}
    assert shown["finished_at"] == states["completed"]
    second.stop()
    third = start(key=first.key)
    time.sleep(1)
    assert figures(third)["job_duration_seconds_count", ("completed",)] == 0
