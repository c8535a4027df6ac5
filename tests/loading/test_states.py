"""Going on from a place in an epoch: with exactly what would have come next, or not at all."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import curator
from curator.errors import TrainingError
from curator.training import Endless
from curator.training.curated_dataset import CuratedDataset

Item = dict[str, Any]


@pytest.mark.parametrize("sequence_length", [None, 16])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_place_of_an_epoch_can_be_resumed(
    dataset: Path, sequence_length: int | None, epoch: int, same: Callable[..., bool]
) -> None:
    def fresh() -> CuratedDataset:
        return curator.load(dataset, sequence_length, seed=5, rank=1, world_size=2)

    loaded = fresh()
    loaded.set_epoch(epoch)
    items, states = [], [loaded.state_dict()]
    for item in loaded:
        items.append(item)
        states.append(loaded.state_dict())
    skipped = loaded.skipped_rows
    for done, state in enumerate(states):
        resumed = fresh()
        resumed.load_state_dict(json.loads(json.dumps(state)))
        rest = list(resumed)
        assert len(rest) == len(items) - done
        assert all(same(left, right) for left, right in zip(rest, items[done:], strict=True))
        assert resumed.skipped_rows == skipped
        resumed.set_epoch(epoch + 1)
        assert len(list(resumed)) > 0, "the next epoch starts from its beginning"


@pytest.mark.parametrize("sequence_length", [None, 16])
def test_every_place_of_an_endless_stream_can_be_resumed(
    dataset: Path, sequence_length: int | None, same: Callable[..., bool]
) -> None:
    def fresh() -> Endless:
        return Endless(curator.load(dataset, np.int64(sequence_length) if sequence_length else None, seed=np.int64(5)))

    stream, items, states = fresh(), [], []
    for item in itertools.islice(stream, 2 * sum(1 for _ in fresh().data) + 3):
        items.append(item)
        states.append(json.dumps(stream.state_dict()))
    for done, state in list(enumerate(states, start=1))[:-1:6]:
        resumed = fresh()
        resumed.load_state_dict(json.loads(state))
        next_ones = list(itertools.islice(resumed, len(items) - done))
        assert all(same(left, right) for left, right in zip(next_ones, items[done:], strict=True))
    plain = curator.load(dataset, sequence_length, seed=5)
    plain.load_state_dict(json.loads(states[2]))
    assert same(next(iter(Endless(plain))), items[3]), "a place of the dataset is a place of its stream"


def test_a_state_does_not_get_lost_in_a_trainer(dataset: Path) -> None:
    next(iter(loaded := curator.load(dataset)))
    loaded.load_state_dict(loaded.state_dict())
    with pytest.raises(TrainingError, match=r"was given a state to resume, which is lost.*resume_from_checkpoint"):
        loaded.split(0, 2)
    next(iter(loaded))
    loaded.split(0, 2)


class StateCarrier(IterableDataset[Any]):
    """Each item with its worker's state behind it, as a loader that checkpoints its workers sees it."""

    def __init__(self, inner: CuratedDataset, states: dict[int, Any] | None = None) -> None:
        self.inner, self.states = inner, states

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        if self.states is not None:
            self.inner.load_state_dict(self.states[info.id])
        for item in self.inner:
            yield info.id, item, self.inner.state_dict()


@pytest.mark.parametrize("sequence_length", [None, 16])
def test_dataloader_workers_resume_each_from_its_own_place(
    dataset: Path, sequence_length: int | None, same: Callable[..., bool]
) -> None:
    def stream(states: dict[int, Any] | None = None) -> dict[int, list[Any]]:
        loaded = StateCarrier(curator.load(dataset, sequence_length), states)
        seen: dict[int, list[Any]] = {0: [], 1: []}
        for worker, item, state in DataLoader(loaded, batch_size=None, num_workers=2):
            seen[worker].append((item, state))
        return seen

    whole = stream()
    rest = stream({0: whole[0][2][1], 1: whole[1][5][1]})
    for worker, done in ((0, 3), (1, 6)):
        expected = [item for item, _ in whole[worker][done:]]
        assert len(expected) > 2
        assert all(same(a, b) for (a, _), b in zip(rest[worker], expected, strict=True))


def test_a_state_of_something_else_is_refused(
    dataset: Path, tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    state = curator.load(dataset, seed=1).state_dict()
    with pytest.raises(TrainingError, match=r"seed 1 \(now 2\)"):
        curator.load(dataset, seed=2).load_state_dict(state)
    with pytest.raises(TrainingError, match=r"world_size 1 \(now 2\)"):
        curator.load(dataset, seed=1, rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(TrainingError, match="saved with another dataset;"):
        curator.load(write_dataset(tmp_path / "other", [3]), seed=1).load_state_dict(state)


def test_the_state_of_workers_cannot_be_asked_of_this_process(dataset: Path) -> None:
    loaded = curator.load(dataset)
    reader = iter(DataLoader(loaded, batch_size=None, num_workers=1))
    next(reader)
    with pytest.raises(TrainingError, match=r"only they know.*StatefulDataLoader.*num_workers=0"):
        loaded.state_dict()
    del reader
    loaded.set_epoch(1)
    assert loaded.state_dict()["row"] == 0, "nothing of the next epoch has been read"
    loaded.set_epoch(0)
    next(iter(loaded))
    assert loaded.state_dict()["row"] > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_is_resumed_once(dataset: Path, workers: int) -> None:
    reader = iter(loaded := curator.load(dataset))
    given = [next(reader)["doc_id"] for _ in range(4)]
    resumed = curator.load(dataset)
    resumed.load_state_dict(loaded.state_dict())
    rest = [item["doc_id"] for item in reader]
    loader = DataLoader(resumed, batch_size=None, num_workers=workers)
    assert [item["doc_id"] for item in loader] == rest
    assert [item["doc_id"] for item in loader] == given + rest, "without set_epoch the same epoch comes again, whole"


def test_a_state_that_is_none_is_refused(dataset: Path) -> None:
    state = curator.load(dataset).state_dict()
    with pytest.raises(TrainingError, match=r"has no dataset, epoch, .*pass what state_dict\(\) gave"):
        curator.load(dataset).load_state_dict({})
    with pytest.raises(TrainingError, match=r"has no row;"):
        curator.load(dataset).load_state_dict({name: value for name, value in state.items() if name != "row"})


@pytest.mark.slow  # torch waits 5 s for each worker that raised
def test_a_state_of_this_process_is_refused_by_workers(dataset: Path) -> None:
    loaded = curator.load(dataset)
    next(iter(loaded))
    loaded.load_state_dict(loaded.state_dict())
    with pytest.raises(TrainingError, match="worker 0 of 1, this is 0 of 2"):
        list(DataLoader(loaded, batch_size=None, num_workers=2))
