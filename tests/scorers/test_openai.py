"""The engine behind HTTP, against a server of the standard library that misbehaves on purpose."""

import base64
import email.utils
import json
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from curator.data import Scorer
from curator.errors import ScorerError
from curator.scorers.openai import OpenAIModel
from curator.scorers.openai_server import Pace

MODEL = "some/model"
IDS = np.array([11, 5, 900, 7, 7, 3], np.int32)


def logprob(before: int, token: int) -> float:
    """What this server thinks of a token: a fact about two ids, so that every position and order shows."""
    return -0.25 - ((31 * before + token) % 97) / 8


def expected(ids: np.ndarray) -> list[float]:
    return [np.nan, *(logprob(int(a), int(b)) for a, b in pairwise(ids))][: len(ids)]


def prompt_logprobs(ids: list[int]) -> list[dict[str, Any] | None]:
    tables: list[dict[str, Any] | None] = [None]
    for a, b in pairwise(ids):
        tables.append({str(b): {"logprob": logprob(a, b), "rank": 1 + b % 50, "decoded_token": "x"}})
    return tables


def pooling_rows(ids: list[int], columns: int = 3) -> np.ndarray:
    rows = [[np.nan] * 3] + [[logprob(a, b), 1 + b % 50, b / 1000 + 0.1] for a, b in pairwise(ids)]
    return np.array(rows, "<f4")[:, :columns]


Answer = dict[str, Any]
Reply = tuple[int, dict[str, str], bytes]


def answer_tables(body: dict[str, Any]) -> Answer:
    if "prompt_logprobs" not in body:
        raise ValueError("this server only knows prompt_logprobs")
    [ids] = body["prompt"]
    return {
        "choices": [{"index": 0, "text": "", "prompt_logprobs": prompt_logprobs(ids)}],
        "usage": {"prompt_tokens": len(ids)},
    }


def answer_echo(body: dict[str, Any]) -> Answer:
    """As servers do that know neither prompt_logprobs, written ids, nor zero tokens."""
    if "prompt_logprobs" in body or "return_tokens_as_token_ids" in body or body["max_tokens"] < 1:
        raise ValueError("unknown field, or max_tokens too small")
    [ids] = body["prompt"]
    values = [None, *expected(np.array(ids))[1:], -1.5]
    return {"choices": [{"logprobs": {"tokens": ["x"] * len(values), "token_logprobs": values}}]}


def answer_pooling(body: dict[str, Any], columns: int = 3) -> Answer:
    items = [base64.b64encode(pooling_rows(ids, columns).tobytes()).decode() for ids in body["input"]]
    return {"data": [{"index": i, "object": "pooling", "data": item} for i, item in enumerate(items)][::-1]}


@dataclass
class Rogue:
    """A server whose answers a test chooses; `faults` go first, one for each POST."""

    url: str = ""
    served: list[dict[str, Any]] = field(
        default_factory=lambda: [{"id": MODEL, "owned_by": "rogue", "max_model_len": 128}]
    )
    routes: dict[str, Callable[[dict[str, Any]], Answer]] = field(default_factory=dict)
    faults: list[Callable[[BaseHTTPRequestHandler, Answer], None]] = field(default_factory=list)
    posts: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def model(self, **options: Any) -> OpenAIModel:
        args = {"backoff_s": 0.01, "timeout_s": 20, **options.pop("engine_args", {})}
        return OpenAIModel(**{"engine": "openai", "model": MODEL, "url": self.url, "engine_args": args, **options})

    def scorer(self, **options: Any) -> Scorer:
        """Connected, with the requests of the start forgotten."""
        model = self.model(**options)
        scorer = model.build(model.identify(), threads=1)
        self.posts.clear()
        return scorer


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def make_handler(rogue: Rogue) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer in one piece: two would meet TCP's delayed acknowledgement

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                send(self, 200, json.dumps({"object": "list", "data": rogue.served}).encode())
            else:
                send(self, 404, b'{"detail":"Not Found"}')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with rogue.lock:
                rogue.posts.append(body)
                rogue.keys.append(self.headers["Authorization"])
                fault = rogue.faults.pop(0) if rogue.faults else None
            if self.path not in rogue.routes:
                return send(self, 404, b'{"detail":"Not Found"}')
            try:
                answer = rogue.routes[self.path](body)
            except ValueError as error:
                return send(self, 400, json.dumps({"error": {"message": str(error)}}).encode())
            if fault is not None:
                return fault(self, answer)
            return send(self, 200, json.dumps(answer).encode())

    return Handler


