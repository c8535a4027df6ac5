"""Where a reference may be written: beside its output it is made, so those places are judged, too."""

from pathlib import Path
from typing import Any

import pytest

from curator.job_directory import new_id
from service.admission import AdmittedSpec, admit
from service.problems import Problem
from service.settings import Settings

OWN_JOB = new_id("job")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "some text"}\n')
    return folder


@pytest.fixture
def settings(tmp_path: Path, root: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data", allow_root=(str(root), "s3://bucket/data"), allow_models=("org/pinned@v1",)
    )


def submit(settings: Settings, content: dict[str, Any], kind: str = "curate", **changes: Any) -> AdmittedSpec:
    given = {
        "settings": settings, "tenant": "alice", "job_output": str(settings.jobs_dir / OWN_JOB / "output"),
        "owns_job": lambda job_id: job_id == OWN_JOB, "find_upload": lambda owner, upload_id: None, "kind": kind,
    }  # fmt: skip
    return admit(content, **(given | changes))


def forbidden(settings: Settings, content: dict[str, Any], kind: str = "curate") -> list[str]:
    """Paths of the faults of a 403."""
    with pytest.raises(Problem) as raised:
        submit(settings, content, kind)
    assert (raised.value.status, raised.value.code) == (403, "not_allowed"), raised.value.detail
    return [fault["path"] for fault in raised.value.errors or []]


def make_spec(root: Path, **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": "test",
        "corpus": {"kind": "jsonl", "uri": f"{root}/a.jsonl"},
        "models": {"reference": {"engine": "bigram"}},
        "policy": {"kind": "loss"},
    }
    return spec | changes


def test_a_reference_is_made_only_beside_what_may_be_written(settings: Settings, root: Path, tmp_path: Path) -> None:
    def refuses(output: Path | str) -> bool:
        sent = {"base": "org/pinned", "corpus": {"kind": "text", "uri": f"{root}/**/*.txt"}, "output": str(output)}
        try:
            submit(settings, sent, "train_reference")
        except Problem as problem:
            assert [fault["path"] for fault in problem.errors or []] == ["output"], problem.detail
            return True
        return False

    assert not refuses(root / "new") and not refuses(root / "deep" / "new")
    assert refuses("s3://bucket/data/new"), "a reference cannot be renamed to its place there"
    assert refuses(root) and refuses(f"{root}/"), "it would be made beside the root"
    (root / "alias").symlink_to(root)
    assert refuses(root / "alias")
    for kind in ("training", "ray"):
        (root / f".linked-{kind}").symlink_to(tmp_path)
        assert refuses(root / "linked")
        (root / f".linked-{kind}").unlink()
        (root / f".linked-{kind}").symlink_to(root / "sub")
        assert refuses(root / "linked")
        (root / f".linked-{kind}").unlink()
    assert not refuses(root / "linked")
    with pytest.raises(Problem, match="this service puts outputs on an object store"):
        sent = {"base": "org/pinned", "corpus": {"kind": "text", "uri": f"{root}/**/*.txt"}}
        submit(settings, sent, "train_reference", job_output=f"s3://bucket/data/{OWN_JOB}")


def test_no_output_lies_where_another_jobs_reference_is_made(settings: Settings, root: Path) -> None:
    (root / ".new-training").mkdir()
    (root / "alias").symlink_to(root / ".new-training")
    for place in (".new-training", ".new-training/x", ".new-ray/x/y", "alias", "alias/x"):
        assert forbidden(settings, make_spec(root, output={"uri": f"{root}/{place}"})) == ["output.uri"]
        assert forbidden(settings, make_spec(root, work=f"{root}/{place}")) == ["work"]
        sent = {"base": "org/pinned", "corpus": {"kind": "text", "uri": f"{root}/*.txt"}, "output": f"{root}/{place}"}
        assert forbidden(settings, sent, "train_reference") == ["output"]
    assert submit(settings, make_spec(root, output={"uri": f"{root}/new-training"})).output == f"{root}/new-training"
