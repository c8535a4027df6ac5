"""A whole job on an object store: corpus, work and output on S3, killed in the middle, resumed, verified."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

pytestmark = pytest.mark.slow
CURATOR = Path(sys.executable).with_name("curator")
BUCKET = "s3://bucket"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """A server that speaks S3, conditional writes included; gives the environment that leads to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


def files(store: dict[str, str]) -> Any:
    """The bucket, seen from this process, with nothing cached."""
    found = fsspec.filesystem(
        "s3", endpoint_url=store["AWS_ENDPOINT_URL"], key="testing", secret="testing", use_listings_cache=False
    )
    found.mkdirs(BUCKET, exist_ok=True)
    return found


def start(store: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | store
    return subprocess.Popen(
        [str(CURATOR), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def curator(store: dict[str, str], *arguments: str) -> tuple[int, str]:
    process = start(store, *arguments)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def test_a_job_on_s3_survives_a_kill_and_refuses_what_it_should(
    store: dict[str, str], make_spec: Callable[..., dict[str, Any]], mix_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    bucket = files(store)
    lines = [json.dumps(row).encode() for row in mix_rows[:120]] + [b'{"text": "\xff"}']
    bucket.pipe_file(f"{BUCKET}/corpus/a.jsonl", b"\n".join(lines[:60]) + b"\n")
    bucket.pipe_file(f"{BUCKET}/corpus/b é.jsonl", b"\n".join(lines[60:]) + b"\n")
    spec = make_spec(rows=1, shard_tokens=30_000, output={"uri": f"{BUCKET}/out"})
    spec["corpus"]["uri"] = f"{BUCKET}/corpus/*.jsonl"
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    bucket.pipe_file(f"{BUCKET}/spec.yaml", (tmp_path / "spec.yaml").read_bytes())

    process = start(store, "run", f"{BUCKET}/spec.yaml")
    deadline_s = time.monotonic() + 120
    while not bucket.glob(f"{BUCKET}/out/*/tokens/*/_receipts/*.json") and time.monotonic() < deadline_s:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not bucket.exists(f"{BUCKET}/out/manifest.json")
    tokens = {path: bucket.info(path)["LastModified"] for path in bucket.glob(f"{BUCKET}/out/*/tokens/*/*.parquet")}
    assert tokens

    code, said = curator(store, "run", f"{BUCKET}/spec.yaml")
    assert code == 3, said
    assert "quarantine 1 rows (invalid_utf8 1)" in said
    assert tokens.items() <= {path: bucket.info(path)["LastModified"] for path in tokens}.items()
    assert curator(store, "verify", f"{BUCKET}/out") == (0, f"{BUCKET}/out: sound\n")

    local = spec | {"output": {"uri": str(tmp_path / "local")}}
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(local))
    code, said = curator(store, "run", str(tmp_path / "local.yaml"))
    assert code == 3, said
    here = json.loads((tmp_path / "local" / "manifest.json").read_text())
    there = json.loads(bucket.cat_file(f"{BUCKET}/out/manifest.json"))
    assert [shard["sha256"] for shard in there["shards"]] == [shard["sha256"] for shard in here["shards"]]

    (tmp_path / "policy.yaml").write_text("{kind: loss, keep: 0.5}")
    select = ("select", f"{BUCKET}/out", "--policy", str(tmp_path / "policy.yaml"), "--output")
    code, said = curator(store, *select, f"{BUCKET}/half")
    assert code == 3 and "(50.0" in said, said
    code, said = curator(store, *select, f"{BUCKET}/out/")
    assert code == 2 and "is the dataset itself" in said

    bucket.pipe_file(f"{BUCKET}/corpus/a.jsonl", b"{}\n")
    code, said = curator(store, "run", f"{BUCKET}/spec.yaml")
    assert code == 1 and "'a.jsonl' changed since the plan was frozen" in said