@pytest.fixture
def rogue() -> Iterator[Rogue]:
    """A server on a free port that knows prompt_logprobs, until told otherwise."""
    rogue = Rogue(routes={"/v1/completions": answer_tables})
    with ThreadingHTTPServer(("127.0.0.1", 0), make_handler(rogue)) as server:
        server.daemon_threads = True
        rogue.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield rogue
        server.shutdown()


def status(code: int, text: str = "no", **headers: str) -> Callable[[BaseHTTPRequestHandler, Answer], None]:
    return lambda handler, answer: send(handler, code, text.encode(), **headers)


def drop(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    handler.close_connection = True
    handler.connection.close()


def drop_midway(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True


def slow(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    time.sleep(0.8)
    send(handler, 200, json.dumps(answer).encode())


# ------------------------------------------------------------------------------------------ what is right


def test_each_protocol_is_found_and_scores_the_ids_that_were_sent(rogue: Rogue) -> None:
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


def test_sequences_keep_their_order_among_many_requests(rogue: Rogue) -> None:
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


def test_features_are_told_apart_by_their_values(rogue: Rogue) -> None:
    rogue.routes["/pooling"] = answer_pooling  # rank, then entropy
    [scores] = rogue.scorer(features=("entropy", "rank")).score([IDS], lambda n: None)
    assert scores.entropy_T is not None and scores.rank_T is not None
    np.testing.assert_array_equal(scores.rank_T[1:], 1 + IDS[1:] % 50)
    np.testing.assert_allclose(scores.entropy_T[1:], IDS[1:] / 1000 + 0.1, rtol=1e-6)
    assert np.isnan([scores.entropy_T[0], scores.rank_T[0]]).all()


def test_rank_also_comes_from_prompt_logprobs(rogue: Rogue) -> None:
    [scores] = rogue.scorer(features=("rank",)).score([IDS], lambda n: None)
    assert scores.rank_T is not None
    np.testing.assert_array_equal(scores.rank_T[1:], 1 + IDS[1:] % 50)


def test_sequences_without_a_token_to_predict_are_not_sent(rogue: Rogue) -> None:
    seen: list[int] = []
    empty, one = rogue.scorer().score([IDS[:0], IDS[:1]], seen.append)
    assert len(empty.logprobs_T) == 0 and np.isnan(one.logprobs_T).tolist() == [True]
    assert rogue.posts == [] and sum(seen) == 1


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_an_address_may_end_as_people_write_it(rogue: Rogue, ending: str) -> None:
    rogue.url += ending
    assert len(rogue.scorer().score([IDS], lambda n: None)) == 1


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host", "file:///etc/passwd", "http://", "http://me:secret@host", "http://h/?a=b"],
)
def test_an_address_that_is_none_is_refused_in_the_spec(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        OpenAIModel(engine="openai", model=MODEL, url=url)


def test_identity_does_not_depend_on_the_address_or_the_time(rogue: Rogue) -> None:
    rogue.served[0] |= {"created": 1}
    first = rogue.model().identify()
    rogue.served[0] |= {"created": 2}
    rogue.url = rogue.url.replace("127.0.0.1", "localhost")
    assert rogue.model().identify() == first
    assert (first.engine, first.dtype, first.context, first.revision) == ("openai", "unknown", 127, None)


def test_tokenizer_is_the_model_s_own_unless_named(rogue: Rogue) -> None:
    assert rogue.model().tokenizer_source() == MODEL
    assert rogue.model(engine_args={"tokenizer": "other/place"}).tokenizer_source() == "other/place"


# ------------------------------------------------------------------------------------------ the start


def test_a_model_that_is_not_served_is_named_with_those_that_are(rogue: Rogue) -> None:
    with pytest.raises(ScorerError, match=r"other/model.*it serves 'some/model'"):
        rogue.model(model="other/model").identify()


def test_context_comes_from_the_server_or_must_be_set(rogue: Rogue) -> None:
    with pytest.raises(ScorerError, match="takes 127 tokens, but context is 128"):
        rogue.model(context=128).identify()
    del rogue.served[0]["max_model_len"]
    with pytest.raises(ScorerError, match="set context"):
        rogue.model().identify()
    assert rogue.model(context=77).identify().context == 77


def test_features_that_the_protocol_lacks_are_refused_at_the_start(rogue: Rogue) -> None:
    with pytest.raises(ScorerError, match=r"no log-probs and entropy.*\n  pooling: .*404"):
        rogue.model(features=("entropy",)).identify()
    with pytest.raises(ScorerError, match=r"'echo'.*cannot give rank"):
        rogue.model(features=("rank",), engine_args={"protocol": "echo"}).identify()
    rogue.routes["/pooling"] = lambda body: answer_pooling(body, columns=2)
    with pytest.raises(ScorerError, match=r"gives logprob, rank only: serve with token_scores \['entropy'\]"):
        rogue.model(features=("entropy",)).identify()


def test_a_server_without_log_probs_is_refused_with_every_reason(rogue: Rogue) -> None:
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


def test_a_server_that_changed_since_the_plan_is_refused(rogue: Rogue) -> None:
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


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("fault", [drop, drop_midway, *map(status, (408, 409, 425, 429, 500, 502, 503, 504, 529))])
def test_what_may_pass_is_tried_again(rogue: Rogue, fault: Callable[..., None]) -> None:
    scorer = rogue.scorer()
    rogue.faults = [fault, fault]
    [scores] = scorer.score([IDS], lambda n: None)
    np.testing.assert_array_equal(scores.logprobs_T, np.float32(expected(IDS)))
    assert len(rogue.posts) == 3
    assert scorer.notes() == {"retried_requests": 2} and scorer.notes() == {}


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(rogue: Rogue, form: str) -> None:
    scorer = rogue.scorer()
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)  # whole seconds
    rogue.faults = [status(429, Retry_After=wait)]
    start = time.monotonic()
    scorer.score([IDS], lambda n: None)
    assert 0.9 < time.monotonic() - start < 5


def test_a_retry_after_of_hours_is_an_error(rogue: Rogue) -> None:
    scorer = rogue.scorer()
    rogue.faults = [status(429, "quota used up", Retry_After="7200")]
    with pytest.raises(ScorerError, match=r"asks to wait 7200 s .*quota used up"):
        scorer.score([IDS], lambda n: None)


def test_attempts_end(rogue: Rogue) -> None:
    scorer = rogue.scorer(engine_args={"retries": 2})
    rogue.faults = [status(503, "overloaded")] * 10
    with pytest.raises(ScorerError, match=f"{rogue.url}.*{MODEL}.*failed 3 times.*503 overloaded"):
        scorer.score([IDS], lambda n: None)
    assert len(rogue.posts) == 3


def test_a_slow_answer_is_given_up(rogue: Rogue) -> None:
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
def test_what_will_not_pass_is_not_tried_again(rogue: Rogue, code: int, message: str) -> None:
    scorer = rogue.scorer()
    rogue.faults = [status(code, "too long")]
    with pytest.raises(ScorerError, match=f"{rogue.url}.*{MODEL}.*{message}"):
        scorer.score([IDS], lambda n: None)
    assert len(rogue.posts) == 1


def test_a_redirect_is_not_followed(rogue: Rogue) -> None:
    scorer = rogue.scorer()
    rogue.faults = [status(307, Location="http://elsewhere.invalid/v1/completions")]
    with pytest.raises(ScorerError, match=r"redirects /v1/completions to http://elsewhere.invalid"):
        scorer.score([IDS], lambda n: None)


def test_one_hopeless_request_ends_the_call(rogue: Rogue) -> None:
    scorer = rogue.scorer(engine_args={"concurrency": 2})
    rogue.faults = [status(400)]
    with pytest.raises(ScorerError, match="refused"):
        scorer.score([IDS] * 500, lambda n: None)
    assert len(rogue.posts) < 250
    rogue.posts.clear()
    assert len(scorer.score([IDS] * 3, lambda n: None)) == 3, "the next call is a new one"


def test_ids_below_zero_are_refused_by_number_of_sequence(rogue: Rogue) -> None:
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
def test_an_answer_with_less_than_every_log_prob_is_an_error(rogue: Rogue, fault: Any, message: str) -> None:
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
def test_an_echo_must_be_whole(rogue: Rogue, values: Any, message: str) -> None:
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
def test_a_pooling_answer_must_be_whole(rogue: Rogue, content: str, message: str) -> None:
    rogue.routes["/pooling"] = answer_pooling
    scorer = rogue.scorer()
    rogue.faults = [status(200, content)]
    with pytest.raises(ScorerError, match=f"{rogue.url}.*{MODEL}.*pooling.*{message}"):
        scorer.score([IDS], lambda n: None)


# ------------------------------------------------------------------------------------------ keys and limits


def test_the_key_reaches_the_server_and_nothing_else(
    rogue: Rogue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_API_KEY", "sk-very-secret-0123456789\n")
    model = rogue.model(api_key_env="TEST_API_KEY")
    identity = model.identify()
    scorer = model.build(identity, threads=1)
    errors = []
    for code in (400, 401, 403, 429, 307):
        told = "wrong key sk-very-secret-0123456789"
        rogue.faults = [status(code, told, Retry_After="9999", Location="http://elsewhere.invalid")]
        with pytest.raises(ScorerError) as caught:
            scorer.score([IDS], lambda n: None)
        errors.append(pickle.loads(pickle.dumps(caught.value)))
    assert set(rogue.keys) == {"Bearer sk-very-secret-0123456789"}
    shown = [*map(str, errors), *map(repr, errors), repr(scorer), repr(model), str(scorer.notes()), caplog.text]
    shown += [model.model_dump_json(), identity.model_dump_json()]
    assert "wrong key [key]" in str(errors[0]) and "TEST_API_KEY" in str(errors[1])
    assert not any("very-secret" in text for text in shown)


def test_a_key_that_is_not_set_is_an_error_that_names_the_variable(
    rogue: Rogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_API_KEY", raising=False)
    with pytest.raises(ScorerError, match="TEST_API_KEY, which is not set"):
        rogue.model(api_key_env="TEST_API_KEY").identify()
    monkeypatch.setenv("TEST_API_KEY", "sk-first\nsk-second")
    with pytest.raises(ScorerError, match="TEST_API_KEY holds characters") as caught:
        rogue.model(api_key_env="TEST_API_KEY").identify()
    assert "sk-" not in str(caught.value)


def test_limits_hold_over_any_stretch_of_time() -> None:
    now = [100.0]
    pace = Pace(60, clock=lambda: now[0])
    starts = []
    for amount in (1, 1, 5, 1, 1):
        starts.append(now[0] + pace.reserve(amount))
        now[0] += 0.25
    assert starts == [100, 101, 102, 107, 108]
    now[0] = 500
    assert pace.reserve(1) == 0, "time that nobody used is not saved up"
    assert pace.reserve(1) == 1


def test_requests_and_tokens_are_paced(rogue: Rogue) -> None:
    for limits in ({"requests_per_minute": 600}, {"tokens_per_minute": 600 * len(IDS)}):
        scorer = rogue.scorer(engine_args=limits)
        time.sleep(0.4)  # until the share of the probe is over
        start = time.monotonic()
        scorer.score([IDS] * 6, lambda n: None)
        assert 0.4 < time.monotonic() - start < 3
