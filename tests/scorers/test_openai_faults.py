"""The engine behind HTTP, against a server that fails: what is tried again, what ends a call, answers of no use."""

import base64
import email.utils
import json
import runpy
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.errors import ScorerError

_ROGUE = runpy.run_path(str(Path(__file__).with_name("rogue.py")))
MODEL, IDS, expected, Answer = (_ROGUE[name] for name in ("MODEL", "IDS", "expected", "Answer"))
answer_echo, answer_pooling, pooling_rows = (_ROGUE[name] for name in ("answer_echo", "answer_pooling", "pooling_rows"))
send, status, drop, drop_midway, slow = (_ROGUE[name] for name in ("send", "status", "drop", "drop_midway", "slow"))


@pytest.mark.parametrize("fault", [drop, drop_midway, *map(status, (408, 409, 425, 429, 500, 502, 503, 504, 529))])
def test_what_may_pass_is_tried_again(rogue: Any, fault: Callable[..., None]) -> None:
    scorer = rogue.scorer()
    rogue.faults = [fault, fault]
    [scores] = scorer.score([IDS], lambda n: None)
    np.testing.assert_array_equal(scores.logprobs_T, np.float32(expected(IDS)))
    assert len(rogue.posts) == 3
    assert scorer.notes() == {"retried_requests": 2} and scorer.notes() == {}


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(rogue: Any, form: str) -> None:
    scorer = rogue.scorer()
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)  # whole seconds
    rogue.faults = [status(429, Retry_After=wait)]
    start = time.monotonic()
    scorer.score([IDS], lambda n: None)
    assert 0.9 < time.monotonic() - start < 5


def test_a_retry_after_of_hours_is_an_error(rogue: Any) -> None:
    scorer = rogue.scorer()
    rogue.faults = [status(429, "quota used up", Retry_After="7200")]
    with pytest.raises(ScorerError, match=r"asks to wait 7200 s .*quota used up"):
        scorer.score([IDS], lambda n: None)


def test_attempts_end(rogue: Any) -> None:
    scorer = rogue.scorer(engine_args={"retries": 2})
    rogue.faults = [status(503, "overloaded")] * 10
    with pytest.raises(ScorerError, match=f"{rogue.url}.*{MODEL}.*failed 3 times.*503 overloaded"):
        scorer.score([IDS], lambda n: None)
    assert len(rogue.posts) == 3


