"""Values that the Helm chart refuses: combinations that would lose data, show a secret, or never work."""

from pathlib import Path

import helm_python as helm
import pytest
import yaml

_CHART = Path(__file__).parents[2] / "deploy" / "helm" / "token-curator"
_SHARED = {"persistence": {"accessMode": "ReadWriteMany"}, "database": {"existingSecret": "database"}}

_REFUSED = {
    "a misspelt value": ({"replica": 2}, "replica"),
    "a misspelt setting": ({"settings": {"max_jobs": 2}}, "max_jobs"),
    "a setting out of range": ({"settings": {"max_queued_jobs": 0}}, "max_queued_jobs"),
    "a password in plain sight": (
        {"settings": {"database_url": "postgresql://u:hunter2@h/n"}}, "database.existingSecret",
    ),
    "a token in plain sight": ({"env": [{"name": "HF_TOKEN", "value": "hunter2"}]}, "env"),
    "a password in an address": ({"env": [{"name": "CURATOR_DATABASE_URL", "value": "x://u:hunter2@h/n"}]}, "env"),
    "a collector's key": ({"env": [{"name": "OTEL_EXPORTER_OTLP_HEADERS", "value": "authorization=hunter2"}]}, "env"),
    "a setting behind the chart's back": (
        {"env": [{"name": "CURATOR_MAX_RUNNING_JOBS", "value": "9"}]}, "write it as settings.max_running_jobs",
    ),
    "a setting in small letters": (  # which the service reads as well
        {"env": [{"name": "curator_retention_days", "value": "1"}]}, "write it as settings.retention_days",
    ),
    "a port behind the chart's back": ({"env": [{"name": "CURATOR_PORT", "value": "9"}]}, "it is the chart's own"),
    "a database behind the chart's back": (
        {"env": [{"name": "CURATOR_DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "d", "key": "k"}}}]},
        "name that in database.existingSecret",
    ),
    "a size that the groups have already": (
        {**_SHARED, "ray": {"enabled": True}, "env": [{"name": "CURATOR_GROWS_TO", "value": "{}"}]}, "ray.workerGroups",
    ),
    "a cluster without its token": (
        {**_SHARED, "ray": {"enabled": True}, "env": [{"name": "RAY_AUTH_MODE", "value": "disabled"}]}, "ray.auth",
    ),
    "the volume's place": ({"settings": {"data_dir": "/mnt"}}, "settings.data_dir is the chart's own"),
    "an address of its own": (
        {**_SHARED, "ray": {"enabled": True}, "settings": {"ray_address": "http://x"}},
        "settings.ray_address is the chart's own",
    ),
    "several replicas on SQLite": ({"replicas": 2}, "need PostgreSQL; set database.existingSecret"),
    "several replicas on one disk": (
        {"replicas": 2, "database": {"existingSecret": "d"}}, "set it to ReadWriteMany",
    ),
    "a cluster without the volume": ({"ray": {"enabled": True}, "database": {"existingSecret": "d"}}, "ReadWriteMany"),
    "SQLite on a shared volume": (
        {"ray": {"enabled": True}, "persistence": {"accessMode": "ReadWriteMany"}}, "SQLite loses data",
    ),
    "a cluster without workers": (
        {**_SHARED, "ray": {"enabled": True, "workerGroups": {"cpu": {"enabled": False}}}}, "a group under",
    ),
    "a group that never has workers": (
        {**_SHARED, "ray": {"enabled": True, "autoscaling": {"enabled": False}}}, "minReplicas is 0",
    ),
    "fewer than the least": (
        {**_SHARED, "ray": {"enabled": True, "workerGroups": {"cpu": {"minReplicas": 11}}}}, "less than minReplicas 11",
    ),
    "spot nodes that nobody knows": (
        {**_SHARED, "ray": {"enabled": True, "workerGroups": {"cpu": {"spot": True}}}}, "ray.spot.nodeSelector",
    ),
    "half a group": (
        {**_SHARED, "ray": {"enabled": True, "workerGroups": {"big": {"enabled": True}}}}, "big",
    ),
    "the newest image": ({"image": {"tag": "latest"}}, "tag"),
    "an ingress without a host": ({"ingress": {"enabled": True}}, "ingress.host"),
    "an ingress that is shut out": ({"ingress": {"enabled": True, "host": "a.example"}}, "networkPolicy.from"),
    "a port that is shut": ({"service": {"type": "LoadBalancer"}}, "service.type is LoadBalancer"),
    "metrics without a key": ({"monitoring": {"serviceMonitor": {"enabled": True}}}, "scope metrics"),
    "root": ({"podSecurity": {"user": 0}}, "user"),
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_bad_values_are_refused_with_a_reason(name: str) -> None:
    values, reason = _REFUSED[name]
    with helm.Chart.load(_CHART) as chart, pytest.raises(helm.HelmError) as caught:
        chart.render(values, name="demo")
    assert reason in str(caught.value), str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_service_beside_another_cluster_may_say_what_that_grows_to() -> None:
    env = [{"name": "CURATOR_GROWS_TO", "value": '{"CPU": 40}'}, {"name": "RAY_AUTH_MODE", "value": "token"}]
    with helm.Chart.load(_CHART) as chart:
        files = chart.render({"env": env, "settings": {"ray_address": "ray://head:6379"}}, name="demo")
    (deployment,) = (text for path, text in files.items() if path.endswith("deployment.yaml"))
    container = yaml.safe_load(deployment)["spec"]["template"]["spec"]["containers"][0]
    assert [each for each in container["env"] if each in env] == env
