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
