"""How much a place may make the service look through, and which outputs are apart from each other."""

from pathlib import Path
from typing import Any

import pytest

from service.admission import admit, overlaps, places
from service.problems import Problem
from service.settings import Settings


def admits(root: Path, uri: str, **changes: Any) -> None:
    admit(
        {
            "name": "n", "models": {"reference": {"engine": "bigram"}}, "policy": {"kind": "loss"},
            "corpus": {"kind": "jsonl", "uri": uri},
        } | changes,
        settings=Settings(data_dir=root.parent / "data", allow_root=(str(root),)), tenant="alice",
        job_output=str(root / "out"), owns_job=lambda job_id: False, find_upload=lambda tenant, upload: None,
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve files in three folders."""
    for folder in ("a", "b", "c"):
        (tmp_path / "root" / folder).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "root" / folder / f"{number}.jsonl").write_text('{"text": "t"}\n')
    return tmp_path / "root"


@pytest.mark.parametrize(("limit", "value"), [("_MOST_VISITED", 11), ("_LONGEST_WALK_S", 0.0)])
def test_a_glob_is_walked_only_so_far(root: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float) -> None:
    glob = f"{root}/**/*.jsonl"
    admits(root, glob)
    monkeypatch.setattr(places, limit, value)
    with pytest.raises(Problem) as refused:
        admits(root, glob)
    assert (refused.value.status, refused.value.code) == (422, "too_wide")
    assert refused.value.errors is not None
    (fault,) = refused.value.errors
    assert fault["path"] == "corpus.uri" and glob in fault["message"] and "narrow it" in fault["message"]


def test_a_narrow_glob_passes_beside_what_is_wide(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MOST_VISITED", 11)
    admits(root, f"{root}/a/*.jsonl")


@pytest.mark.parametrize(
    ("output", "other", "same"),
    [
        ("/r/a", "/r/a", True), ("/r/a/", "/r/a", True), ("/r/a/b", "/r/a", True), ("/r/a", "/r/a/b/c", True),
        ("/r/./a//b/..", "/r/a", True), ("file:///r/a", "/r/a/x", True), ("/r/a", "/r/ab", False),
        ("/r/ab", "/r/a", False), ("/r/a/b", "/r/a/c", False), ("/r/a", "/", True),
        ("s3://b/x", "s3://b/x", True), ("s3://b/x/", "s3://b/x/y", True), ("s3://b", "s3://b/x", True),
        ("s3://b/x", "s3://b/xy", False), ("s3://b/x", "s3://bb/x", False), ("s3://b/x", "gs://b/x", False),
        ("s3://r/a", "/r/a", False),
    ],
)  # fmt: skip
def test_outputs_overlap_by_whole_names(output: str, other: str, same: bool) -> None:
    assert overlaps(output, ["/elsewhere", other]) == (other if same else None)
    assert overlaps(other, ["s3://elsewhere", output]) == (output if same else None)
    assert overlaps(output, []) is None


def test_links_lead_to_the_output_that_they_mean(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    assert overlaps(str(tmp_path / "alias" / "new"), [str(tmp_path / "real")]) == str(tmp_path / "real")
    assert overlaps(str(tmp_path / "real" / "new"), [str(tmp_path / "alias")]) == str(tmp_path / "alias")
