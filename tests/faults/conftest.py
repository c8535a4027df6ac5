"""Fixtures of the fault laboratory."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def bench(
    tmp_path_factory: pytest.TempPathFactory, load_script: Callable[[Path], ModuleType], mix_rows: list[dict[str, str]]
) -> Any:
    """A small job whose file operations can be disturbed or recorded; see bench.py."""
    module = load_script(Path(__file__).with_name("bench.py"))
    folder = tmp_path_factory.mktemp("bench")
    found = module.Bench(folder / "job", module.compile_faults(folder))
    found.prepare(mix_rows)
    return found


@pytest.fixture(scope="session")
def killing(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """Who is killed, and what must be true afterwards; see killing.py."""
    return load_script(Path(__file__).with_name("killing.py"))
