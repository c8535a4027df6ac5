"""Test files are not importable from each other, so the oracle comes as a fixture."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The definition in float64, and examples."""
    name = "fused_losses_oracle"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "oracle.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
