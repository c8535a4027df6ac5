"""Test files are not importable from each other, so drivers and oracle come as fixtures."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _load(name: str) -> ModuleType:
    full = f"gradient_parity_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).parent / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Everything here is tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def drivers() -> ModuleType:
    """Real trainers, one step each."""
    return _load("drivers")


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The definition in float64."""
    return _load("oracle")
