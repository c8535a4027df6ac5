"""The client against the real service, started by `curator serve`, with real jobs."""

import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator import Client, load, verify
from curator.errors import ServerError, SpecError

pytestmark = pytest.mark.slow
CURATOR = Path(sys.executable).with_name("curator")


class Served:
    """A running `curator serve`: its address and its first key."""

    def __init__(self, data_dir: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CURATOR_", "RAY_"))}
        command = [str(CURATOR), "serve", "--port", "0", "--data-dir", str(data_dir)]
        with (data_dir.parent / "serve.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=kept)
        assert self.process.stdout is not None
        self.key = self._read(r"API key: (\S+)")
        self.url = self._read(r"Listening on (\S+)")
        self.port = int(self.url.rpartition(":")[2])

    def _read(self, pattern: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(pattern, line.decode()):
                return found[1]
        raise AssertionError("the service has ended")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("service") / "data")
    yield served
    served.stop()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, served.key) as client:
        yield client


@pytest.fixture(scope="module")
def spec(client: Client, mix_rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in mix_rows) + "not json\n")
    uploaded = client.upload(corpus)
    assert uploaded.bytes == corpus.stat().st_size and client.upload(corpus) == uploaded
    return {
        "name": "through the service",
        "corpus": {"kind": "jsonl", "uri": uploaded.uri, "source_field": "source", "id_field": "id"},
        "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
        "policy": {"kind": "excess_loss", "keep": 0.6},
        "shard_tokens": 30_000,
    }


@pytest.fixture(scope="module")
def finished(client: Client, spec: dict[str, Any]) -> Any:
    job = client.wait(client.submit(spec).id, timeout_s=240)
    assert job.status == "completed", job.error
    return job


def test_who_am_i(client: Client) -> None:
    me = client.me()
    assert me.tenant == "default" and set(me.scopes) == {"read", "write", "admin"}


def test_a_dry_run_says_what_it_takes(client: Client, spec: dict[str, Any]) -> None:
    estimate = client.validate(spec)
    assert estimate.shards and estimate.shards > 2 and estimate.tokens and estimate.models is not None
    assert [model.name for model in estimate.models] == ["reference", "base"]
    assert client.validate(spec, plan=False).shards is None
    with pytest.raises(SpecError, match=r"policy\.keep"):
        client.validate(spec | {"policy": {"kind": "loss", "keep": 7}}, plan=False)
    with pytest.raises(SpecError, match="corpus"):
        client.submit(spec | {"corpus": {"kind": "jsonl", "uri": "/etc/passwd"}})


def test_a_key_that_is_not_known_and_a_job_that_is_not_there(served: Served, client: Client) -> None:
    with Client(served.url, "tc_" + "0" * 32) as stranger, pytest.raises(ServerError, match="401"):
        stranger.me()
    with pytest.raises(ServerError, match="404 there is no job"):
        client.job("job_" + "0" * 26)


def test_the_finished_job_can_be_looked_at(client: Client, finished: Any) -> None:
    assert finished.quarantined_rows == 1 and finished.totals["rows"] == 600 and finished.name == "through the service"
    assert finished.id in [job.id for job in client.jobs(status="completed", name="through")]
    manifest = client.manifest(finished.id)
    shards = list(client.shards(finished.id))
    assert [shard.sha256 for shard in shards] == [shard["sha256"] for shard in manifest["shards"]] and len(shards) > 2
    assert client.preview(finished.id, "near", limit=2)["select"] == "near"
    events = list(client.events(finished.id))
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert events == list(client.events(finished.id, follow=False))
    assert events[-1].data["status"] == "completed"
    assert list(client.logs(finished.id)) == list(client.logs(finished.id, follow=False))


def test_a_download_passes_verify_and_can_be_trained_on(client: Client, finished: Any, tmp_path: Path) -> None:
    done = client.download(finished.id, tmp_path)
    assert done.complete and verify(str(tmp_path)) == []
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert sum(1 for _ in load(str(tmp_path), sequence_length=128)) > 100


def test_a_download_that_is_cut_again_and_again(
    served: Served, finished: Any, make_wire: Callable[[int], Any], tmp_path: Path
) -> None:
    wire, draw = make_wire(served.port), random.Random(3)
    wire.cuts = [draw.randrange(0, 150_000) for _ in range(40)]
    with Client(wire.url, served.key, patience_s=60) as client:
        assert client.download(finished.id, tmp_path, parallel=3).complete
    assert verify(str(tmp_path)) == [] and not wire.cuts


def test_cut_answers_make_one_job_and_lose_no_event(
    served: Served, client: Client, spec: dict[str, Any], make_wire: Callable[[int], Any]
) -> None:
    wire, draw = make_wire(served.port), random.Random(4)
    name = "cut" * 3
    before = len(list(client.jobs(name=name)))
    wire.cuts = [0, 30, 200, 400]
    with Client(wire.url, served.key, patience_s=60) as cut_off:
        job = cut_off.submit(spec | {"name": name})
        wire.cuts = [draw.randrange(0, 1500) for _ in range(25)]
        events = list(cut_off.events(job.id))
    assert len(list(client.jobs(name=name))) == before + 1
    assert [event.id for event in events] == list(range(1, len(events) + 1)) and len(events) > 5
    assert events[-1].data["status"] == "completed" and events == list(client.events(job.id, follow=False))


def test_cancel_partial_download_resume_delete(client: Client, spec: dict[str, Any], tmp_path: Path) -> None:
    job = client.submit(spec | {"name": "stop and go", "shard_tokens": 3000})
    seen = threading.Event()
    for event in client.events(job.id):
        if event.type == "stage" and event.data["stage"] == "score reference":
            client.cancel(job.id)
            seen.set()
            break
    assert seen.is_set()
    stopped = client.wait(job.id, timeout_s=60)
    assert stopped.status == "cancelled" and client.manifest(job.id)["complete"] is False
    assert not client.download(job.id, tmp_path).complete and (tmp_path / "manifest.partial.json").exists()

    assert client.resume(job.id).attempt == 2
    with pytest.raises(ServerError, match="409"):
        client.delete(job.id)
    assert client.wait(job.id, timeout_s=240).status == "completed"
    assert client.download(job.id, tmp_path).complete and verify(str(tmp_path)) == []
    client.delete(job.id)
    with pytest.raises(ServerError, match="404"):
        client.job(job.id)


def test_the_commands_from_submit_to_verify(
    served: Served, spec: dict[str, Any], mix_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    corpus = tmp_path / "small.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in mix_rows[:50]))
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec | {"corpus": {"kind": "jsonl"}, "name": "by command"}))
    environment = {**os.environ, "CURATOR_API_KEY": served.key, "CURATOR_SERVER": served.url}

    def curator(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(CURATOR), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)

    done = curator("submit", path, "--upload", corpus, "--wait")
    assert done.returncode == 0, done.stderr
    job = done.stdout.splitlines()[0]
    assert re.fullmatch(r"job_[0-9a-z]{26}", job) and "rows       50" in done.stdout
    assert "score reference: done" in done.stderr
    assert curator("download", job, "--output", tmp_path / "out").returncode == 0
    verified = curator("verify", tmp_path / "out")
    assert verified.returncode == 0, verified.stdout
    assert "by command" in curator("status").stdout and "completed" in curator("status", job).stdout
    assert curator("logs", job).returncode == 0 and '"completed"' in curator("events", job).stdout
    assert curator("cancel", job).returncode == 1
