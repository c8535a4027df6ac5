"""The RayJob example: its objects against the schemas, its spec by curator's parser, its command on real text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from curator.spec import CurationSpec

_ROOT = Path(__file__).parents[2]
_FILE = _ROOT / "deploy" / "kuberay" / "rayjob.yaml"
_FIELDS = Path(__file__).parent / "kuberay_fields.json"
_MOUNTED = "/etc/curate/spec.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(_FILE.read_text())}


def templates(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = job["spec"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    head = spec["rayClusterSpec"]["headGroupSpec"]
    return {"submitter": spec["submitterPodTemplate"], "head": head["template"], "worker": workers["template"]}


def test_kubernetes_and_kuberay_know_every_field(objects: dict[str, dict[str, Any]]) -> None:
    fields = json.loads(_FIELDS.read_text())
    kubernetes_validate.validate(objects["ConfigMap"], "1.37", strict=True)
    job = objects["RayJob"]
    jsonschema.validate(job["spec"], fields["RayJob"])
    jsonschema.validate(job["spec"]["rayClusterSpec"], fields["RayCluster"])
    for template in templates(job).values():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, "1.37", strict=True)
    assert "upgradeStrategy" not in job["spec"]["rayClusterSpec"], "KubeRay refuses it in a RayJob"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**job["spec"], "restarts": 3}, fields["RayJob"])


def test_it_ends_comes_back_and_cleans_up(objects: dict[str, dict[str, Any]]) -> None:
    spec = objects["RayJob"]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1, "a lost head would be the end"
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    locked = next(line for line in (_ROOT / "requirements.lock").read_text().splitlines() if line.startswith("ray=="))
    assert spec["rayClusterSpec"]["rayVersion"] == locked.removeprefix("ray==")


def test_pods_have_no_rights(objects: dict[str, dict[str, Any]]) -> None:
    images = set()
    for name, template in templates(objects["RayJob"]).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]} and rights["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "memory" in container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}, name
        images.add(container["image"])
    chart = yaml.safe_load((_ROOT / "deploy" / "helm" / "token-curator" / "Chart.yaml").read_text())
    assert images == {f"token-curator/worker-cpu:{chart['appVersion']}"}, "all of a Ray cluster need one image"


def test_the_spec_is_one_and_lies_where_the_command_reads_it(objects: dict[str, dict[str, Any]]) -> None:
    spec = CurationSpec.model_validate(yaml.safe_load(objects["ConfigMap"]["data"]["spec.yaml"]))
    assert spec.run.address is None, "the driver takes the cluster that runs it"
    assert spec.output.uri.startswith("s3://"), "the pods' disks end with them"
    job = objects["RayJob"]
    head = templates(job)["head"]["spec"]
    (volume,) = [each for each in head["volumes"] if each["name"] == "spec"]
    (mount,) = [each for each in head["containers"][0]["volumeMounts"] if each["name"] == "spec"]
    assert volume["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert mount["mountPath"] + "/" + next(iter(objects["ConfigMap"]["data"])) == _MOUNTED
    assert _MOUNTED in job["spec"]["entrypoint"]
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert int(workers["resources"]["limits"]["cpu"]) >= spec.run.threads_per_worker, "no worker would fit a pod"


@pytest.mark.slow
@pytest.mark.alone
def test_the_command_curates_resumes_and_takes_quarantined_rows_for_success(
    objects: dict[str, dict[str, Any]], mix_rows: list[dict[str, str]], tiny_llama: Path, tmp_path: Path
) -> None:
    """The entrypoint as it stands, in a shell as Ray starts it; only places and models are others."""
    corpus = tmp_path / "corpus.jsonl"
    lines = [
        json.dumps({"id": str(i), "source": "x", "text": row["text"][:400]}) for i, row in enumerate(mix_rows[:20])
    ]
    corpus.write_text("\n".join([*lines, "this is no JSON"]) + "\n", encoding="utf-8")
    spec = yaml.safe_load(objects["ConfigMap"]["data"]["spec.yaml"])
    spec["corpus"]["uri"], spec["output"]["uri"] = str(corpus), str(tmp_path / "out")
    spec["run"]["threads_per_worker"] = 1
    for model in spec["models"].values():
        model["model"] = str(tiny_llama)
    written = tmp_path / "spec.yaml"
    written.write_text(yaml.safe_dump(spec))
    entrypoint = objects["RayJob"]["spec"]["entrypoint"].replace(_MOUNTED, str(written))

    def run() -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        command = ["/bin/sh", "-c", entrypoint]
        return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, timeout=300)

    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["totals"]["rows"] == 20 and manifest["totals"]["quarantined_rows"] == 1
    assert run().returncode == 0, "the next attempt of a finished job"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    spec["policy"]["keep"] = 7
    written.write_text(yaml.safe_dump(spec))
    assert run().returncode != 0, "a failure would look like success"
