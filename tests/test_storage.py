"""Storage on a local disk, in memory and on an S3 server: final names appear whole, once."""

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from curator import storage
from curator.errors import StorageError


@pytest.fixture(scope="module")
def s3_root() -> Iterator[str]:
    """A bucket on a real S3 server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=names["AWS_ENDPOINT_URL"]).create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_root')}/{tmp_path.name}"
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_a_name_is_created_once_and_never_overwritten(root: str) -> None:
    assert storage.write_once(root, "folder/a.json", b"first")
    assert not storage.write_once(root, "folder/a.json", b"second")
    assert storage.read_bytes(f"{root}/folder/a.json") == b"first"


def test_replace_overwrites(root: str) -> None:
    storage.replace(root, "report.html", b"old")
    storage.replace(root, "report.html", b"new")
    assert storage.read_bytes(f"{root}/report.html") == b"new"


def test_listing_is_sorted_relative_and_notices_changes(root: str) -> None:
    for name in ("b/2.txt", "a/1.txt", "a/3.bin"):
        storage.write_once(root, name, name.encode())
    files = storage.list_files(f"{root}/*/*.txt")
    assert [(file.path, file.size_bytes) for file in files] == [("a/1.txt", 7), ("b/2.txt", 7)]
    assert [storage.read_bytes(file.uri) for file in files] == [b"a/1.txt", b"b/2.txt"]
    storage.replace(root, "a/1.txt", b"other")
    assert storage.list_files(f"{root}/*/*.txt")[0].fingerprint != files[0].fingerprint


def test_one_file_is_listed_by_its_name_and_nothing_by_a_glob_that_matches_nothing(root: str) -> None:
    storage.write_once(root, "only.jsonl", b"{}")
    assert [file.path for file in storage.list_files(f"{root}/only.jsonl")] == ["only.jsonl"]
    assert storage.list_files(f"{root}/*.parquet") == []
    assert storage.list_files(f"{root}/absent.jsonl") == []


def test_names_of_a_folder(root: str) -> None:
    assert storage.list_names(f"{root}/none") == []
    storage.write_once(root, "x/00001.json", b"1")
    storage.write_once(root, "x/00000.json", b"0")
    assert storage.list_names(f"{root}/x") == ["00000.json", "00001.json"]


def test_digest_and_size(root: str) -> None:
    import hashlib

    content = os.urandom(3 << 20)
    storage.write_once(root, "blob", content)
    assert storage.sha256(f"{root}/blob") == (hashlib.sha256(content).hexdigest(), len(content))


def test_of_many_racing_publishers_exactly_one_wins_and_the_file_is_whole(tmp_path: Path) -> None:
    contents = [bytes([65 + i]) * 100_000 for i in range(8)]
    won: list[int] = []

    def publish(i: int) -> None:
        if storage.write_once(str(tmp_path), "final", contents[i]):
            won.append(i)

    threads = [threading.Thread(target=publish, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "final").read_bytes() == contents[won[0]]
    assert list((tmp_path / storage.STAGING).iterdir()) == []


def test_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is a folder; name its files, for example '.*\*'"):
        storage.list_files(str(tmp_path))
    with pytest.raises(StorageError, match="nowhere"):
        storage.read_bytes(str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match="nosuch"):
        storage.read_bytes("nosuch://bucket/key")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="the disk is full; free some space and run the same command again"),
        storage.staged_file(str(tmp_path)),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_only_real_shared_places_reach_workers() -> None:
    assert storage.shared_with_workers("/data/x") and storage.shared_with_workers("s3://bucket/x")
    assert not storage.shared_with_workers("memory://x")


def test_files_for_a_store_are_staged_where_nobody_else_may_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with storage.staged_file("memory://somewhere") as staged:
        assert staged.parent.parent == tmp_path and staged.parent.stat().st_mode & 0o077 == 0
    storage.clear_staging("memory://somewhere")
    assert list(tmp_path.iterdir()) == []
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)  # as if this user's folder were another's
    for use in (storage.staged_file("memory://somewhere").__enter__, lambda: storage.clear_staging("memory://x")):
        with pytest.raises(
            StorageError, match=rf"_staging-{me + 1}' belongs to another user; remove it, or set TMPDIR"
        ):
            use()
    assert storage.write_once(str(tmp_path / "local"), "a", b"1"), "a shared output folder may be a group's"
