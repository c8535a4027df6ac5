"""A dataset made in this process, without Ray, in as many steps as a test wants to look between."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curator import inspection, parse_spec
from curator.frozen import open_plan
from curator.inspection import Selection
from curator.job import Job
from curator.pipeline import score, tokenize, weigh
from curator.publish import publish_dataset


class Here:
    """Runs the stages in this process, one task after the other; at most `limit` shards of each."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit

    def pool(self, workers: Any, tasks: int) -> "Here":
        return self

    def map(self, stage: Any, tasks: Sequence[Any], *, on_result: Callable[[Any], None], **_: Any) -> list[Any]:
        stage.open()
        for task in tasks[: self.limit]:
            on_result(stage.run(task, stage.load(task), lambda tokens: None))
        return []


class Bench:
    """Makes datasets and reads them plainly, for comparison."""

    bad_lines = (
        b'{"text": "\xff"}\n',
        b"{nope\n",
        b'{"id": "e", "text": "  "}\n',
        b'{"id": "s", "text": "a\\ud800"}\n',
    )
    emoji = "One party 🎉🎊 with 中文 and é̂ — and a flag 🇪🇺. " * 8

    def make_job(self, folder: Path, lines: list[bytes], **changes: Any) -> Job:
        corpus = folder / "corpus.jsonl"
        if not corpus.exists():
            corpus.write_bytes(b"".join(lines))
        spec = {
            "name": "looked at",
            "corpus": {"kind": "jsonl", "uri": str(corpus), "source_field": "source", "id_field": "id"},
            "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
            "policy": {"kind": "excess_loss", "keep": 0.6},
            "output": {"uri": str(folder / "out")},
            "work": str(folder / "work"),
            "shard_tokens": 20_000,
        }
        parsed = parse_spec(spec | changes)
        return Job(parsed, open_plan(parsed))

    def here(self, limit: int | None = None) -> Any:
        return Here(limit)

    def finish(self, job: Job) -> Job:
        here = self.here()
        tokenize(job, here)
        for name in job.spec.models:
            score(job, here, name, [])
        publish_dataset(job, weigh(job, here, []))
        return job

    def read_rows(self, job: Job, shards: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Every row of the published shards, with where it is."""
        numbers = sorted(job.curated.published()) if shards is None else shards
        return [
            row | {"shard": number, "row": index}
            for number in numbers
            for index, row in enumerate(pq.read_table(job.curated.uri(number)).to_pylist())
        ]

    def excess_of(self, row: dict[str, Any]) -> np.ndarray:
        """By the definition: loss under the base less loss under the reference."""
        return np.float32(row["logprobs_reference"]) - np.float32(row["logprobs_base"])

    def assert_json(self, model: Any) -> dict[str, Any]:
        """The value as a client gets it; no NaN or infinity can be in it."""
        text = model.model_dump_json()
        plain: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
        assert type(model).model_validate_json(text) == model
        return plain

    def documents(
        self, job: Job, select: Selection = "all", limit: int = 200, shard: int | None = None
    ) -> list[dict[str, Any]]:
        preview = inspection.read_preview(job, select=select, limit=limit, shard=shard)
        assert preview.note is None
        shown: list[dict[str, Any]] = self.assert_json(preview)["documents"]
        return shown


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="session")
def lines(bench: Bench, mix_rows: list[dict[str, str]]) -> list[bytes]:
    """Real rows, bad ones among them, a text of many bytes per character, and one longer than an excerpt."""
    special = [{"id": "emoji", "text": bench.emoji}, {"id": "long", "text": bench.emoji * 40}]
    good = [json.dumps(row).encode() + b"\n" for row in mix_rows[:100]]
    return [
        *good[:5],
        *bench.bad_lines,
        *(json.dumps(row | {"source": "made"}).encode() + b"\n" for row in special),
        *good[5:],
    ]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inspection")


@pytest.fixture(scope="session")
def finished(bench: Bench, folder: Path, lines: list[bytes]) -> Job:
    job = bench.finish(bench.make_job(folder, lines))
    assert len(job.plan.shards) > 3
    opened = inspection.open_job(job.root)
    assert opened is not None and opened.plan == job.plan
    return opened
