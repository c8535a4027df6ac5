"""What every engine promises, checked for each member of the union."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import TypeAdapter

from curator.data import Scorer
from curator.errors import ScorerError
from curator.scorers import ScorerConfig

CONTEXT = 64
VOCABULARY = 1024  # no larger than any of the models'
ENGINES = [member.model_fields["engine"].annotation.__args__[0] for member in get_args(get_args(ScorerConfig)[0])]
ELSEWHERE = {
    "auto": "is a choice between two of the others: test_auto",
    "openai": "needs a server: test_openai",
}

Build = Callable[..., Scorer]


def marked(engine: str) -> Any:
    """vLLM takes seconds to start, and warns of much."""
    marks = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")] if engine == "vllm" else []
    return pytest.param(engine, marks=marks)


@pytest.fixture(params=[marked(engine) for engine in ENGINES if engine not in ELSEWHERE])
def build(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Build:
    """Start the engine with a small model; a new engine needs a line here."""
    models = {"bigram": "bigram", "transformers": None, "vllm": None}
    arguments = {"vllm": {"enforce_eager": True, "block_size": 32}}
    assert request.param in models, f"name a small model for engine {request.param!r}"
    model = models[request.param] or str(checkpoint("llama_tied"))

    def start(**options: object) -> Scorer:
        fields = {"engine": request.param, "model": model, "context": CONTEXT, **options}
        if request.param in arguments:
            fields["engine_args"] = arguments[request.param]
        config = TypeAdapter(ScorerConfig).validate_python(fields)
        identity = config.identify()
        assert identity.context == CONTEXT and identity.engine == request.param
        assert config.version_here(identity) in (None, identity.engine_version)
        return config.build(identity, threads=1)

    return start


def random_sequences(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, VOCABULARY, length, dtype=np.int32) for length in lengths]


def test_only_the_first_token_has_no_score(build: Build) -> None:
    sequences = random_sequences(5, 0, 1, 2, CONTEXT)
    scores = build().score(sequences, lambda n: None)
    assert [len(s.logprobs_T) for s in scores] == [5, 0, 1, 2, CONTEXT]
    for one in scores:
        assert one.logprobs_T.dtype == np.float32
        assert np.isnan(one.logprobs_T[:1]).all()
        assert np.isfinite(one.logprobs_T[1:]).all() and (one.logprobs_T[1:] <= 0).all()
        assert one.entropy_T is None and one.rank_T is None


def test_order_and_company_do_not_change_a_sequence(build: Build) -> None:
    sequences = random_sequences(*range(2, 40), CONTEXT, 7, 7, 7)
    scorer = build()
    together = scorer.score(sequences, lambda n: None)
    backwards = scorer.score(sequences[::-1], lambda n: None)[::-1]
    for ids, one, other in zip(sequences, together, backwards, strict=True):
        [alone] = scorer.score([ids], lambda n: None)
        np.testing.assert_allclose(one.logprobs_T, alone.logprobs_T, atol=2e-4)
        np.testing.assert_allclose(other.logprobs_T, alone.logprobs_T, atol=2e-4)


def test_a_token_depends_on_what_is_before_it_and_not_on_what_follows(build: Build) -> None:
    [ids] = random_sequences(20)
    changed = ids.copy()
    changed[12] = (changed[12] + 1) % VOCABULARY
    before, after = (scores.logprobs_T for scores in build().score([ids, changed], lambda n: None))
    np.testing.assert_allclose(before[:12], after[:12], atol=2e-4)
    assert before[12] != after[12] and before[13] != after[13]


def test_same_call_gives_same_bits(build: Build) -> None:
    sequences = random_sequences(9, 33, 12)
    first = build().score(sequences, lambda n: None)
    second = build().score(sequences, lambda n: None)
    for one, other in zip(first, second, strict=True):
        assert one.logprobs_T.tobytes() == other.logprobs_T.tobytes()


def test_features_come_on_request_and_agree_with_the_distribution(build: Build) -> None:
    prefix = random_sequences(6)[0]
    scorer = build(features=["entropy", "rank"])
    endings = [np.append(prefix, np.int32(following)) for following in range(VOCABULARY)]
    scores = scorer.score(endings, lambda n: None)
    logprobs = np.array([s.logprobs_T[-1] for s in scores], np.float64)
    ranks = np.array([s.rank_T[-1] for s in scores if s.rank_T is not None])
    assert (np.diff(ranks[np.argsort(-logprobs)]) >= 0).all() and ranks.min() >= 1
    assert len({float(s.entropy_T[-1]) for s in scores if s.entropy_T is not None}) <= 3  # one distribution
    for one in scores[:3]:
        assert one.entropy_T is not None and one.rank_T is not None
        assert np.isnan([one.entropy_T[0], one.rank_T[0]]).all()
        assert np.isfinite(one.entropy_T[1:]).all() and np.isfinite(one.rank_T[1:]).all()


def test_progress_adds_up_to_all_tokens(build: Build) -> None:
    sequences = random_sequences(5, 0, 1, 40, 40, 40)
    seen: list[int] = []
    build().score(sequences, seen.append)
    assert sum(seen) == 126


def test_foreign_ids_are_refused_by_number_of_sequence(build: Build) -> None:
    for bad in (10**6, -1):
        with pytest.raises(ScorerError, match="sequence 1 holds token id"):
            build().score([np.array([1, 2], np.int32), np.array([1, bad], np.int32)], lambda n: None)


def test_nothing_to_note_when_nothing_happened(build: Build) -> None:
    scorer = build()
    scorer.score(random_sequences(4), lambda n: None)
    assert scorer.notes() == {}
