"""An output that was planned with one version of an engine, and one model's weights, is not finished by others."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator import parse_spec, pipeline
from curator.data import ModelIdentity
from curator.errors import OutputError, ScorerError
from curator.frozen import find_plan, open_plan
from curator.job import Job
from curator.manifest import RECEIPTS
from curator.scorers import AutoModel, OpenAIModel, TransformersModel, VllmModel, bigram, local


class Started(Exception):
    """Work was about to begin."""


class Cluster:
    """As far as the pipeline may get here."""

    def pool(self, *_: Any) -> Any:
        raise Started


@pytest.fixture
def job(make_spec: Callable[..., dict[str, Any]]) -> Job:
    spec = parse_spec(make_spec(rows=20, shard_tokens=5_000))
    open_plan(spec)
    return Job(spec, find_plan(spec))


def score(job: Job, name: str) -> list[Any]:
    return pipeline.score(job, Cluster(), name, [])  # type: ignore[arg-type]


def test_missing_shards_are_scored_by_the_planned_version_alone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Started):
        score(job, "base")
    monkeypatch.setattr(bigram, "_ENGINE_VERSION", "2")
    with pytest.raises(OutputError, match=r"models\.base: .*out' was planned with engine bigram in version 1-unigram"):
        score(job, "base")
    with pytest.raises(OutputError, match=r"here it is 2-bigram.* install that version .* or choose another output"):
        score(job, "reference")


def test_an_output_whose_scores_are_all_there_is_finished_by_any_version(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = job.scores("base")
    receipts = Path(folder.root) / folder.name / RECEIPTS
    receipts.mkdir(parents=True)
    assert len(job.plan.shards) > 1
    for shard in job.plan.shards:
        (receipts / f"{shard.number:05d}.json").touch()
        Path(folder.uri(shard.number)).touch()
    monkeypatch.setattr(bigram, "_ENGINE_VERSION", "2")
    assert score(job, "base") == []


def published_digest(file: Path) -> str:
    """As documented: sha256 over the lines `<sha256 of the file>  <file name>`, of which there is one."""
    line = f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
    return hashlib.sha256(line.encode()).hexdigest()


def test_weights_that_changed_in_place_are_refused_and_those_restored_go_on(
    make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(Path(bigram.__file__).parent / "bigram_model", tmp_path / "own")
    counts = tmp_path / "own" / "counts.npz"
    models = {"reference": {"engine": "bigram", "model": str(tmp_path / "own")}, "base": {"engine": "bigram"}}
    spec = parse_spec(make_spec(rows=20, models=models))
    open_plan(spec)
    before, digest = counts.read_bytes(), published_digest(counts)
    with np.load(counts) as stored:
        arrays = dict(stored)
    arrays["unigram"][7] += 1
    np.savez(counts, **arrays)
    with pytest.raises(OutputError) as caught:
        score(Job(spec, find_plan(spec)), "reference")
    for part in (f"models.reference: the weights of '{tmp_path}/own'", digest, published_digest(counts), "restore"):
        assert part in str(caught.value)
    with pytest.raises(Started):
        score(Job(spec, find_plan(spec)), "base")
    counts.write_bytes(before)
    with pytest.raises(Started):
        score(Job(spec, find_plan(spec)), "reference")


@pytest.mark.parametrize(
    "model",
    [
        lambda place: TransformersModel(engine="transformers", model=place),
        lambda place: VllmModel(engine="vllm", model=place),
        lambda place: AutoModel(engine="auto", model=place),
    ],
)
def test_every_local_engine_knows_the_weights_that_lie_here(model: Any, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"some weights")
    (tmp_path / "one.gguf").write_bytes(b"other weights")
    assert model(str(tmp_path)).weights_here() == published_digest(weights)
    assert model(str(tmp_path / "one.gguf")).weights_here() == published_digest(tmp_path / "one.gguf")
    at = weights.stat()
    weights.write_bytes(b"SOME weights")
    os.utime(weights, ns=(at.st_atime_ns, at.st_mtime_ns))  # as a copy that keeps times would
    assert model(str(tmp_path)).weights_here() == published_digest(weights)
    assert model("org/name").weights_here() is None, "a hub model is fixed by its revision"
    weights.unlink()
    with pytest.raises(ScorerError, match="has no weights"):
        model(str(tmp_path)).weights_here()


INSTALLED: dict[str, str | None] = {"transformers": "5.1.0", "torch": "2.9.0+cpu", "vllm": "0.20.1"}


@pytest.mark.parametrize(
    ("model", "planned", "here"),
    [
        (TransformersModel(engine="transformers", model="m"), "5.0.0+torch2.9.0", "5.1.0+torch2.9.0+cpu"),
        (VllmModel(engine="vllm", model="m"), "0.19.0+torch2.9.0, in_engine", "0.20.1+torch2.9.0+cpu, in_engine"),
        (AutoModel(engine="auto", model="m"), "5.0.0+torch2.9.0", "5.1.0+torch2.9.0+cpu"),
        (OpenAIModel(engine="openai", model="m", url="http://host:1"), "0.19.0, echo", None),  # its build asks
    ],
)
def test_what_is_installed_is_known_without_starting_an_engine(
    model: Any, planned: str, here: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = "transformers" if model.engine == "auto" else model.engine
    identity = ModelIdentity(
        id="m", revision=None, weights_digest="0", engine=engine, engine_version=planned, dtype="float32", context=8
    )
    monkeypatch.setattr(local, "installed_version", INSTALLED.get)
    assert model.version_here(identity) == here
    monkeypatch.setattr(local, "installed_version", {"transformers": "5.1.0"}.get)
    assert model.version_here(identity) is None, "workers may have what the driver lacks"
