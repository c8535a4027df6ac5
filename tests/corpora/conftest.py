"""The same 200 real documents, and how to read a corpus to its end."""

import gzip
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curator.data import BadRow, Corpus, Document, Split

Rows = list[Document | BadRow]


@pytest.fixture(scope="session")
def documents(shared_data: Path) -> list[dict[str, str]]:
    """The first 200 rows of the mix: id, source, text."""
    with gzip.open(shared_data / "corpus" / "mix.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, 200)]


@pytest.fixture
def read_all() -> Callable[..., tuple[Rows, list[BadRow]]]:
    """Read a corpus extent by extent, as independent workers would: (rows in order, damage found by splitting)."""

    def read(corpus: Corpus, target_bytes: int = 1 << 30) -> tuple[Rows, list[BadRow]]:
        rows: Rows = []
        damage: list[BadRow] = []
        for source in corpus.list_sources():
            split = corpus.split(source, target_bytes)
            damage += split.damage
            for extent in split.extents:
                rows += [row for _, row in corpus.read(source, [extent])]
            together = list(corpus.read(source, split.extents))
            assert [row for _, row in together] == rows[len(rows) - len(together) :]
            check_first_rows(split, together)
        return rows, damage

    return read


def check_first_rows(split: Split, together: list[tuple[int, Document | BadRow]]) -> None:
    """`first_row` of every extent is the number of its first row; extents come in order."""
    for index, group in itertools.groupby(together, key=lambda pair: pair[0]):
        first = next(group)[1]
        if first.row is not None:
            assert first.row == split.extents[index].first_row
    starts = [extent.start for extent in split.extents]
    assert starts == sorted(starts)
    for one, other in itertools.pairwise(split.extents):
        assert one.stop == other.start


@pytest.fixture
def new_file(tmp_path: Path) -> Callable[..., str]:
    """Write bytes to a new file and give its name."""
    numbers = itertools.count()

    def write(content: bytes, name: str = "rows.jsonl") -> str:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to connect to another machine fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a network connection was attempted: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own for `datasets`."""
    import datasets

    cache = tmp_path / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(cache / "downloads"))
    datasets.disable_progress_bars()
    yield cache
    datasets.enable_progress_bars()
