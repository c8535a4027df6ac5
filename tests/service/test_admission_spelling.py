"""Hostile names of places in every field that takes one: none is let through; and plain names, which all are."""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import admit
from service.admission.places import Places
from service.problems import Problem
from service.settings import Settings

HOSTILE = runpy.run_path(str(Path(__file__).with_name("hostile.py")))


@dataclass(frozen=True)
class Tenant:
    """Somebody with one root on the disk and two on object stores."""

    settings: Settings
    root: Path

    def admits(self, kind: str = "curate", **changes: Any) -> bool:
        base: dict[str, Any] = {"base": str(self.root)}
        if kind == "curate":
            base = {"name": "n", "models": {"reference": {"engine": "bigram"}}, "policy": {"kind": "loss"}}
        corpus = {"kind": "jsonl", "uri": str(self.root / "a.jsonl")}
        try:
            admit(
                base | {"corpus": corpus} | changes,
                settings=self.settings,
                tenant="alice",
                job_output=str(self.settings.jobs_dir / "x" / "output"),
                owns_job=lambda job_id: True,
                find_upload=lambda owner, upload: None,
                kind=kind,  # type: ignore[arg-type]
            )
        except Problem as problem:
            assert problem.code in ("not_allowed", "invalid_spec"), problem.detail
            return False
        return True

    def reads(self, uri: str) -> bool:
        return self.admits(corpus={"kind": "jsonl", "uri": uri})

    def writes(self, uri: str) -> bool:
        return self.admits(output={"uri": uri})


@pytest.fixture
def tenant(tmp_path: Path) -> Tenant:
    root = tmp_path / "root"
    for file in (root / "a.jsonl", root / "sub/b.jsonl", tmp_path / "root-other/x.jsonl", tmp_path / "root.jsonl"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"text": "some text"}\n')
    roots = (str(root), "s3://bucket/data", "gs://lake")
    return Tenant(Settings(data_dir=tmp_path / "data", allow_root=roots, allow_datasets=("org/texts",)), root)


FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "corpus.uri jsonl": lambda place: {"corpus": {"kind": "jsonl", "uri": place}},
    "corpus.uri parquet": lambda place: {"corpus": {"kind": "parquet", "uri": place}},
    "corpus.uri text": lambda place: {"corpus": {"kind": "text", "uri": place}},
    "corpus.path": lambda place: {"corpus": {"kind": "hub", "path": place}},
    "corpus.data_files": lambda place: {"corpus": {"kind": "hub", "path": "json", "data_files": [place]}},
    "output.uri": lambda place: {"output": {"uri": place}},
    "work": lambda place: {"work": place},
    "tokens.tokenizer": lambda place: {"tokens": {"tokenizer": place}},
    "models.model": lambda place: {"models": {"reference": {"engine": "auto", "model": place}}},
    "models.model bigram": lambda place: {"models": {"reference": {"engine": "bigram", "model": place}}},
    "train base": lambda place: {"kind": "train_reference", "base": place},
    "train output": lambda place: {"kind": "train_reference", "output": place},
    "train dataset": lambda place: {"kind": "train_reference", "corpus": None, "dataset": place},
    "train corpus": lambda place: {"kind": "train_reference", "corpus": {"kind": "text", "uri": place}},
}


@pytest.mark.parametrize("field", FIELDS)
def test_no_hostile_place_is_let_through(tenant: Tenant, field: str) -> None:
    hostile = {
        *HOSTILE["leaving_paths"](str(tenant.root)), *HOSTILE["other_places"](str(tenant.root)),
        *HOSTILE["leaving_objects"]("s3://bucket/data"), *HOSTILE["leaving_objects"]("gs://bucket/data"),
    }  # fmt: skip
    assert len(hostile) > 1000
    assert [place for place in hostile if tenant.admits(**FIELDS[field](place))] == []


def test_no_hostile_name_leaves_the_folder_of_a_data_set(tenant: Tenant) -> None:
    prefix = f"{tenant.root}/"
    names = [
        path.removeprefix(prefix) for path in HOSTILE["leaving_paths"](str(tenant.root)) if path.startswith(prefix)
    ]
    for folder in (str(tenant.root), "org/texts"):
        corpus = {"kind": "hub", "path": folder}
        assert tenant.admits(corpus=corpus | {"data_files": ["a.jsonl"]})
        assert [name for name in names if tenant.admits(corpus=corpus | {"data_files": [name]})] == []


LEGAL_FILES = (
    "a.jsonl", "*.jsonl", "**/*.jsonl", "sub/*", "sub/deep/c.jsonl", "*/b.jsonl", "s?b/[bc].jsonl",
    "not-there-yet/x.jsonl", "with space.jsonl", "100%.jsonl", "a%20b.jsonl", "50%25.jsonl", "übung/日本語.jsonl",
    "x..y.jsonl", "..hidden.jsonl", ".hidden/x", "a…b.jsonl", "(1)+{2}=3,4;5&6'7.jsonl", "$HOME.jsonl",
    "name:with:colons", "~x/a.jsonl", "C++/x.txt", "sub//b.jsonl", "./a.jsonl", "-rf", "a@b", "#1.jsonl",
    "file.tar.gz", "x" * 200,
)  # fmt: skip


@pytest.mark.parametrize("name", LEGAL_FILES)
def test_places_under_a_root_pass(tenant: Tenant, name: str) -> None:
    assert tenant.reads(f"{tenant.root}/{name}")
    if not any(mark in name for mark in "*?["):
        assert tenant.writes(f"{tenant.root}/{name}.out")
        assert tenant.admits(work=f"{tenant.root}/{name}.out/")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/data", "s3://bucket/data/", "s3://bucket/data/x.jsonl", "s3://bucket/data/**/*.jsonl.zst", "gs://lake/any/thing",
        "s3://bucket/data/a b/100%.jsonl", "s3://bucket/data/year=2024/x.parquet", "gs://lake/*.parquet", "gs://lake",
    ],
)  # fmt: skip
def test_objects_under_a_root_pass(tenant: Tenant, uri: str) -> None:
    assert tenant.reads(uri)
    assert tenant.writes(uri) == ("*" not in uri)


@given(
    st.lists(
        st.from_regex(r"[A-Za-z0-9_=@+-][A-Za-z0-9_=@+. -]{0,12}[A-Za-z0-9]", fullmatch=True), min_size=1, max_size=5
    )
)
def test_plain_names_always_pass(parts: list[str]) -> None:
    settings = Settings(data_dir=Path("/nonexistent/data"), allow_root=("/nonexistent/root", "s3://bucket/data"))
    places = Places.of(settings, Path("/nonexistent/data/uploads/alice"), lambda job_id: False)
    places.check("/".join(["/nonexistent/root", *parts]), "files")
    places.check("/".join(["s3://bucket/data", *parts]), "write")
