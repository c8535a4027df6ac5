"""An output that was planned with one version of an engine is not finished by another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curator import parse_spec, pipeline
from curator.data import ModelIdentity
from curator.errors import OutputError
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
