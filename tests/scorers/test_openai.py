"""The engine behind HTTP, against a server that answers well: protocols, order, identity, the start."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from curator.errors import ScorerError
from curator.scorers.openai import OpenAIModel

_ROGUE = runpy.run_path(str(Path(__file__).with_name("rogue.py")))
MODEL, IDS, expected = (_ROGUE[name] for name in ("MODEL", "IDS", "expected"))
answer_tables, answer_echo, answer_pooling = (_ROGUE[f"answer_{name}"] for name in ("tables", "echo", "pooling"))


def test_each_protocol_is_found_and_scores_the_ids_that_were_sent(rogue: Any) -> None:
    known = {
        "prompt_logprobs": {"/v1/completions": answer_tables},
        "echo": {"/v1/completions": answer_echo},
        "pooling": {"/v1/completions": answer_tables, "/pooling": answer_pooling},
    }
    for protocol, routes in known.items():
        rogue.routes = routes
        assert rogue.model().identify().engine_version == f"rogue, {protocol}"
        [scores] = rogue.scorer().score([IDS], lambda n: None)
        assert scores.logprobs_T.dtype == np.float32
        np.testing.assert_array_equal(scores.logprobs_T, np.float32(expected(IDS)))


def test_sequences_keep_their_order_among_many_requests(rogue: Any) -> None:
    rogue.routes["/pooling"] = answer_pooling
    generator = np.random.default_rng(1)
    sequences = [generator.integers(0, 5000, n, dtype=np.int32) for n in generator.integers(0, 90, 300)]
    seen: list[int] = []
    scores = rogue.scorer(engine_args={"concurrency": 7}).score(sequences, seen.append)
    for one, ids in zip(scores, sequences, strict=True):
        np.testing.assert_array_equal(one.logprobs_T, np.float32(expected(ids)))
    assert sum(seen) == sum(map(len, sequences)) and len(seen) > 100
    assert all(sum(map(len, body["input"])) <= 4096 for body in rogue.posts)
    assert len(rogue.posts) < 30, "pooling takes several prompts per request"


def test_features_are_told_apart_by_their_values(rogue: Any) -> None:
    rogue.routes["/pooling"] = answer_pooling  # rank, then entropy
    [scores] = rogue.scorer(features=("entropy", "rank")).score([IDS], lambda n: None)
    assert scores.entropy_T is not None and scores.rank_T is not None
    np.testing.assert_array_equal(scores.rank_T[1:], 1 + IDS[1:] % 50)
    np.testing.assert_allclose(scores.entropy_T[1:], IDS[1:] / 1000 + 0.1, rtol=1e-6)
    assert np.isnan([scores.entropy_T[0], scores.rank_T[0]]).all()


def test_rank_also_comes_from_prompt_logprobs(rogue: Any) -> None:
    [scores] = rogue.scorer(features=("rank",)).score([IDS], lambda n: None)
    assert scores.rank_T is not None
    np.testing.assert_array_equal(scores.rank_T[1:], 1 + IDS[1:] % 50)


def test_sequences_without_a_token_to_predict_are_not_sent(rogue: Any) -> None:
    seen: list[int] = []
    empty, one = rogue.scorer().score([IDS[:0], IDS[:1]], seen.append)
    assert len(empty.logprobs_T) == 0 and np.isnan(one.logprobs_T).tolist() == [True]
    assert rogue.posts == [] and sum(seen) == 1


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_an_address_may_end_as_people_write_it(rogue: Any, ending: str) -> None:
    rogue.url += ending
    assert len(rogue.scorer().score([IDS], lambda n: None)) == 1


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host", "file:///etc/passwd", "http://", "http://me:secret@host", "http://h/?a=b"],
)
def test_an_address_that_is_none_is_refused_in_the_spec(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        OpenAIModel(engine="openai", model=MODEL, url=url)


def test_identity_does_not_depend_on_the_address_or_the_time(rogue: Any) -> None:
    rogue.served[0] |= {"created": 1}
    first = rogue.model().identify()
    rogue.served[0] |= {"created": 2}
    rogue.url = rogue.url.replace("127.0.0.1", "localhost")
    assert rogue.model().identify() == first
    assert (first.engine, first.dtype, first.context, first.revision) == ("openai", "unknown", 127, None)


def test_tokenizer_is_the_model_s_own_unless_named(rogue: Any) -> None:
    assert rogue.model().tokenizer_source() == MODEL
    assert rogue.model(engine_args={"tokenizer": "other/place"}).tokenizer_source() == "other/place"


# ------------------------------------------------------------------------------------------ the start


def test_a_model_that_is_not_served_is_named_with_those_that_are(rogue: Any) -> None:
    with pytest.raises(ScorerError, match=r"other/model.*it serves 'some/model'"):
        rogue.model(model="other/model").identify()


def test_context_comes_from_the_server_or_must_be_set(rogue: Any) -> None:
    with pytest.raises(ScorerError, match="takes 127 tokens, but context is 128"):
        rogue.model(context=128).identify()
    del rogue.served[0]["max_model_len"]
    with pytest.raises(ScorerError, match="set context"):
        rogue.model().identify()
    assert rogue.model(context=77).identify().context == 77


def test_features_that_the_protocol_lacks_are_refused_at_the_start(rogue: Any) -> None:
    with pytest.raises(ScorerError, match=r"no log-probs and entropy.*\n  pooling: .*404"):
        rogue.model(features=("entropy",)).identify()
    with pytest.raises(ScorerError, match=r"'echo'.*cannot give rank"):
        rogue.model(features=("rank",), engine_args={"protocol": "echo"}).identify()
    rogue.routes["/pooling"] = lambda body: answer_pooling(body, columns=2)
    with pytest.raises(ScorerError, match=r"gives logprob, rank only: serve with token_scores \['entropy'\]"):
        rogue.model(features=("entropy",)).identify()


def test_a_server_without_log_probs_is_refused_with_every_reason(rogue: Any) -> None:
    rogue.routes["/v1/completions"] = lambda body: {"choices": [{"text": "hello"}]}
    with pytest.raises(ScorerError) as caught:
        rogue.model(engine_args={"send": "ids"}).identify()
    for reason in (
        rogue.url,
        MODEL,
        "pooling: ",
        "prompt_logprobs: it has no prompt_logprobs",
        "echo: it has no logprobs",
    ):
        assert reason in str(caught.value)


def test_a_server_that_changed_since_the_plan_is_refused(rogue: Any) -> None:
    model = rogue.model()
    identity = model.identify()
    rogue.served[0]["root"] = "/models/other"
    with pytest.raises(ScorerError, match="changed since the plan: weights_digest"):
        model.build(identity, threads=1)
    del rogue.served[0]["root"]
    rogue.routes["/v1/completions"] = answer_echo
    with pytest.raises(ScorerError, match="engine_version was rogue, prompt_logprobs, is rogue, echo"):
        model.build(identity, threads=1)


def test_nobody_there_is_an_error_that_names_the_address() -> None:
    model = OpenAIModel(
        engine="openai", model=MODEL, url="http://127.0.0.1:9", engine_args={"retries": 1, "backoff_s": 0.01}
    )
    with pytest.raises(ScorerError, match=r"http://127.0.0.1:9 .*failed 2 times.*ConnectError"):
        model.identify()
