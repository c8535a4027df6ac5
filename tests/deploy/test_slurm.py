"""The Slurm example, run by Slurm itself: a controller and two nodes on this machine, made for the test alone.

It takes root and some minutes, as Ray starts twice on two nodes: a long form (CURATOR_SOAK).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = [
    pytest.mark.slow, pytest.mark.alone,
    pytest.mark.skipif(not os.environ.get("CURATOR_SOAK"), reason="a long form: make soak"),
]  # fmt: skip
_SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "curate.sbatch"
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
KillWait=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_WITHIN_S = 240
Slurm = Callable[..., str]


def wait_for(condition: Callable[[], object], what: str, within_s: float = _WITHIN_S) -> None:
    limit = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < limit, f"after {within_s} s: {what}"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """Run a command of a Slurm with two nodes."""
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.fail(
            "Slurm is not installed: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
        )
    folder = tmp_path / "slurm"
    munge = folder / "munge"
    munge.mkdir(parents=True)
    munge.chmod(0o700)
    (folder / "state").mkdir()
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o600)
    port, first, second = free_ports(3)
    configuration = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    configuration.write_text(_CONFIGURATION.format(host=host, port=port, first=first, second=second, folder=folder))
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    daemons = [
        ["munged", "--force", "--foreground", f"--key-file={munge}/key", f"--socket={munge}/socket",
         f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", f"--log-file={munge}/log"],
        ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"],
    ]  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "daemons.log").open("wb") as log:
        for command in daemons:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
            wait_for((munge / "socket").exists, "munged does not answer", 20)

        def run(*command: str) -> str:
            return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

        try:
            wait_for(lambda: run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", "the nodes are not idle", 60)
            yield run
        finally:
            subprocess.run(["scancel", "--full", "--me"], check=False)
            for each in reversed(started):
                each.terminate()
            for each in started:
                try:
                    each.wait(20)
                except subprocess.TimeoutExpired:
                    each.kill()
                    each.wait(10)


def state_of(slurm: Slurm, job: str) -> tuple[str, int]:
    """What Slurm says of a job, and how often it was queued again."""
    said = dict(part.partition("=")[::2] for part in slurm("scontrol", "show", "job", job).split() if "=" in part)
    return said["JobState"], int(said["Restarts"])


def digests(output: Path) -> dict[str, str]:
    manifest = json.loads((output / "manifest.json").read_text())
    return {str(shard["number"]): shard["sha256"] for shard in manifest["shards"]}


def processes_of(job: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == job and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except psutil.Error:
            continue
    return found


def test_a_job_that_runs_out_of_time_is_queued_again_and_ends_as_if_undisturbed(
    slurm: Slurm, make_spec: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(rows=400, shard_tokens=20_000)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    undisturbed = tmp_path / "undisturbed"
    environment = Path(sys.executable).parent
    local = {**spec, "output": {"uri": str(undisturbed)}}
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(local))
    subprocess.run([environment / "curator", "run", tmp_path / "local.yaml"], check=True, capture_output=True)
    monkeypatch.setenv("PYTHON_ENV", str(environment.parent))
    job = slurm("sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", str(_SCRIPT), "spec.yaml").strip()
    output = tmp_path / "out"
    wait_for(lambda: list(output.glob("*/tokens/*/*.parquet")), "no shard was published")
    token = tmp_path / f".curate-{job}" / "token"
    assert token.stat().st_mode & 0o077 == 0 and len(token.read_text()) == 64
    slurm("scancel", "--batch", "--signal=USR1", job)  # as Slurm does two minutes before the end of the job's time
    wait_for(lambda: state_of(slurm, job)[1] == 1, "the job was not queued again")
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait for two minutes
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/tokens/*/*.parquet")}
    wait_for(lambda: state_of(slurm, job)[0] in ("COMPLETED", "FAILED", "CANCELLED"), "the job does not end")

    log = (tmp_path / f"curate-{job}.log").read_text()
    assert state_of(slurm, job) == ("COMPLETED", 1), log
    assert log.count("2 nodes are up") == 2 and "attempt 2" in log, log
    assert digests(output) == digests(undisturbed)
    assert before and {path: path.stat().st_mtime_ns for path in before} == before, "published shards were done again"
    wait_for(lambda: not processes_of(job), f"left running: {processes_of(job)}", 20)
    assert not token.exists() and not list(Path("/tmp").glob(f"ray-{job}-*"))


def test_a_run_that_fails_is_not_queued_again_and_leaves_what_ray_said(
    slurm: Slurm, make_spec: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(rows=20)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec | {"shard_tokens": -1}))
    monkeypatch.setenv("PYTHON_ENV", str(Path(sys.executable).parents[1]))
    job = slurm("sbatch", "--parsable", "--nodes=1", "--cpus-per-task=1", str(_SCRIPT), "spec.yaml").strip()
    wait_for(lambda: state_of(slurm, job)[0] in ("COMPLETED", "FAILED", "CANCELLED"), "the job does not end")
    log = (tmp_path / f"curate-{job}.log").read_text()
    assert state_of(slurm, job) == ("FAILED", 0) and "shard_tokens" in log, log
    assert "Ray runtime started" in (tmp_path / f"curate-{job}-ray.log").read_text()
    assert not (tmp_path / f".curate-{job}").exists()
