"""Downloads: whole, resumed at any byte, verified, and never outside their folder."""

import hashlib
import json
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curator import Client
from curator.errors import OutputError, ServerError, StorageError


@pytest.fixture
def client(service: Any, wire: Any, shards: list[bytes]) -> Iterator[Client]:
    service.shards = shards
    with Client(wire.url, service.key, patience_s=5) as client:
        yield client


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def expected(service: Any) -> dict[str, str]:
    return {f"curated/{n:05d}.parquet": hashlib.sha256(content).hexdigest() for n, content in enumerate(service.shards)}


def shard_requests(service: Any) -> list[dict[str, str]]:
    return [headers for _, path, headers in service.seen if "/shards/" in path]


def without_manifest(found: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in found.items() if not name.startswith("manifest")}


def test_everything_arrives_and_what_is_here_is_not_fetched_again(client: Client, service: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    done = client.download(service.job, tmp_path, on_progress=lambda *figures: told.append(figures))
    assert (done.complete, done.shards, done.fetched) == (True, 6, 6)
    assert without_manifest(digests(tmp_path)) == expected(service)
    assert json.loads((tmp_path / "manifest.json").read_bytes())["name"] == "test"
    assert told[-1] == (done.bytes, done.bytes) and sorted(told) == told

    (tmp_path / "curated" / "00002.parquet").write_bytes(b"damaged")
    (tmp_path / "curated" / "00003.parquet").unlink()
    service.seen.clear()
    assert client.download(service.job, tmp_path).fetched == 2
    assert len(shard_requests(service)) == 2 and without_manifest(digests(tmp_path)) == expected(service)


def test_cut_at_any_byte_the_rest_is_fetched_and_nothing_twice(
    client: Client, service: Any, wire: Any, tmp_path: Path
) -> None:
    draw = random.Random(2)
    wire.cuts = [draw.randrange(0, 200_000) for _ in range(10)]
    client.download(service.job, tmp_path, parallel=1)
    assert without_manifest(digests(tmp_path)) == expected(service)
    assert any("range" in headers for headers in shard_requests(service))
    assert not list(tmp_path.rglob("*.part"))


def test_a_second_run_goes_on_where_the_first_was_killed(client: Client, service: Any, tmp_path: Path) -> None:
    folder = tmp_path / "curated"
    folder.mkdir()
    (folder / "00000.parquet.part").write_bytes(service.shards[0][:1000])
    (folder / "00001.parquet.part").write_bytes(service.shards[1])
    (folder / "00002.parquet.part").write_bytes(b"x" * 1000)  # damaged: found at the end, and fetched afresh
    (folder / "00003.parquet.part").write_bytes(service.shards[3] + b"too long")
    client.download(service.job, tmp_path)
    assert without_manifest(digests(tmp_path)) == expected(service)
    ranges = sorted(headers["range"] for headers in shard_requests(service) if "range" in headers)
    assert ranges == ["bytes=1000-", "bytes=1000-"] and len(shard_requests(service)) == 6


def test_a_server_without_ranges_starts_afresh(client: Client, service: Any, wire: Any, tmp_path: Path) -> None:
    service.honour_range = False
    wire.cuts = [50_000, 60_000]
    client.download(service.job, tmp_path, parallel=1)
    assert without_manifest(digests(tmp_path)) == expected(service)


def test_behind_a_proxy_with_etags_of_its_own_it_is_resumed_too(
    client: Client, service: Any, wire: Any, tmp_path: Path
) -> None:
    service.proxy_etag = '"5f3a-61e"'
    wire.cuts = [50_000, 60_000, 70_000]
    client.download(service.job, tmp_path, parallel=1)
    assert without_manifest(digests(tmp_path)) == expected(service)
    resumed = [headers for headers in shard_requests(service) if "range" in headers]
    assert resumed and all(headers["if-range"] == service.proxy_etag for headers in resumed)
    assert all(int(headers["range"][6:-1]) > 0 for headers in resumed)


def test_a_shard_that_was_made_anew_is_never_mixed_with_the_old(client: Client, service: Any, tmp_path: Path) -> None:
    folder = tmp_path / "curated"
    folder.mkdir()
    (folder / "00000.parquet.part").write_bytes(service.shards[0][:1000])
    old_entries = service._entries()
    service.shards[0] = b"new" * 50_000
    service.stale_entries = [old_entries]  # the first listing still names the old file
    done = client.download(service.job, tmp_path)
    assert without_manifest(digests(tmp_path)) == expected(service) and done.complete


def test_a_running_job_gives_what_it_has_then_the_rest(client: Client, service: Any, tmp_path: Path) -> None:
    service.complete, everything = False, service.shards
    service.shards = everything[:2]
    done = client.download(service.job, tmp_path)
    assert not done.complete and set(digests(tmp_path)) == {*expected(service), "manifest.partial.json"}
    service.complete, service.shards = True, everything
    done = client.download(service.job, tmp_path)
    assert done.complete and done.fetched == 4
    assert set(digests(tmp_path)) == {*expected(service), "manifest.json"}


def test_an_object_stores_address_gets_the_range_and_not_the_key(client: Client, service: Any, tmp_path: Path) -> None:
    service.elsewhere = f"http://localhost:{service.port}"
    (tmp_path / "curated").mkdir()
    (tmp_path / "curated" / "00000.parquet.part").write_bytes(service.shards[0][:1000])
    client.download(service.job, tmp_path)
    assert without_manifest(digests(tmp_path)) == expected(service)
    stored = [headers for _, path, headers in service.seen if path.startswith("/store")]
    assert len(stored) == 6 and not any("authorization" in headers or "if-range" in headers for headers in stored)
    assert "bytes=1000-" in [headers.get("range") for headers in stored]
    assert all("authorization" in headers for headers in shard_requests(service))


def test_endless_redirects_end(client: Client, service: Any, wire: Any, tmp_path: Path) -> None:
    service.elsewhere, service.loop = wire.url, True
    with pytest.raises(ServerError, match="redirects"):
        client.download(service.job, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../{}.parquet", "/etc/{}", "curated/../../{}", "a\\..\\{}", "curated//{}", ".{}", "C:{}", "x/.ssh/{}", "a\0{}"],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(
    client: Client, service: Any, tmp_path: Path, name: str
) -> None:
    service.file_name = name
    with pytest.raises(ServerError, match="outside"):
        client.download(service.job, tmp_path / "in")
    assert not shard_requests(service) and list(tmp_path.rglob("*")) == [tmp_path / "in"]


def test_a_link_that_leads_out_of_the_folder_is_refused(client: Client, service: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "curated").symlink_to(tmp_path / "out")
    with pytest.raises(ServerError, match="outside"):
        client.download(service.job, tmp_path / "in")
    assert not list((tmp_path / "out").iterdir())


def test_two_shards_of_one_name_are_refused(client: Client, service: Any, tmp_path: Path) -> None:
    service.file_name = "curated/same.parquet"
    with pytest.raises(ServerError, match="lists a shard file twice"):
        client.download(service.job, tmp_path)


def test_bytes_that_are_not_what_is_listed_never_get_the_name(client: Client, service: Any, tmp_path: Path) -> None:
    service.damage = True
    with pytest.raises(ServerError, match="is listed; its file on the service is damaged"):
        client.download(service.job, tmp_path)
    assert not list(tmp_path.rglob("*.parquet")) and not (tmp_path / "manifest.json").exists()


def test_another_dataset_is_not_overwritten(client: Client, service: Any, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "other"}')
    with pytest.raises(OutputError, match="holds another dataset"):
        client.download(service.job, tmp_path)
    assert digests(tmp_path).keys() == {"manifest.json"}


def test_two_downloads_do_not_share_a_folder(client: Client, service: Any, tmp_path: Path) -> None:
    import fcntl

    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="another download is at work"):
        client.download(service.job, tmp_path)
    os.close(held)
    assert client.download(service.job, tmp_path).complete


@pytest.fixture
def little_room() -> Iterator[None]:
    """Files of this process may have 100,000 bytes: writing more fails as on a disk that is full."""
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def test_a_write_that_fails_is_named_and_what_arrived_is_kept(
    client: Client, service: Any, tmp_path: Path, little_room: None
) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*\.parquet\.part"):
        client.download(service.job, tmp_path, parallel=2)
    assert not (tmp_path / "manifest.json").exists() and list(tmp_path.rglob("*.part"))


def test_too_small_a_disk_is_said_before_anything_is_fetched(client: Client, service: Any, tmp_path: Path) -> None:
    service.claim_bytes = 1 << 60
    with pytest.raises(StorageError, match="bytes free, and"):
        client.download(service.job, tmp_path)
    assert not shard_requests(service)
