"""A server of the standard library that speaks three protocols and misbehaves on purpose; run by the tests' files."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import numpy as np

from curator.data import Scorer
from curator.scorers.openai import OpenAIModel

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


@contextmanager
def serve() -> Iterator[Rogue]:
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
