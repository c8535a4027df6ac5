"""The real engine: vLLM's CPU build, in this process, against a float32 forward of one document at a time."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.data import TokenScores
from curator.errors import EngineDied, ScorerError
from curator.scorers.vllm import VllmArguments, VllmModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

Checkpoint = Callable[[str], Path]
Oracle = Callable[[Path, np.ndarray], np.ndarray]

QUICK = {"enforce_eager": True, "max_num_batched_tokens": 96, "block_size": 32}
"""No compilation, and steps shorter than a document, so that documents are cut into chunks."""


def engine(model: Path | str, arguments: dict[str, Any] | None = None, **options: Any) -> Any:
    config = VllmModel(
        engine="vllm", model=str(model), engine_args=VllmArguments(**QUICK | (arguments or {})), **options
    )
    return config.build(config.identify(), threads=1)


def sequences_of(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(11)
    return [generator.integers(3, 5000, length, dtype=np.int32) for length in lengths]


def logprobs(scores: list[TokenScores]) -> np.ndarray:
    return np.concatenate([one.logprobs_T[1:] for one in scores])


@pytest.mark.parametrize(
    "name",
    [
        "llama_tied", "llama_untied", "qwen3", "gemma3", "mistral", "gpt2", "opt", "gemma2_softcap", "granite_scaling",
        "cohere_scale",
    ],
)  # fmt: skip
def test_every_architecture_equals_a_plain_forward(name: str, checkpoint: Checkpoint, plain_logprobs: Oracle) -> None:
    folder = checkpoint(name)
    sequences = sequences_of(128, 3, 50, 2, 51, 100, 17, 1, 0)
    seen: list[int] = []
    scorer = engine(folder, features=("entropy", "rank"))
    scores = scorer.score(sequences, seen.append)
    scorer.close()
    assert sum(seen) == sum(len(ids) for ids in sequences)
    assert [len(one.logprobs_T) for one in scores] == [len(ids) for ids in sequences]
    for ids, one in zip(sequences, scores, strict=True):
        assert np.isnan(one.logprobs_T[:1]).all()
        if len(ids) < 2:
            continue
        expected = plain_logprobs(folder, ids)
        target = expected[np.arange(len(ids) - 1), ids[1:]]
        assert one.entropy_T is not None and one.rank_T is not None
        np.testing.assert_allclose(one.logprobs_T[1:], target, atol=1e-4)
        np.testing.assert_allclose(one.entropy_T[1:], -(np.exp(expected) * expected).sum(1), atol=1e-4)
        rank = 1 + (expected > target[:, None]).sum(1)
        assert (one.rank_T[1:] == rank).mean() > 0.97
        assert np.abs(one.rank_T[1:] - rank).max() <= 2  # near ties


def test_a_preempted_document_is_scored_again_from_its_start(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    sequences = sequences_of(*[128] * 6)
    undisturbed = engine(checkpoint("llama_tied")).score(sequences, lambda n: None)
    preempted: list[Any] = []
    plain = Scheduler._preempt_request

    def count(self: Any, request: Any, *rest: Any, **named: Any) -> Any:
        preempted.append(request.request_id)
        return plain(self, request, *rest, **named)

    monkeypatch.setattr(Scheduler, "_preempt_request", count)
    blocks = 10 * (2 * 2 * 2 * 32 * 4 * 32)  # of 32 tokens: two layers' keys and values of two heads of 32 floats
    tight = {"long_prefill_token_threshold": 24, "kv_cache_memory_bytes": blocks}
    scores = engine(checkpoint("llama_tied"), tight).score(sequences, lambda n: None)
    assert preempted
    np.testing.assert_allclose(logprobs(scores), logprobs(undisturbed), atol=1e-4)


def test_vllms_own_prompt_logprobs_are_the_fallback_and_the_receipt_says_so(checkpoint: Checkpoint) -> None:
    sequences = sequences_of(90, 2, 1, 33)
    inside = engine(checkpoint("llama_untied"), features=("rank",))
    expected = inside.score(sequences, lambda n: None)
    assert inside.notes() == {}
    outside = engine(checkpoint("llama_untied"), {"scoring": "prompt_logprobs"}, features=("rank",))
    scores = outside.score(sequences, lambda n: None)
    np.testing.assert_allclose(logprobs(scores), logprobs(expected), atol=1e-4)
    for one, other in zip(scores, expected, strict=True):
        assert one.rank_T is not None and other.rank_T is not None
        np.testing.assert_array_equal(one.rank_T, other.rank_T)
    assert "prompt_logprobs" in outside.notes()["scored_by"]


def test_logits_that_a_model_changes_after_its_head_are_scored_whole(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, plain_logprobs: Oracle
) -> None:
    from vllm.model_executor.models.llama import LlamaForCausalLM

    (ids,) = sequences_of(100)
    expected = plain_logprobs(checkpoint("llama_untied"), ids) * 0.5
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    plain = LlamaForCausalLM.compute_logits
    monkeypatch.setattr(LlamaForCausalLM, "compute_logits", lambda self, hidden: plain(self, hidden) * 0.5)
    (one,) = engine(checkpoint("llama_untied")).score([ids], lambda n: None)
    np.testing.assert_allclose(one.logprobs_T[1:], expected[np.arange(99), ids[1:]], atol=1e-4)


def test_a_lack_of_memory_halves_the_step_and_then_fails_clearly(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curator.scorers.vllm_pooler import RowScorer

    sequences = sequences_of(*[128] * 10)
    folder = checkpoint("llama_tied")
    arguments = {"max_num_batched_tokens": 1024}
    expected = engine(folder, arguments).score(sequences, lambda n: None)
    plain = RowScorer.__call__

    def limited(most: int) -> Any:
        def score(self: Any, hidden: Any, target: Any) -> Any:
            if len(hidden) > most and hidden.abs().sum() > 0:
                raise MemoryError("DefaultCPUAllocator: can't allocate memory")
            return plain(self, hidden, target)

        return score

    scorer = engine(folder, arguments)
    monkeypatch.setattr(RowScorer, "__call__", limited(600))
    np.testing.assert_allclose(logprobs(scorer.score(sequences, lambda n: None)), logprobs(expected), atol=1e-4)
    assert scorer.notes() == {"batched_tokens_after_out_of_memory": 512}
    monkeypatch.setattr(RowScorer, "__call__", limited(0))
    with pytest.raises(ScorerError, match="out of memory with 256 tokens in a step"):
        scorer.score(sequences, lambda n: None)


def test_an_engine_that_breaks_says_that_it_died(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from curator.scorers.vllm_pooler import RowScorer

    scorer = engine(checkpoint("llama_tied"))

    def broken(*_: Any) -> Any:
        raise RuntimeError("a device-side assertion")

    monkeypatch.setattr(RowScorer, "__call__", broken)
    with pytest.raises(EngineDied, match="device-side assertion"):
        scorer.score(sequences_of(20), lambda n: None)


TWO_RANKS = """
import json, sys
import numpy as np
from curator.scorers.vllm import VllmArguments, VllmModel
if __name__ == "__main__":
    ids = np.random.default_rng(5).integers(3, 5000, (3, 100), dtype=np.int32)
    config = VllmModel(
        engine="vllm", model=sys.argv[1], features=("entropy", "rank"),
        engine_args=VllmArguments(enforce_eager=True, tensor_parallel_size=int(sys.argv[2]), max_num_batched_tokens=96),
    )
    scorer = config.build(config.identify(), threads=1)
    scores = scorer.score(list(ids), lambda n: None)
    scorer.close()
    columns = [[one.logprobs_T, one.entropy_T, one.rank_T] for one in scores]
    print("SCORES", json.dumps(np.array(columns)[:, :, 1:].tolist()))
