"""Where a tenant may read and write, on a real disk with real symbolic links."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from curator import storage
from curator.job_directory import new_id
from service.admission import admit
from service.admission.places import Places
from service.admission.refusals import Refused
from service.problems import Problem
from service.settings import Settings
from service.uploads import find_upload, receive, tenant_folder

OWN_JOB, OTHER_JOB = new_id("job"), new_id("job")


class House:
    """A root, a data directory with two tenants, and what lies outside."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.outside = folder, folder / "root", folder / "secret"
        self.settings = Settings(
            data_dir=folder / "data",
            allow_root=(str(self.root), "s3://bucket/data", "gs://lake"),
            allow_datasets=("org/texts",),
        )
        self.jobs = self.settings.jobs_dir
        self.write(self.root / "a.jsonl", self.root / "sub" / "b.jsonl", self.root / "sub" / "deep" / "c.jsonl")
        self.write(
            self.outside / "other.jsonl", folder / "root-other" / "x.jsonl", self.settings.data_dir / "service.db"
        )
        for job in (OWN_JOB, OTHER_JOB):
            self.write(self.jobs / job / "output" / "curated" / "00000.parquet", self.jobs / job / "job.json")
        self.alice, self.bob = self.upload("alice"), self.upload("bob")

    @staticmethod
    def write(*files: Path) -> None:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"text": "some text"}\n')

    def upload(self, tenant: str) -> str:
        with receive(self.settings, tenant, "corpus.jsonl", None) as receiver:
            receiver.take(b'{"text": "some text"}\n')
            return receiver.keep().id

    def upload_path(self, tenant: str, upload_id: str) -> Path:
        return tenant_folder(self.settings, tenant) / upload_id / "corpus.jsonl"

    def places(self) -> Places:
        return Places.of(self.settings, tenant_folder(self.settings, "alice"), lambda job_id: job_id == OWN_JOB)

    def admits(self, kind: str = "curate", **changes: Any) -> bool:
        base: dict[str, Any] = (
            {"name": "n", "models": {"reference": {"engine": "bigram"}}, "policy": {"kind": "loss"}}
            if kind == "curate"
            else {"base": str(self.root)}
        )
        corpus = {"kind": "jsonl", "uri": str(self.root / "a.jsonl")}
        try:
            admit(
                base | {"corpus": corpus} | changes,
                settings=self.settings,
                tenant="alice",
                job_output=str(self.jobs / OWN_JOB / "output"),
                owns_job=lambda job_id: job_id == OWN_JOB,
                find_upload=lambda tenant, upload: find_upload(self.settings, tenant, upload),
                kind=kind,  # type: ignore[arg-type]
            )
        except Problem as problem:
            assert problem.code in ("not_allowed", "invalid_spec"), problem.detail
            return False
        return True

    def reads(self, uri: str | Path) -> bool:
        return self.admits(corpus={"kind": "jsonl", "uri": str(uri)})

    def writes(self, uri: str | Path) -> bool:
        return self.admits(output={"uri": str(uri)})


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    yield House(tmp_path)


# ------------------------------------------------------------------------------------------------ symbolic links


def test_links_are_followed_and_must_end_inside(house: House) -> None:
    links = {
        "inside.jsonl": house.root / "sub" / "b.jsonl", "inside": house.root / "sub",
        "relative.jsonl": Path("sub/b.jsonl"), "out.jsonl": house.outside / "other.jsonl", "out": house.outside,
        "up": Path(".."), "top": Path("/"), "data": house.settings.data_dir, "twice.jsonl": house.root / "out.jsonl",
        "loop": house.root / "loop", "bob": tenant_folder(house.settings, "bob"),
    }  # fmt: skip
    for name, target in links.items():
        (house.root / name).symlink_to(target)
    for good in ("inside.jsonl", "inside/b.jsonl", "inside/*.jsonl", "relative.jsonl", "inside*.jsonl"):
        assert house.reads(house.root / good), good
    for bad in (
        "out.jsonl", "out/other.jsonl", "out/*.jsonl", "up/secret/other.jsonl", "up/root-other/*", "top/etc/passwd",
        "*.jsonl", "data/service.db", "twice.jsonl", "tw*.jsonl", f"bob/{house.bob}/corpus.jsonl", "o*t.jsonl",
        "**/out.jsonl", "out/not-there",
    ):  # fmt: skip
        assert not house.reads(house.root / bad), bad
    assert house.writes(house.root / "inside" / "new")
    for bad in ("out/new", "up/new", "top/tmp/new", "data/new", "out", "bob/new"):
        assert not house.writes(house.root / bad), bad


