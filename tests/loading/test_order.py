"""The order of an epoch, and of one epoch after another."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import curator
from curator.errors import TrainingError
from curator.training import Endless, epochs

Item = dict[str, Any]


def test_the_order_depends_on_seed_and_epoch_alone(dataset: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        loaded = curator.load(dataset, seed=seed)
        loaded.set_epoch(epoch)
        return [item["doc_id"] for item in loaded]

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert orders[0, 1] == order(0, 1)
    assert len({tuple(o) for o in orders.values()}) == 4
    assert len({tuple(sorted(o)) for o in orders.values()}) == 1


def test_a_shuffle_in_small_windows_still_gives_every_row_to_someone(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, stored_rows: Callable[..., dict[str, Item]]
) -> None:
    monkeypatch.setattr(epochs, "_WINDOW_TOKENS", 150)  # one or two row groups
    whole = [item["doc_id"] for item in curator.load(dataset)]
    parts = [[item["doc_id"] for item in curator.load(dataset, rank=rank, world_size=5)] for rank in range(5)]
    assert list(itertools.chain.from_iterable(parts)) == whole
    assert sorted(whole) == sorted(stored_rows(dataset))


def test_persistent_workers_see_a_new_epoch(dataset: Path) -> None:
    loaded = curator.load(dataset)
    loader = DataLoader(loaded, batch_size=None, num_workers=1, persistent_workers=True)
    first = [item["doc_id"] for item in loader]
    loaded.set_epoch(1)
    second = [item["doc_id"] for item in loader]
    assert first != second and sorted(first) == sorted(second)


@pytest.mark.parametrize("workers", [0, 2])
def test_endless_gives_every_epoch_in_its_order(
    dataset: Path, workers: int, stored_rows: Callable[..., dict[str, Item]]
) -> None:
    one = len(stored_rows(dataset))
    endless = DataLoader(Endless(curator.load(dataset)), batch_size=None, num_workers=workers)
    given = [item["doc_id"] for item in itertools.islice(endless, 3 * one)]
    assert len(given) == 3 * one
    if workers == 0:
        loaded = curator.load(dataset)
        for epoch in range(3):
            loaded.set_epoch(epoch)
            assert given[epoch * one : (epoch + 1) * one] == [item["doc_id"] for item in loaded]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("persistent", [False, True])
def test_an_endless_stream_that_is_begun_again_gives_other_rows(dataset: Path, workers: int, persistent: bool) -> None:
    data = curator.load(dataset)
    options = {"num_workers": workers, "persistent_workers": persistent and workers > 0}
    loader = DataLoader(Endless(data), batch_size=None, **options)
    parts = [[item["doc_id"] for item in itertools.islice(loader, 5)] for _ in range(3)]
    for epoch, part in enumerate(parts):
        loaded = curator.load(dataset)
        loaded.set_epoch(epoch)
        assert part == [item["doc_id"] for item in itertools.islice(loaded, 5)]
    data.set_epoch(1)
    assert [item["doc_id"] for item in itertools.islice(loader, 5)] == parts[1]


def test_a_rank_without_a_kept_row_is_told_so_instead_of_spinning(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    folder = write_dataset(tmp_path / "out", [5], rows_per_group=5)
    ranks = [curator.load(folder, rank=rank, world_size=5) for rank in range(5)]
    (idle,) = [rank for rank in ranks if not list(rank)]  # every fifth row keeps nothing
    with pytest.raises(TrainingError, match=r"this rank has 1 rows, of which 1 were skipped.*fewer processes"):
        next(iter(Endless(idle)))
    with pytest.raises(TrainingError, match="this rank has 0 rows"):
        next(iter(Endless(curator.load(folder, rank=0, world_size=6))))
