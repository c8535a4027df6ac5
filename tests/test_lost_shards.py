"""A shard that was given up is tried again until the cuts are taken without it; from then on it stays left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from curator import Manifest, parse_spec, pipeline
from curator.errors import CuratorError, OutputError, ShardError
from curator.progress import Silent
from curator.stages.select import SelectStage
from curator.worker import Failure, ShardFailure

LOST = 1


class Here:
    """Runs stages in this process; shard 1 fails in the named one, and selecting is interrupted if asked for."""

    def __init__(self, fails: str | None = None, interrupted: bool = False) -> None:
        self.fails, self.interrupted = fails, interrupted
        self.tried: list[tuple[str, int]] = []

    def pool(self, workers: Any, tasks: int) -> "Here":
        return self

    def map(self, stage: Any, tasks: Sequence[Any], *, on_result: Callable[[Any], None], **_: Any) -> list[Any]:
        name, failures = type(stage).__name__, []
        if self.interrupted and isinstance(stage, SelectStage):
            raise KeyboardInterrupt
        stage.open()
        for task in tasks:
            numbers = [shard.number for shard in (task if isinstance(task, tuple) else (task,))]
            self.tried += [(name, number) for number in numbers]
            if name == self.fails and numbers == [LOST]:
                failures.append(ShardFailure(task, 1, Failure(CuratorError("its row group is damaged"))))
            else:
                on_result(stage.run(task, stage.load(task), lambda tokens: None))
        return failures


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def run(make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manifest]:
    def start(here: Here, reporter: Any = None, **changes: Any) -> Manifest:
        @contextmanager
        def connect(*_: Any) -> Iterator[Here]:
            yield here

        monkeypatch.setattr(pipeline, "connect", connect)
        return pipeline.curate(
            parse_spec(make_spec(rows=120, shard_tokens=20_000, on_bad_shard="quarantine") | changes), reporter
        )

    return start


@pytest.mark.parametrize("stage", ["TokenizeStage", "ScoreStage"])
def test_before_the_cuts_are_taken_a_resumed_job_tries_again(run: Callable[..., Manifest], stage: str) -> None:
    with pytest.raises(ShardError, match="its row group is damaged"):
        run(Here(fails=stage), on_bad_shard="fail")
    resumed = Here()
    manifest = run(resumed)
    assert (stage, LOST) in resumed.tried
    assert manifest.lost_shards == () and LOST in {shard.number for shard in manifest.shards}


@pytest.mark.parametrize("stage", ["TokenizeStage", "ScoreStage"])
def test_after_that_it_stays_left_out_and_costs_nothing(
    run: Callable[..., Manifest], tmp_path: Path, stage: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Here(fails=stage, interrupted=True))
    resumed, told = Here(), Told()
    manifest = run(resumed, told)
    assert [shard.number for shard in manifest.lost_shards] == [LOST]
    assert [number for _, number in resumed.tried if number == LOST] == [], "what it gave could not be used"
    assert not list(tmp_path.glob(f"out/*/scores/*/{LOST:05d}.parquet"))
    (said,) = [line for line in told.said if "which stay left out" in line]
    assert "without shards 00001" in said and "another output.uri" in said
    assert run(Here(fails=stage)) == manifest, "a finished dataset is what it is"


def test_a_job_that_accepts_no_loss_any_more_says_so_before_it_works(run: Callable[..., Manifest]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Here(fails="ScoreStage", interrupted=True))
    refused = Here()
    with pytest.raises(OutputError, match=r"without shards 00001.*on_bad_shard: quarantine to finish.*another output"):
        run(refused, on_bad_shard="fail")
    assert refused.tried == []
    assert [shard.number for shard in run(Here()).lost_shards] == [LOST]