def test_a_root_may_itself_be_a_link(house: House, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(house.root)
    assert house.reads(tmp_path / "alias" / "a.jsonl")
    house.settings = house.settings.model_copy(update={"allow_root": (str(tmp_path / "alias"),)})
    assert house.reads(house.root / "a.jsonl")
    assert house.reads(tmp_path / "alias" / "*.jsonl")
    assert not house.reads(tmp_path / "secret" / "other.jsonl")


def test_a_folder_is_refused_when_anything_in_it_leads_outside(house: House) -> None:
    def folder_passes() -> bool:
        return house.admits(corpus={"kind": "hub", "path": str(house.root / "sub")})

    assert folder_passes()
    (house.root / "sub" / "deep" / "ok.jsonl").symlink_to(house.root / "a.jsonl")
    assert folder_passes()
    (house.root / "sub" / "deep" / "bad.jsonl").symlink_to(house.outside / "other.jsonl")
    assert not folder_passes()


def test_only_files_and_folders_are_read(house: House) -> None:
    os.mkfifo(house.root / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(house.root, os.O_RDONLY)  # names of sockets are short
        server.bind(f"/proc/self/fd/{here}/socket.jsonl")
        os.close(here)
        assert not house.reads(house.root / "socket.jsonl")
    assert not house.reads(house.root / "pipe.jsonl")


def test_what_is_said_does_not_tell_what_is_there(house: House) -> None:
    (house.root / "out").symlink_to(house.outside)
    said = []
    for name in ("other.jsonl", "nothing.jsonl"):
        with pytest.raises(Refused) as refused:
            house.places().check(f"{house.root}/out/{name}", "files")
        said.append(str(refused.value).replace(name, "NAME"))
    assert said[0] == said[1]
    assert "secret" not in said[0]


# ------------------------------------------------------------------------------------------------ the data directory


def test_own_jobs_and_uploads_may_be_read_and_nothing_else_of_the_service(house: House) -> None:
    data = house.settings.data_dir
    for good in (
        house.jobs / OWN_JOB / "output" / "curated" / "*.parquet", house.jobs / OWN_JOB / "**" / "*.parquet",
        house.upload_path("alice", house.alice), f"upload://{house.alice}/corpus.jsonl",
    ):  # fmt: skip
        assert house.reads(good), good
    for bad in (
        data, data / "service.db", data / "*", data / "**" / "*",
        house.jobs / OTHER_JOB / "output" / "curated" / "*.parquet", house.jobs / "*" / "job.json",
        house.jobs / f"{OWN_JOB[:-1]}?" / "job.json", house.jobs / f"{OWN_JOB}x" / "job.json",
        house.jobs / "job_x" / "job.json", house.jobs, house.upload_path("bob", house.bob),
        house.settings.uploads_dir / "*" / "*" / "*", f"upload://{house.bob}/corpus.jsonl",
        f"upload://{house.alice}/other.jsonl", f"upload://{house.alice}", "upload://",
        f"upload://{house.alice}/corpus.jsonl/../x", f"upload://{house.alice}/../corpus.jsonl",
        f"upload:/{house.alice}/corpus.jsonl", f"upload://{house.alice}/corpus.jsonl\n",
        f"upload://{house.alice.upper()}/corpus.jsonl", f"upload://{house.alice}/*.jsonl",
    ):  # fmt: skip
        assert not house.reads(bad), bad


def test_nothing_in_the_data_directory_may_be_written(house: House) -> None:
    for bad in (
        house.jobs / OWN_JOB / "output" / "other", house.jobs / OWN_JOB, house.jobs / OTHER_JOB / "output",
        house.settings.data_dir, house.settings.data_dir / "service.db", tenant_folder(house.settings, "alice") / "x",
        f"upload://{house.alice}/corpus.jsonl",
    ):  # fmt: skip
        assert not house.writes(bad), bad
        assert not house.admits(work=str(bad)), bad
    assert house.writes(house.jobs / OWN_JOB / "output")  # what the job gets anyway


def test_an_upload_is_a_corpus_and_nothing_else(house: House) -> None:
    uri, path = f"upload://{house.alice}/corpus.jsonl", str(house.upload_path("alice", house.alice))
    for place in (uri, path, str(Path(path).parent)):
        assert not house.admits(corpus={"kind": "hub", "path": place})
        assert not house.admits(tokens={"tokenizer": place})
        assert not house.admits(models={"reference": {"engine": "bigram", "model": place}})
    assert house.admits("train_reference", corpus={"kind": "jsonl", "uri": uri})


def test_the_data_directory_stays_closed_when_a_root_holds_it(house: House) -> None:
    house.settings = house.settings.model_copy(update={"allow_root": (str(house.folder),)})
    assert house.reads(house.root / "*.jsonl")
    assert house.reads(house.outside / "other.jsonl")
    assert not house.reads(house.settings.data_dir / "service.db")
    assert not house.reads(house.folder / "**" / "*.parquet")  # would match another tenant's job
    assert not house.reads(house.upload_path("bob", house.bob))
    assert not house.writes(house.settings.data_dir / "x")
    assert not house.writes(house.folder)  # holds it
    assert not house.admits(work=str(house.folder))
    assert house.writes(house.folder / "datasets") and house.writes(f"{house.settings.data_dir}2")
    house.settings = house.settings.model_copy(update={"allow_root": (str(house.settings.data_dir),)})
    assert not house.reads(house.settings.data_dir / "service.db")


def test_a_root_inside_the_data_directory_opens_itself_alone(house: House) -> None:
    data = house.settings.data_dir
    house.write(data / "corpora" / "x.jsonl")
    house.settings = house.settings.model_copy(update={"allow_root": (str(data / "corpora"), str(data / "jobs"))})
    assert house.reads(data / "corpora" / "*.jsonl")
    assert not house.reads(data / "service.db")
    assert not house.reads(house.jobs / OTHER_JOB / "job.json")


# ------------------------------------------------------------------------------------------------ whatever is sent

_PARTS = st.text(max_size=5) | st.sampled_from([
    "..", ".", "", "a", "sub", "deep", "*", "**", "?", "[ab]", "[", "]", "[!", "%2e%2e", "%2e", "%2f", "%", "~", "out",
    "\\", "\0", ":", "{a,b}",
])  # fmt: skip


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(parts=st.lists(_PARTS, max_size=6), joined=st.sampled_from(["/", "//", ""]))
def test_whatever_passes_lies_inside(house: House, parts: list[str], joined: str) -> None:
    link = house.root / "out"
    if not link.is_symlink():
        link.symlink_to(house.outside)
    place = f"{house.root}/{joined.join(parts)}"
    try:
        house.places().check(place, "files")
    except Refused:
        return
    assert ".." not in place.split("/")
    files = [file.uri for file in storage.list_files(place)] if not os.path.isdir(place) else [place]
    root = os.path.realpath(house.root)
    assert all(os.path.realpath(file) == root or os.path.realpath(file).startswith(root + "/") for file in files)
