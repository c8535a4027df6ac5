"""A float32 residual stream makes bfloat16 scores more exact, and leaves alone what it does not fit."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from curator.scorers.causal_lm import CausalScorer
from curator.scorers.precision import keep_residual_float32

SEQUENCES = [np.random.default_rng(5).integers(0, 5000, n, dtype=np.int32) for n in (120, 119, 60, 33, 8)]


def logprobs(model: object) -> np.ndarray:
    return np.concatenate([one.logprobs_T[1:] for one in CausalScorer(model).score(SEQUENCES, lambda n: None)])


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen3Config"])
def test_errors_shrink_in_a_deep_model(kind: str) -> None:
    import transformers

    torch.manual_seed(3)
    sizes = {"vocab_size": 5000, "hidden_size": 64, "num_hidden_layers": 16, "intermediate_size": 96, "head_dim": 16}
    config = getattr(transformers, kind)(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    exact = logprobs(copy.deepcopy(model).float())  # of the same weights, so that only arithmetic differs
    before = np.abs(logprobs(model) - exact).mean()
    assert keep_residual_float32(model)
    assert np.abs(logprobs(model) - exact).mean() < 0.85 * before


def test_float32_and_layernorm_models_are_left_alone(checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    assert not keep_residual_float32(AutoModelForCausalLM.from_pretrained(checkpoint("qwen3"), dtype=torch.float32))
    model = AutoModelForCausalLM.from_pretrained(checkpoint("gpt2"), dtype=torch.bfloat16).eval()
    before = logprobs(model)
    assert not keep_residual_float32(model)
    np.testing.assert_array_equal(logprobs(model), before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_architecture_scores_in_half_precision(dtype: str, each_checkpoint: Path) -> None:
    from curator.scorers.transformers import TransformersModel

    config = TransformersModel(engine="transformers", model=str(each_checkpoint), dtype=dtype)  # type: ignore[arg-type]
    exact = TransformersModel(engine="transformers", model=str(each_checkpoint), dtype="float32")
    scores, expected = (
        np.concatenate([s.logprobs_T[1:] for s in c.build(c.identify(), 1).score(SEQUENCES, lambda n: None)])
        for c in (config, exact)
    )
    assert np.abs(scores - expected).mean() < 0.02 * np.abs(expected).mean()
