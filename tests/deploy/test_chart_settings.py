"""The service's settings as the Helm chart writes them: whole numbers, the same names and limits, nothing deleted."""

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from service.settings import Settings

_CHART = Path(__file__).parents[2] / "deploy" / "helm" / "token-curator"
_CLUSTER = {
    "ray": {"enabled": True},
    "persistence": {"accessMode": "ReadWriteMany"},
    "database": {"existingSecret": "database"},
}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What Helm would send to the cluster."""
    with helm.Chart.load(_CHART) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    return [part for path, text in files.items() if path.endswith(".yaml") for part in yaml.safe_load_all(text) if part]


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def settings_file(objects: list[dict[str, Any]]) -> dict[str, Any]:
    maps = [each for each in objects if each["kind"] == "ConfigMap" and "settings.toml" in each["data"]]
    return tomllib.loads(maps[0]["data"]["settings.toml"])


def strict(schema: Any) -> Any:
    """Copy of a JSON schema without what only describes: titles, defaults, formats."""
    if isinstance(schema, dict):
        return {k: strict(v) for k, v in schema.items() if k not in ("title", "default", "format", "writeOnly")}
    return [strict(each) for each in schema] if isinstance(schema, list) else schema


def test_settings_reach_the_service_as_they_were_written() -> None:
    """Helm holds numbers as floats: a large one must not come out as 1e+10, nor 0 be taken for nothing."""
    mine = {
        "max_upload_bytes": 10_000_000_000_000, "max_running_jobs": 0, "retention_days": 0.5, "heartbeat_s": 5,
        "allow_root": ["s3://corpora/", "/data/shared"], "public_url": 'https://curator.example/?a="b"&c=<d>',
        "output_root": None,
    }  # fmt: skip
    written = settings_file(render({"settings": mine}))
    assert type(written["max_upload_bytes"]) is int
    read = Settings(**written)
    assert {name: getattr(read, name) for name in mine} == mine | {"allow_root": tuple(mine["allow_root"])}
    assert str(read.data_dir) == "/data" and read.host == "0.0.0.0" and read.port == 8000

    plain = Settings(**settings_file(render({})))
    assert plain.retention_days is None, "datasets would be deleted without anybody having asked for it"
    remote = Settings(**settings_file(render(_CLUSTER)))
    assert (remote.launcher, remote.ray_address) == ("ray", "http://demo-token-curator-ray-head-svc:8265")


def test_large_numbers_elsewhere_stay_whole() -> None:
    values = copy.deepcopy(_CLUSTER) | {
        "tolerations": [{"key": "slow", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10_000_000}],
        "podSecurity": {"user": 1_000_660_000, "group": 1_000_660_000},  # as OpenShift hands them out
    }
    values["ray"]["workerGroups"] = {"cpu": {"objectStoreMemoryBytes": 200_000_000_000, "maxReplicas": 1_000_000}}
    objects = render(values)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["tolerations"][0]["tolerationSeconds"] == 10_000_000
    assert pod["securityContext"]["fsGroup"] == 1_000_660_000 == pod["securityContext"]["runAsUser"]
    group = one(objects, "RayCluster")["spec"]["workerGroupSpecs"][0]
    assert group["rayStartParams"]["object-store-memory"] == "200000000000" and group["maxReplicas"] == 1_000_000
    assert "e+" not in json.dumps(objects)


def test_settings_schema_is_that_of_the_service() -> None:
    with helm.Chart.load(_CHART) as chart:
        schema = chart.schema
    assert schema is not None
    wanted = strict(Settings.model_json_schema()["properties"])
    assert schema["properties"]["settings"]["properties"] == wanted, (
        "values.schema.json, settings.properties, should be: " + json.dumps(wanted)
    )
