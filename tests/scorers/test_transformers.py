"""The transformers engine against a plain forward, on several architectures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator.data import TokenScores
from curator.errors import ScorerError
from curator.scorers.causal_lm import CausalScorer
from curator.scorers.transformers import TransformersModel

Checkpoint = Callable[[str], Path]
Oracle = Callable[[Path, np.ndarray], np.ndarray]
RAGGED = (128, 3, 50, 2, 51, 49, 100, 17, 1, 0)


def engine(model: Path, **options: Any) -> TransformersModel:
    return TransformersModel(engine="transformers", model=str(model), **options)


def score(config: TransformersModel, sequences: list[np.ndarray]) -> list[TokenScores]:
    return config.build(config.identify(), 1).score(sequences, lambda n: None)


def sequences_of(*lengths: int, vocabulary: int = 5000) -> list[np.ndarray]:
    generator = np.random.default_rng(11)
    return [generator.integers(0, vocabulary, length, dtype=np.int32) for length in lengths]


def test_float32_equals_a_plain_forward(each_checkpoint: Path, plain_logprobs: Oracle) -> None:
    folder = each_checkpoint
    sequences = sequences_of(*RAGGED)
    scores = score(engine(folder, features=("entropy", "rank")), sequences)
    for ids, one in zip(sequences, scores, strict=True):
        if len(ids) < 2:
            assert np.isnan(one.logprobs_T).all()
            continue
        expected = plain_logprobs(folder, ids)
        target = expected[np.arange(len(ids) - 1), ids[1:]]
        assert np.abs(one.logprobs_T[1:] - target).max() < 1e-4 * max(1, np.abs(target).max())
        assert one.entropy_T is not None and one.rank_T is not None
        np.testing.assert_allclose(one.entropy_T[1:], -(np.exp(expected) * expected).sum(1), atol=1e-3, rtol=1e-4)
        rank = 1 + (expected > target[:, None]).sum(1)
        assert (one.rank_T[1:] == rank).mean() > 0.97
        assert np.abs(one.rank_T[1:] - rank).max() <= 2  # near ties


def test_an_unknown_treatment_of_logits_is_noticed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama_untied")).eval()
    plain = model.forward

    def louder(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = louder
    with pytest.raises(ScorerError, match="does more to its logits"):
        CausalScorer(model)


def test_lack_of_memory_halves_the_batch_and_is_noted(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    config = engine(checkpoint("llama_tied"))
    scorer = config.build(config.identify(), 1)
    assert isinstance(scorer, CausalScorer)
    sequences = sequences_of(30, 30, 30, 30, 30)
    expected = scorer.score(sequences, lambda n: None)
    roomy = scorer._score_batch

    def cramped(batch: list[np.ndarray]) -> Any:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no memory")
        return roomy(batch)

    monkeypatch.setattr(scorer, "_score_batch", cramped)
    halved = scorer.score(sequences, lambda n: None)
    assert scorer.notes() == {"batches_halved_out_of_memory": 2}
    assert scorer.notes() == {}
    for one, other in zip(expected, halved, strict=True):
        np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=1e-4)


def test_a_sequence_that_fits_in_no_way_is_an_error_with_a_remedy(checkpoint: Checkpoint) -> None:
    config = engine(checkpoint("llama_tied"))
    scorer = config.build(config.identify(), 1)
    real = scorer._body  # type: ignore[attr-defined]

    def hungry(input_ids: torch.Tensor, **options: Any) -> Any:
        torch.empty(1 << 60)  # what CPU torch really says
        return real(input_ids, **options)

    scorer._body = hungry  # type: ignore[attr-defined]
    with pytest.raises(ScorerError, match="out of memory with a single sequence of 30 tokens; set a shorter context"):
        scorer.score(sequences_of(30, 30), lambda n: None)


def test_weights_that_give_nan_are_an_error_naming_the_sequence(checkpoint: Checkpoint) -> None:
    config = engine(checkpoint("llama_untied"))
    scorer = config.build(config.identify(), 1)
    scorer._model.get_input_embeddings().weight[4321] = float("nan")  # type: ignore[attr-defined]
    sound, spoilt = np.arange(20, dtype=np.int32), np.array([1, 2, 4321, 3], np.int32)
    with pytest.raises(ScorerError, match="sequence 1 got logprobs nan at token"):
        scorer.score([sound, spoilt], lambda n: None)


def test_batch_tokens_changes_batches_and_not_scores(checkpoint: Checkpoint) -> None:
    sequences = sequences_of(20, 20, 20, 20)
    small = score(engine(checkpoint("gpt2"), engine_args={"batch_tokens": 1}), sequences)
    for one, other in zip(small, score(engine(checkpoint("gpt2")), sequences), strict=True):
        np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=2e-4)


@pytest.mark.slow
def test_a_real_gguf_model_scores_prose_well(smollm2_gguf: Path) -> None:
    from transformers import AutoTokenizer

    config = engine(smollm2_gguf, dtype="bfloat16")
    identity = config.identify()
    assert (identity.context, identity.parameters) == (8192, 134_515_008)
    text = "The capital of France is Paris. Water boils at one hundred degrees Celsius at sea level."
    tokenizer = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    ids = np.array(tokenizer(text)["input_ids"], np.int32)
    shuffled = np.random.default_rng(0).permutation(ids)
    prose, noise = config.build(identity, 2).score([ids, shuffled], lambda n: None)
    assert np.nanmean(prose.logprobs_T) > -3
    assert np.nanmean(noise.logprobs_T) < np.nanmean(prose.logprobs_T) - 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_give_the_same_scores(checkpoint: Checkpoint) -> None:
    import torch._dynamo

    sequences = sequences_of(*RAGGED)
    expected = score(engine(checkpoint("qwen3")), sequences)
    torch._dynamo.utils.counters.clear()
    compiled = score(engine(checkpoint("qwen3"), engine_args={"compile": True}), sequences)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for one, other in zip(compiled, expected, strict=True):
        np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=1e-4)


def test_a_rounded_head_errs_more_than_an_exact_one_and_not_by_much(checkpoint: Checkpoint) -> None:
    sequences = sequences_of(128, 100, 90)

    def error(**options: Any) -> float:
        found = score(engine(checkpoint("llama_untied"), dtype="bfloat16", engine_args=options), sequences)
        return float(
            np.mean([np.abs(a.logprobs_T - b.logprobs_T)[1:].mean() for a, b in zip(found, exact, strict=True)])
        )

    exact = score(engine(checkpoint("llama_untied"), dtype="bfloat16"), sequences)
    assert error(head="exact") == 0
    assert 1e-4 < error(head="rounded") < 0.05


def test_packed_documents_score_as_alone(each_checkpoint: Path) -> None:
    sequences = sequences_of(*RAGGED)
    if each_checkpoint.name.startswith("opt"):  # which takes positions from the attention mask
        with pytest.raises(ScorerError, match="packed documents see each other in OPTForCausalLM"):
            score(engine(each_checkpoint, engine_args={"packing": True}), sequences)
        return
    packed = score(engine(each_checkpoint, features=("rank",), engine_args={"packing": True}), sequences)
    padded = score(engine(each_checkpoint, features=("rank",), engine_args={"packing": False}), sequences)
    for one, other in zip(packed, padded, strict=True):
        np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=2e-4)


def test_a_model_that_mixes_packed_documents_is_refused(checkpoint: Checkpoint) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama_tied")).eval()
    plain = model.base_model.forward

    def deaf(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    model.base_model.forward = deaf
    with pytest.raises(ScorerError, match="packed documents see each other"):
        CausalScorer(model, packing=True)