def test_a_slow_answer_is_given_up(rogue: Any) -> None:
    scorer = rogue.scorer(engine_args={"timeout_s": 0.2, "retries": 1})
    rogue.faults = [slow, slow]
    with pytest.raises(ScorerError, match=f"{rogue.url}.*failed 2 times.*ReadTimeout"):
        scorer.score([IDS], lambda n: None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (400, "refused POST .*too long"),
        (404, "check url and model"),
        (422, "refused"),
        (501, "refused"),
        (401, "no key"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(rogue: Any, code: int, message: str) -> None:
    scorer = rogue.scorer()
    rogue.faults = [status(code, "too long")]
    with pytest.raises(ScorerError, match=f"{rogue.url}.*{MODEL}.*{message}"):
        scorer.score([IDS], lambda n: None)
    assert len(rogue.posts) == 1


def test_a_redirect_is_not_followed(rogue: Any) -> None:
    scorer = rogue.scorer()
    rogue.faults = [status(307, Location="http://elsewhere.invalid/v1/completions")]
    with pytest.raises(ScorerError, match=r"redirects /v1/completions to http://elsewhere.invalid"):
        scorer.score([IDS], lambda n: None)


def test_one_hopeless_request_ends_the_call(rogue: Any) -> None:
    scorer = rogue.scorer(engine_args={"concurrency": 2})
    rogue.faults = [status(400)]
    with pytest.raises(ScorerError, match="refused"):
        scorer.score([IDS] * 500, lambda n: None)
    assert len(rogue.posts) < 250
    rogue.posts.clear()
    assert len(scorer.score([IDS] * 3, lambda n: None)) == 3, "the next call is a new one"


def test_ids_below_zero_are_refused_by_number_of_sequence(rogue: Any) -> None:
    with pytest.raises(ScorerError, match="sequence 1 holds token id -1"):
        rogue.scorer().score([IDS, np.array([4, -1], np.int32)], lambda n: None)


# ------------------------------------------------------------------------------------------ answers of no use


def in_tables(change: Callable[[list[Any]], Any]) -> Callable[[BaseHTTPRequestHandler, Answer], None]:
    def fault(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        change(answer["choices"][0]["prompt_logprobs"])
        send(handler, 200, json.dumps(answer).encode())

    return fault


def set_third(value: Any) -> Callable[[BaseHTTPRequestHandler, Answer], None]:
    return in_tables(lambda tables: tables[3].update({str(IDS[3]): {"logprob": value, "rank": 1}}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(200, "<html>login</html>", Content_Type="text/html"), "begins '<html>login"),
        (status(200, '{"choices": []}'), "0 choices"),
        (status(200, '{"choices": [{"text": "hello"}]}'), "no prompt_logprobs"),
        (status(200, '{"choices": [{"text": ""}], "usage": {"prompt_tokens": 7}}'), "7 tokens in a prompt of 6"),
        (in_tables(lambda tables: tables.pop()), "entries for 5 tokens, not 6"),
        (in_tables(lambda tables: tables.append(tables[-1])), "entries for 7 tokens, not 6"),
        (in_tables(lambda tables: tables.__setitem__(2, None)), r"has \[\] for token 2, which is 900"),
        (in_tables(lambda tables: tables.__setitem__(2, {"901": {"logprob": -1.0}})), r"\[901\] for token 2, which is"),
        (in_tables(lambda tables: tables.__setitem__(0, tables[1])), "log-prob for token 0"),
        (set_third(-9999.0), "log-prob -9999.0 for token 3"),
        (set_third(float("nan")), "log-prob nan for token 3"),
        (set_third(float("-inf")), "log-prob -inf for token 3"),
        (set_third(0.7), "log-prob 0.7 for token 3"),
        (set_third("-1.5"), "should be a valid number"),
        (set_third(None), "should be a valid number"),
    ],
)  # fmt: skip
def test_an_answer_with_less_than_every_log_prob_is_an_error(rogue: Any, fault: Any, message: str) -> None:
    scorer = rogue.scorer()
    rogue.faults = [fault]
    with pytest.raises(ScorerError, match=f"server {rogue.url} .*{MODEL}.*{message}.*sequence 0"):
        scorer.score([IDS], lambda n: None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "no logprobs"),
        ([None, -1.0, -1.0, -1.0, -1.0, -2.0], "5 tokens, not 6"),
        ([None, -1.0, -1.0, -1.0, -1.0, -2.0, -1.0, -1.0], "7 tokens, not 6"),
        ([-3.0, -1.0, -1.0, -1.0, -1.0, -2.0, -1.0], "log-prob for token 0"),
        ([None, -1.0, None, -1.0, -1.0, -2.0, -1.0], "log-prob nan for token 2"),
        ([None, -1.0, -1.0, -9999.0, -1.0, -2.0, -1.0], "log-prob -9999.0 for token 3"),
    ],
)
def test_an_echo_must_be_whole(rogue: Any, values: Any, message: str) -> None:
    rogue.routes["/v1/completions"] = answer_echo
    scorer = rogue.scorer()
    answer = {"choices": [{"logprobs": None if values is None else {"token_logprobs": values}}]}
    rogue.faults = [status(200, json.dumps(answer))]
    with pytest.raises(ScorerError, match=f"{rogue.url}.*{MODEL}.*echo.*{message}"):
        scorer.score([IDS], lambda n: None)


def pooled(rows: np.ndarray) -> str:
    return json.dumps({"data": [{"index": 0, "data": base64.b64encode(rows.tobytes()).decode()}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": []}', r"items \[\] for 1 prompts"),
        ('{"data": [{"index": 0, "data": "%%%"}]}', "not base64"),
        ('{"data": [{"index": 0, "data": [[1.0]]}]}', "should be a valid string"),
        (pooled(pooling_rows(IDS.tolist())[:5]), "60 bytes"),
        (pooled(pooling_rows(IDS.tolist(), 2)), "2 scores per token, not 3"),
        (pooled(pooling_rows(IDS.tolist()) + np.array([[0]] * 4 + [[np.nan]] + [[0]], "<f4")), "token 4, which is not"),
        (pooled(pooling_rows(IDS.tolist()) * np.float32(-1)), "log-prob .* for token 1"),
    ],
)  # fmt: skip
def test_a_pooling_answer_must_be_whole(rogue: Any, content: str, message: str) -> None:
    rogue.routes["/pooling"] = answer_pooling
    scorer = rogue.scorer()
    rogue.faults = [status(200, content)]
    with pytest.raises(ScorerError, match=f"{rogue.url}.*{MODEL}.*pooling.*{message}"):
        scorer.score([IDS], lambda n: None)
