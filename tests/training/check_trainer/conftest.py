"""What all tests of `curator check-trainer` read: the two canaries."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from curator.training.check import verdict as check
from curator.training.check.canary import write_canary
from curator.training.check.candidates import Candidate, Row, make_candidates


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """One thread, since everything is tiny; and candidates, which depend on the canary alone, are made once."""
    threads, made = torch.get_num_threads(), {}

    def make_once(model: Any, rows: list[Row], end_id: int, padding_id: int) -> list[Candidate]:
        key = b"".join(row.weights.numpy().tobytes() for row in rows)
        if key not in made:
            made[key] = make_candidates(model, rows, end_id, padding_id)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "make_candidates", make_once)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary") / "soft"
    write_canary(folder)
    return folder


@pytest.fixture(scope="module")
def hard_canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary") / "hard"
    write_canary(folder, hard=True)
    return folder
