"""Progress as events: what they count, added up over all of them, is what was done."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curator import curate
from curator.event_reporter import EventReporter
from curator.progress import Lines, ShardCounter, Silent, count_shards
from curator.spec import parse_spec

Written = list[tuple[str, dict[str, Any]]]


def reporter() -> tuple[EventReporter, Written]:
    written: Written = []
    return EventReporter(lambda kind, data: written.append((kind, data)), Silent()), written


def tokens(written: Written) -> int:
    return sum(data["counted"]["tokens"] for kind, data in written if kind == "progress")


def shards(written: Written, result: str) -> int:
    return sum(data["counted"]["shards"].get(result, 0) for kind, data in written if kind == "progress")


def test_each_stage_counts_its_tokens_once() -> None:
    told, written = reporter()
    for stage in ("tokenize", "score reference"):
        told.start(stage, 3, 100)
        for done in (0, 10, 40, 40, 90):
            told.update(done // 40, done, 1)
            told._written_s = 0.0  # a second has passed
        told.update(3, 97, 1)
        told.finish()
    assert tokens(written) == 2 * 97


def test_tokens_of_a_failed_attempt_are_not_counted_again_when_they_are_made_again() -> None:
    told, written = reporter()
    told.start("score base", 2, 100)
    for done in (30, 60, 20, 50, 80):  # at 60 a worker died, with 40 of its tokens
        told.update(0, done, 1)
        told._written_s = 0.0
    told.update(2, 100, 0)
    told.finish()
    assert tokens(written) == 100


def test_figures_that_are_ahead_for_a_moment_do_not_make_the_sum_too_large() -> None:
    told, written = reporter()
    told.start("score base", 2, 100)
    told._written_s = 0.0
    told.update(1, 150, 1)
    told.update(2, 100, 0)
    told.finish()
    assert tokens(written) == 100


def test_more_tokens_than_were_estimated_are_all_counted_at_the_end() -> None:
    told, written = reporter()
    told.start("score base", 2, 100)
    told._written_s = 0.0
    told.update(2, 130, 0)
    assert tokens(written) == 100
    told.finish()
    assert tokens(written) == 130


def test_results_are_counted_in_the_next_event_and_in_no_other() -> None:
    told, written = reporter()
    told.start("select", 3, 0)
    count_shards(told, "published", 2)
    count_shards(told, "retried")
    count_shards(told, "lost", 0)
    told.finish()
    told.start("publish", 3, 0)
    told.finish()
    assert (shards(written, "published"), shards(written, "retried"), shards(written, "lost")) == (2, 1, 0)


def test_what_a_broken_stage_had_done_is_written_once() -> None:
    told, written = reporter()
    told.flush()
    assert written == []  # it had not begun
    told.start("score base", 3, 100)
    told.update(1, 30, 1)
    count_shards(told, "published")
    told.flush()
    told.flush()
    assert (tokens(written), shards(written, "published")) == (30, 1)
    assert [kind for kind, _ in written] == ["state", "stage", "progress", "progress"]


def test_who_does_not_want_to_know_is_not_told() -> None:
    for deaf in (Silent(), Lines()):
        assert not isinstance(deaf, ShardCounter)
        count_shards(deaf, "published")


@pytest.mark.slow
def test_a_run_counts_what_became_of_its_shards(make_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    spec = make_spec(rows=60, shard_tokens=30_000, run={"retries": 1}, on_bad_shard="quarantine")
    told, written = reporter()
    finished = curate(parse_spec(spec), told)
    shard_count, token_count = len(finished.shards), finished.totals.tokens
    assert shards(written, "published") == 4 * shard_count  # tokens, two models' scores, the selected
    for stage in ("tokenize", "score reference", "score base", "select"):
        assert tokens([entry for entry in written if entry[1].get("stage") == stage]) == token_count

    out = tmp_path / "out"
    (work,) = (path.parent for path in out.glob("*/tokens"))
    for name in ("manifest.json", "calibration.json"):
        (out / name).unlink()
    for folder in (out / "curated", work / "scores"):
        shutil.rmtree(folder)
    (receipts,) = out.glob("*/tokens/*/_receipts")
    (receipts / "00000.json").unlink()  # as if killed between the file and its receipt
    damaged = receipts.parent / "00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    told, written = reporter()
    again = curate(parse_spec(spec), told)
    assert [lost.number for lost in again.lost_shards] == [1]
    assert shards(written, "adopted") == 1
    assert (shards(written, "retried"), shards(written, "lost"), shards(written, "failed")) == (1, 1, 0)
    assert shards(written, "published") == 3 * (shard_count - 1)
