"""An object store that fails, stalls, loses its answers or says 409, 412 and 503: nothing is lost, nothing is mixed.

A real server that speaks S3, and a proxy before it that breaks what it is told to (store_proxy.py).
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from curator import curate, parse_spec, pipeline, read_manifest, storage, tables, verify
from curator.errors import CuratorError, StorageError
from curator.frozen import open_plan
from curator.job import Job
from curator.manifest import CuratedReceipt, Receipt, ShardFolder, TokenReceipt, publish_shard, start_receipt
from curator.report.statistics import ShardStatistics

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
LONGEST_S = 60


@pytest.fixture(scope="module")
def stores(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(Path(__file__).with_name("store_proxy.py"))


@pytest.fixture(scope="module")
def proxy(stores: ModuleType) -> Iterator[Any]:
    """The server behind its proxy; the library's environment leads to the proxy."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    found = stores.Proxy(*server.get_host_and_port())
    names = {"AWS_ENDPOINT_URL": found.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**names, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3", endpoint_url=found.url).create_bucket(Bucket="bucket")
        yield found
        s3fs.S3FileSystem.clear_instance_cache()
    found.stop()
    server.stop()


@pytest.fixture
def root(proxy: Any, tmp_path: Path) -> Iterator[str]:
    proxy.rules = []
    yield f"s3://bucket/{tmp_path.name}"
    proxy.rules = []


@pytest.mark.parametrize(
    ("fault", "status", "times"),
    [("status", 503, 2), ("status", 500, 1), ("status", 409, 1), ("reset", 0, 2), ("stall", 0, 1), ("lost", 0, 1),
     ("slow", 0, 1)],
)  # fmt: skip
def test_a_file_is_created_once_whatever_becomes_of_the_request(
    proxy: Any, stores: ModuleType, root: str, fault: str, status: int, times: int
) -> None:
    rule = stores.Rule("PUT", "a.json", fault, status=status, times=times)
    proxy.rules = [rule]
    started_s = time.monotonic()
    created = storage.write_once(root, "a.json", b"mine")
    assert time.monotonic() - started_s < LONGEST_S and len(rule.hits) == times
    assert created or fault == "lost"  # the client cannot know: it asked again and found the name taken
    assert storage.read_bytes(f"{root}/a.json") == b"mine"
    assert not storage.write_once(root, "a.json", b"another's")
    assert storage.read_bytes(f"{root}/a.json") == b"mine"


def _stage(path: Path, value: float) -> None:
    schema = tables.score_schema(())
    with tables.open_writer(path, schema) as writer:
        writer.write_table(pa.table([pa.array([[None, value]], schema.field(0).type)], schema=schema))


@pytest.mark.parametrize("lost", ["00003.parquet", "00003.json", "."])
def test_a_shard_whose_answer_was_lost_is_known_as_its_own(
    proxy: Any, stores: ModuleType, root: str, tmp_path: Path, lost: str
) -> None:
    """The store did it, the client asks again and hears 412 of its own object."""
    proxy.rules = [stores.Rule("PUT", lost, "lost", once_each=True)]
    folder = ShardFolder(root=root, name="scores")
    receipt = Receipt(number=3, rows=1, tokens=2, **start_receipt()())
    _stage(tmp_path / "staged", 0.5)
    published = publish_shard(folder, tmp_path / "staged", receipt)
    assert proxy.rules[0].hits
    assert storage.sha256(folder.uri(3)) == (published.sha256, published.bytes)
    assert folder.receipt(3, Receipt).sha256 == published.sha256 and folder.published() == {3}
    content = storage.read_bytes(folder.uri(3))
    _stage(tmp_path / "other", 0.25)  # sound, of the same rows, by an engine that is not reproducible: it stays
    again = publish_shard(folder, tmp_path / "other", receipt)
    assert again.sha256 == published.sha256 and storage.read_bytes(folder.uri(3)) == content


def test_412_for_a_name_that_is_not_there_is_an_error_and_no_shard(
    proxy: Any, stores: ModuleType, root: str, tmp_path: Path
) -> None:
    proxy.rules = [stores.Rule("PUT", "parquet", "status", status=412, times=99)]
    folder = ShardFolder(root=root, name="scores")
    _stage(tmp_path / "staged", 0.5)
    with pytest.raises(StorageError, match=r"00003\.parquet") as caught:
        publish_shard(folder, tmp_path / "staged", Receipt(number=3, rows=1, tokens=2, **start_receipt()()))
    assert caught.value.retryable and folder.published() == set()


@pytest.mark.parametrize("fault", ["half", "slow", "reset", "status"])
def test_what_is_read_is_whole(proxy: Any, stores: ModuleType, root: str, fault: str) -> None:
    content = bytes(range(256)) * 4000
    storage.write_once(root, "blob", content)
    proxy.rules = [stores.Rule("GET", "blob", fault, status=503, times=2)]
    assert storage.read_bytes(f"{root}/blob") == content
    assert proxy.rules[0].hits


# ------------------------------------------------------------------------------------------------ whole jobs


@pytest.fixture
def here(load_script: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run in this process: workers of Ray would do the same, and take ten seconds to start."""
    laboratory = load_script(Path(__file__).with_name("laboratory.py"))
    monkeypatch.setattr("curator.pipeline.connect", laboratory.connect)


def _digests(output: str) -> list[str]:
    assert verify(output) == []
    return [shard.sha256 for shard in read_manifest(output).shards]


def test_a_job_on_a_store_that_fails_in_every_way_ends_with_the_same_shards(
    proxy: Any, stores: ModuleType, root: str, here: None, make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_spec(rows=6, shard_tokens=4_000, run={"retries": 3})
    curate(parse_spec(spec))
    expected = _digests(str(tmp_path / "out"))
    proxy.rules = [
        stores.Rule("PUT", ".", "lost", once_each=True),
        stores.Rule("GET", ".", "status", status=503, times=6),
        stores.Rule("GET", "parquet", "half", times=3),
        stores.Rule("PUT", "parquet", "status", status=409, times=2),
        stores.Rule("*", ".", "reset", times=4),
        stores.Rule("GET", "json", "slow", times=3, seconds=0.5),
    ]
    started_s, errors = time.monotonic(), []
    for _ in range(10):
        try:
            curate(parse_spec(spec | {"output": {"uri": root}}))
            break
        except CuratorError as error:
            assert "s3://bucket" in str(error) or root.removeprefix("s3://") in str(error)
            errors.append(str(error))
    assert time.monotonic() - started_s < 3 * LONGEST_S
    assert _digests(root) == expected, errors
    assert len(proxy.rules[0].hits) >= 15
    print(
        f"{sum(len(rule.hits) for rule in proxy.rules)} faults, {sum(proxy.seen.values())} requests, errors: {errors}"
    )


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_store_that_refuses_is_an_error_by_name_and_the_job_resumes(
    proxy: Any, stores: ModuleType, root: str, here: None, make_spec: Callable[..., dict[str, Any]], method: str
) -> None:
    spec = parse_spec(make_spec(rows=6, run={"retries": 1}, output={"uri": root}))
    proxy.rules = [stores.Rule(method, "tokens|plan", "status", status=403, times=10_000)]
    started_s = time.monotonic()
    with pytest.raises(CuratorError, match=r"s3://bucket|bucket/"):
        curate(spec)
    assert time.monotonic() - started_s < LONGEST_S
    assert proxy.rules[0].hits
    proxy.rules = []
    curate(spec)
    assert _digests(root)


@pytest.mark.usefixtures("terminal")
def test_a_cancelled_job_reads_its_receipts_many_at_a_time(
    proxy: Any, stores: ModuleType, root: str, make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user sees it: Ctrl-C, a store that takes 0.2 s to answer, and 100 shards in it."""
    spec = parse_spec(make_spec(rows=20, output={"uri": f"{root}/out"}))
    job, shards, answer_s = Job(spec, open_plan(spec)), 100, 0.2
    common = {"rows": 3, "tokens": 40, "seconds": 1.0, "worker": "w", "peak_memory_bytes": 1, "sha256": "0", "bytes": 9}
    there: dict[str, bytes] = {}
    for number in range(shards):
        token = TokenReceipt(number=number, text_bytes=90, **common)
        kept = CuratedReceipt(number=number, kept_tokens=7, weight_sum=7, statistics=ShardStatistics(), **common)
        there[storage.join(job.tokens.root, job.tokens.receipt_file(number))] = token.model_dump_json().encode()
        there[storage.join(job.curated.root, job.curated.receipt_file(number))] = kept.model_dump_json().encode()
        there[job.curated.uri(number)] = b""
    fsspec.filesystem("s3").pipe(there)

    def interrupted(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pipeline, "connect", interrupted)
    rule = stores.Rule("GET", r"_receipts/\d+\.json", "slow", times=10**6, seconds=answer_s)
    proxy.rules, proxy.most_under_way = [rule], 0
    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        curate(spec)
    took_s = time.monotonic() - started_s
    proxy.rules = []
    partial = json.loads(storage.read_bytes(f"{root}/out/manifest.partial.json"))
    assert [entry["number"] for entry in partial["shards"]] == list(range(shards))
    assert partial["totals"]["tokens"] == 40 * shards and len(rule.hits) >= 2 * shards
    assert proxy.most_under_way >= 16 and took_s < 2 * shards * answer_s / 4, (proxy.most_under_way, took_s)