"""


def test_two_tensor_parallel_ranks_give_the_scores_of_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(TWO_RANKS)
    found = []
    for ranks in ("1", "2"):
        done = subprocess.run(
            [sys.executable, str(script), str(checkpoint("gemma2_softcap")), ranks],
            env={"PATH": "/usr/bin:/bin", "VLLM_CPU_OMP_THREADS_BIND": "0|1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        line = next((line for line in done.stdout.splitlines() if line.startswith("SCORES ")), None)
        assert line is not None, done.stderr[-3000:]
        found.append(np.array(json.loads(line.removeprefix("SCORES "))))
    one, two = found
    np.testing.assert_allclose(two[:, :2], one[:, :2], atol=1e-4)
    assert (two[:, 2] == one[:, 2]).mean() > 0.97 and np.abs(two[:, 2] - one[:, 2]).max() <= 2


def test_smollm2_from_gguf_is_within_the_error_of_bfloat16(
    smollm2_gguf: Path, mix_rows: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curator.scorers.transformers import TransformersModel
    from curator.spec import TokensConfig
    from curator.tokens.tokenizer import load_tokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer = load_tokenizer(str(smollm2_gguf), None, TokensConfig())
    sequences = [
        document.input_ids[:300]
        for document in tokenizer.encode([row["text"] for row in mix_rows[:12]])
        if hasattr(document, "input_ids")
    ]
    exact = TransformersModel(engine="transformers", model=str(smollm2_gguf), dtype="float32")
    expected = logprobs(exact.build(exact.identify(), 2).score(sequences, lambda n: None))
    scorer = engine(smollm2_gguf, {"max_num_batched_tokens": 512}, dtype="bfloat16")
    found = logprobs(scorer.score(sequences, lambda n: None))
    assert len(found) > 1000
    assert np.abs(found - expected).mean() < 0.028


def test_a_rounded_head_is_told_to_the_engine(checkpoint: Checkpoint) -> None:
    sequences = sequences_of(120, 80)
    exact, rounded = (
        logprobs(engine(checkpoint("qwen3"), {"head": head}, dtype="bfloat16").score(sequences, lambda n: None))
        for head in ("exact", "rounded")
    )
    assert 1e-4 < np.abs(exact - rounded).mean() < 0.05


def test_ids_outside_the_vocabulary_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ScorerError, match="token id 5000"):
        engine(checkpoint("llama_tied")).score([np.array([1, 5000], np.int32)], lambda n: None)
