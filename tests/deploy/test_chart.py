"""The Helm chart: rendered and linted by Helm's own library, held against Kubernetes' and KubeRay's schemas."""

import copy
import itertools
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml

_ROOT = Path(__file__).parents[2]
_CHART = _ROOT / "deploy" / "helm" / "token-curator"
_FIELDS = Path(__file__).parent / "kuberay_fields.json"
_OLDEST, _NEWEST = "1.27", "1.37"
_SHARED = {"persistence": {"accessMode": "ReadWriteMany"}, "database": {"existingSecret": "database"}}
_SPOT = {"nodeSelector": {"pool": "spot"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}
_MONITORING = {
    "serviceMonitor": {"enabled": True, "existingSecret": "metrics-key", "labels": {"release": "prometheus"}},
    "rules": {"enabled": True},
    "dashboard": {"enabled": True},
}
_KINDS = {
    "default": ({}, "ConfigMap Deployment NetworkPolicy PersistentVolumeClaim Service"),
    "replicas": (
        {"replicas": 2, **_SHARED},
        "ConfigMap Deployment NetworkPolicy PersistentVolumeClaim PodDisruptionBudget Service",
    ),
    "cluster": (
        {"ray": {"enabled": True}, **_SHARED},
        "ConfigMap Deployment NetworkPolicy PersistentVolumeClaim RayCluster Service",
    ),
    "gpu": (
        {
            "ray": {
                "enabled": True, "spot": _SPOT, "auth": {"existingSecret": "ray-token"},
                "head": {"keepFromEviction": True}, "autoscaling": {"enabled": False},
                "workerGroups": {
                    "gpu": {"enabled": True, "spot": True, "minReplicas": 1}, "cpu": {"minReplicas": 2},
                },
            },
            "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["registry"]}, **_SHARED,
        },
        "ConfigMap Deployment NetworkPolicy PersistentVolumeClaim PodDisruptionBudget RayCluster Service",
    ),
    "monitoring": (
        {"monitoring": _MONITORING},
        "ConfigMap Deployment NetworkPolicy PersistentVolumeClaim PrometheusRule Service ServiceMonitor",
    ),
    "ingress": (
        {
            "ingress": {"enabled": True, "host": "curator.example", "className": "nginx", "tlsSecret": "tls"},
            "persistence": {"existingClaim": "mine"}, "networkPolicy": {"from": [{"namespaceSelector": {}}]},
        },
        "ConfigMap Deployment Ingress NetworkPolicy Service",
    ),
}  # fmt: skip
_OPERATORS = ("RayCluster", "ServiceMonitor", "PrometheusRule")
"""Kinds that Kubernetes itself does not know."""


def render(values: dict[str, Any], name: str = "demo") -> list[dict[str, Any]]:
    """What Helm would send to the cluster."""
    with helm.Chart.load(_CHART) as chart:
        files = chart.render(values, name=name, namespace="prod")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [part for text in texts for part in yaml.safe_load_all(text) if part]


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    found = [each for each in objects if each["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def pod_templates(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in objects:
        if each["kind"] == "Deployment":
            yield "service", each["spec"]["template"]
        if each["kind"] == "RayCluster":
            yield "head", each["spec"]["headGroupSpec"]["template"]
            for group in each["spec"]["workerGroupSpecs"]:
                yield group["groupName"], group["template"]


@pytest.fixture(params=_KINDS)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    values, kinds = _KINDS[request.param]
    return values, render(values), kinds


def test_every_combination_is_what_kubernetes_and_kuberay_know(case: Any) -> None:
    values, objects, kinds = case
    report = helm.lint(_CHART, values, strict=True, kube_version="v" + _NEWEST + ".0")
    assert report["errors"] == [] and all(message["severity"] < 2 for message in report["messages"]), report
    assert sorted({each["kind"] for each in objects}) == kinds.split()
    fields = json.loads(_FIELDS.read_text())
    for each, version in itertools.product(objects, (_OLDEST, _NEWEST)):
        assert each["metadata"]["namespace"] == "prod"
        if each["kind"] not in _OPERATORS:
            kubernetes_validate.validate(each, version, strict=True)
        if each["kind"] == "RayCluster":
            jsonschema.validate(each["spec"], fields["RayCluster"])
    for name, template in pod_templates(objects):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}
        kubernetes_validate.validate(pod, _NEWEST, strict=True)


def test_unknown_fields_are_found() -> None:
    """The oracle of the test above: what it must refuse."""
    cluster = one(render({"ray": {"enabled": True}, **_SHARED}), "RayCluster")["spec"]
    schema = json.loads(_FIELDS.read_text())["RayCluster"]
    for path, value in ((("upgradeStrategy",), {"type": "Rolling"}), (("autoscalerOptions", "idleSeconds"), 3)):
        wrong = copy.deepcopy(cluster)
        place = wrong
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_pods_have_no_rights_and_only_two_places_to_write(case: Any) -> None:
    _, objects, _ = case
    templates = list(pod_templates(objects))
    assert templates
    for name, template in templates:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod["volumes"])
        scaled = any(each.get("spec", {}).get("enableInTreeAutoscaling") for each in objects)
        assert pod["automountServiceAccountToken"] is (name == "head" and scaled)
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
            assert rights["privileged"] is False and rights["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert "httpGet" in container[probe], f"{name} has no {probe}"
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable == {"/data", "/tmp"}


def test_images_have_a_version_and_a_cluster_has_one_image() -> None:
    def images(values: dict[str, Any]) -> dict[str, str]:
        return {name: each["spec"]["containers"][0]["image"] for name, each in pod_templates(render(values))}

    version = yaml.safe_load((_CHART / "Chart.yaml").read_text())["appVersion"]
    assert images({}) == {"service": f"token-curator/service:{version}"}
    cpu, gpu = images(_KINDS["cluster"][0]), images(_KINDS["gpu"][0])
    assert {cpu["head"], cpu["cpu"]} == {f"token-curator/worker-cpu:{version}"}
    assert {gpu["head"], gpu["cpu"], gpu["gpu"]} == {f"token-curator/worker-gpu:{version}"}
    assert gpu["service"] == "token-curator/service@sha256:" + "0" * 64


def test_versions_are_those_of_the_package() -> None:
    version = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((_CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version
    locked = next(line for line in (_ROOT / "requirements.lock").read_text().splitlines() if line.startswith("ray=="))
    assert yaml.safe_load((_CHART / "values.yaml").read_text())["ray"]["version"] == locked.removeprefix("ray==")


def test_secrets_are_only_named(case: Any) -> None:
    _, objects, _ = case
    assert not any(each["kind"] == "Secret" for each in objects)
    for _, template in pod_templates(objects):
        for container in template["spec"]["containers"]:
            for variable in container["env"]:
                if any(word in variable["name"] for word in ("TOKEN", "KEY", "PASSWORD", "DATABASE_URL")):
                    literal = variable.get("value", "")
                    assert "valueFrom" in variable or literal.startswith("/etc/"), variable


def test_two_versions_never_run_side_by_side() -> None:
    objects = render(_KINDS["cluster"][0])
    assert one(objects, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert one(objects, "RayCluster")["spec"]["upgradeStrategy"] == {"type": "Recreate"}
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["hostname"] == "demo-token-curator"
    several = one(render(_KINDS["replicas"][0]), "Deployment")["spec"]["template"]["spec"]
    assert "hostname" not in several, "two services would take each other's drivers for their own"
    before = one(render({}), "Deployment")["spec"]["template"]["metadata"]["annotations"]
    after = one(render({"settings": {"max_running_jobs": 9}}), "Deployment")["spec"]["template"]["metadata"]
    assert before["checksum/settings"] != after["annotations"]["checksum/settings"], "a changed setting is not read"


def test_a_cluster_scales_and_survives_spot_nodes() -> None:
    cluster = one(render(_KINDS["cluster"][0]), "RayCluster")["spec"]
    assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"
    (cpu,) = cluster["workerGroupSpecs"]
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (0, 10) and "replicas" not in cpu, "an upgrade would shrink it"
    mixed = copy.deepcopy(_KINDS["cluster"][0])
    mixed["ray"]["workerGroups"] = {
        "cpu": {"resources": {"limits": {"cpu": "3500m"}}, "maxReplicas": 3}, "gpu": {"enabled": True},
    }  # fmt: skip
    pods = dict(pod_templates(render(mixed)))
    told = {each["name"]: each.get("value") for each in pods["head"]["spec"]["containers"][0]["env"]}
    assert json.loads(told["CURATOR_GROWS_TO"]) == {"CPU": 3 * 4 + 8 * 8, "GPU": 8}, "KubeRay rounds up"

    cluster = one(render(_KINDS["gpu"][0]), "RayCluster")["spec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    spot = groups["gpu"]["template"]["spec"]
    assert spot["nodeSelector"] == {"pool": "spot"} and _SPOT["tolerations"][0] in spot["tolerations"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spot["tolerations"]
    assert spot["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    drain = spot["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "ray drain-node" in drain and spot["terminationGracePeriodSeconds"] >= 30
    assert groups["cpu"]["template"]["spec"]["nodeSelector"] == {} and groups["cpu"]["replicas"] == 2
    head = cluster["headGroupSpec"]
    terms = head["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    never = {"key": "pool", "operator": "NotIn", "values": ["spot"]}
    assert all(never in term["matchExpressions"] for term in terms["nodeSelectorTerms"]) and terms["nodeSelectorTerms"]
    assert head["rayStartParams"]["num-cpus"] == "0", "workers would run beside the drivers"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert "suspend" not in cluster


def test_service_and_cluster_share_volume_token_and_policies() -> None:
    objects = render(_KINDS["gpu"][0])
    volumes = {name: {v["name"]: v for v in each["spec"]["volumes"]} for name, each in pod_templates(objects)}
    assert {each["data"]["persistentVolumeClaim"]["claimName"] for each in volumes.values()} == {
        "demo-token-curator-data"
    }
    assert volumes["service"]["ray-token"]["secret"]["secretName"] == "ray-token"
    made_by_kuberay = {name: each for name, each in pod_templates(render(_KINDS["cluster"][0]))}["service"]
    assert any(
        v.get("secret", {}).get("secretName") == "demo-token-curator-ray" for v in made_by_kuberay["spec"]["volumes"]
    )
    policies = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    labels = {name: each["metadata"]["labels"] for name, each in pod_templates(objects)}
    selected = policies["demo-token-curator"]["podSelector"]["matchLabels"]
    assert selected.items() <= labels["service"].items() and not selected.items() <= labels["head"].items()
    ray = policies["demo-token-curator-ray"]
    dashboard = next(rule for rule in ray["ingress"] if {"port": 8265, "protocol": "TCP"} in rule.get("ports", []))
    allowed = dashboard["from"][0]["podSelector"]["matchLabels"]
    assert allowed.items() <= labels["service"].items() and not allowed.items() <= labels["cpu"].items()


def test_monitoring_is_that_of_the_repository() -> None:
    objects = render({"monitoring": _MONITORING})
    monitoring = _ROOT / "deploy" / "monitoring"
    assert one(objects, "PrometheusRule")["spec"] == yaml.safe_load((monitoring / "alerts.yaml").read_text())
    boards = [each["data"] for each in objects if each["kind"] == "ConfigMap" and "settings.toml" not in each["data"]]
    assert json.loads(boards[0]["token-curator.json"]) == json.loads(
        (monitoring / "grafana-dashboard.json").read_text()
    )
    monitor = one(objects, "ServiceMonitor")
    service = one(objects, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["authorization"]["credentials"] == {"name": "metrics-key", "key": "api_key"}
    assert "curator" in service["metadata"]["labels"][monitor["spec"]["jobLabel"]], "the alerts would see nothing"


def test_long_names_stay_within_kuberays_limit() -> None:
    cluster = one(render(_KINDS["cluster"][0], name="a" * 53), "RayCluster")
    assert len(cluster["metadata"]["name"]) <= 53
    assert (
        one(render(_KINDS["cluster"][0], name="token-curator"), "RayCluster")["metadata"]["name"] == "token-curator-ray"
    )
