"""What is asked of `curator.load`, and which rank asks."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import curator
from curator.errors import TrainingError

Item = dict[str, Any]


def test_rank_comes_from_the_launchers_environment(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert curator.load(dataset).num_rows == 41 - 41 * 3 // 4
    assert curator.load(dataset, rank=0, world_size=1).num_rows == 41


def test_a_world_size_without_a_rank_is_told(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the processes that Lightning starts: each would read the rows of rank 0."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"WORLD_SIZE=2 and no RANK.*pass rank and world_size"):
        curator.load(dataset)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert curator.load(dataset).num_rows == 41


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", True])
def test_an_epoch_that_is_none_is_named(dataset: Path, epoch: Any) -> None:
    with pytest.raises(TrainingError, match=f"epoch={epoch!r}; use a whole number of at least 0"):
        curator.load(dataset).set_epoch(epoch)


@pytest.mark.slow
def test_rank_comes_from_torch_distributed_first(
    dataset: Path, tmp_path: Path, stored_rows: Callable[..., dict[str, Item]]
) -> None:
    code = (
        "import sys, torch, curator\n"
        "rank = int(sys.argv[1])\n"
        "torch.distributed.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=2)\n"
        "print(*(item['doc_id'] for item in curator.load(sys.argv[3])))\n"
        "torch.distributed.destroy_process_group()\n"
    )
    command = [sys.executable, "-c", code]
    misleading = {**os.environ, "RANK": "0", "WORLD_SIZE": "1"}
    places = [str(tmp_path / "meet"), str(dataset)]
    running = [
        subprocess.Popen([*command, str(rank), *places], stdout=subprocess.PIPE, text=True, env=misleading)
        for rank in range(2)
    ]
    given = [process.communicate()[0].split() for process in running]
    assert all(given) and sorted(given[0] + given[1]) == sorted(stored_rows(dataset))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 1}, "sequence_length=1"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"rank": 0}, "both or neither"),
        ({"sequence_length": "64"}, "sequence_length='64'; use a whole number of at least 2"),
        ({"sequence_length": 64.0}, r"sequence_length=64\.0"),
        ({"rank": "0", "world_size": "1"}, "rank='0'"),
        ({"rows": "all"}, "rows='all'; use one of kept, scored"),
    ],
)
def test_arguments_out_of_range_are_named(dataset: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        curator.load(dataset, **arguments)


def test_a_rank_that_is_no_number_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "")
    with pytest.raises(TrainingError, match=r"RANK=''.*unset it, or pass rank and world_size"):
        curator.load(dataset)
