"""`engine: auto` picks vLLM where it can run the model, and says why."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from curator.scorers import ScorerConfig
from curator.scorers.auto import AutoModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def auto(model: Path) -> AutoModel:
    return AutoModel(engine="auto", model=str(model), features=("rank",), context=64)


def test_vllm_is_chosen_where_it_knows_the_architecture(checkpoint: Callable[[str], Path]) -> None:
    identity = auto(checkpoint("qwen3")).identify()
    assert identity.engine == "vllm" and identity.context == 64
    assert identity.engine_reason == "vllm is installed and knows the architecture"


def test_transformers_runs_what_vllm_does_not_know(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(checkpoint("llama_tied"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["OwnForCausalLM"]}))
    identity = auto(folder).identify()
    assert identity.engine == "transformers"
    assert identity.engine_reason == "vllm does not know the architecture OwnForCausalLM"
    (score,) = auto(folder).build(identity, threads=1).score([np.arange(3, 20, dtype=np.int32)], lambda n: None)
    assert np.isfinite(score.logprobs_T[1:]).all() and score.rank_T is not None


def test_transformers_runs_everything_where_vllm_is_not_installed(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = importlib.metadata.version

    def without_vllm(name: str) -> str:
        if name.startswith("vllm"):
            raise importlib.metadata.PackageNotFoundError(name)
        return plain(name)

    monkeypatch.setattr("curator.scorers.local.version", without_vllm)
    identity = auto(checkpoint("llama_tied")).identify()
    assert (identity.engine, identity.engine_reason) == ("transformers", "vllm is not installed")


def test_a_gguf_file_is_judged_by_the_model_in_it(smollm2_gguf: Path) -> None:
    assert auto(smollm2_gguf).identify().engine == "vllm"


def test_arguments_of_an_engine_need_the_engine_named() -> None:
    with pytest.raises(ValidationError, match="batch_tokens"):
        TypeAdapter(ScorerConfig).validate_python({"engine": "auto", "model": "m", "engine_args": {"batch_tokens": 1}})


@pytest.mark.parametrize("field", ["url", "api_key_env"])
def test_fields_of_a_server_are_refused_elsewhere_but_may_be_null(field: str) -> None:
    fields = {"engine": "vllm", "model": "m"}
    TypeAdapter(ScorerConfig).validate_python(fields | {field: None})
    with pytest.raises(ValidationError, match=f"{field} is for engine openai"):
        TypeAdapter(ScorerConfig).validate_python(fields | {field: "KEY"})
