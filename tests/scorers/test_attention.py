"""The blocked attention equals attention as written in the textbook."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from curator.scorers.attention import attend_causally, use_blocked_attention
from curator.scorers.causal_lm import CausalScorer

needs_plain_cpu = pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="torch's own attention is kept on AMX")


def textbook(query: np.ndarray, key: np.ndarray, value: np.ndarray, scale: float) -> np.ndarray:
    """One head at a time, one token at a time, in float64."""
    batch, heads, length, _ = query.shape
    output = np.zeros(query.shape)
    for b in range(batch):
        for head in range(heads):
            shared = head // (heads // key.shape[1])
            for t in range(length):
                weights = np.exp(scale * key[b, shared, : t + 1] @ query[b, head, t])
                output[b, head, t] = weights @ value[b, shared, : t + 1] / weights.sum()
    return output


@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_equals_the_textbook(heads: int, keys: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(2, h, length, 8, generator=generator) for h in (heads, keys, keys))
    got = attend_causally(query, key, value, 0.4)
    np.testing.assert_allclose(got, textbook(*(x.double().numpy() for x in (query, key, value)), 0.4), atol=1e-5)


@needs_plain_cpu
@pytest.mark.parametrize("kind", ["LlamaConfig", "MistralConfig", "GPT2Config"])
def test_models_score_the_same_with_it(kind: str) -> None:
    import transformers

    torch.manual_seed(1)
    sizes = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    options = {"num_key_value_heads": 2, "intermediate_size": 64, "sliding_window": 40}
    extra = options if kind != "GPT2Config" else {"bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, kind)(**sizes, **extra, max_position_embeddings=512, initializer_range=0.2)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    sequences = [np.random.default_rng(0).integers(3, 300, n, dtype=np.int32) for n in (200, 198, 39, 20, 5)]
    before = CausalScorer(model).score(sequences, lambda n: None)
    assert use_blocked_attention(model)
    after = CausalScorer(model).score(sequences, lambda n: None)
    for one, other in zip(before, after, strict=True):
        assert np.abs(one.logprobs_T[1:] - other.logprobs_T[1:]).mean() < 0.03
        assert np.isfinite(other.logprobs_T[1:]).all()


def test_float32_models_keep_what_they_have(checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama_tied"), dtype=torch.float32)
    assert not use_blocked_attention(model)
    assert model.config._attn_implementation == "sdpa"
