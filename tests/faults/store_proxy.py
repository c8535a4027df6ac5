"""A proxy before an object store that breaks what it is told to: between botocore and a real server, over real TCP.

A rule says which requests it takes, how often, and what becomes of them:

    status    the store never hears of it; the client gets this status
    stall     the store never hears of it; the connection is held, then cut
    reset     the store never hears of it; the connection is cut at once
    lost      the store does it; the client's connection is cut before the answer
    slow      the store does it; the answer comes in small pieces
    half      the store does it; half of the answer's body comes
"""

import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_CODES = {
    409: "ConditionalRequestConflict", 412: "PreconditionFailed", 500: "InternalError", 503: "SlowDown",
    403: "AccessDenied",
}  # fmt: skip


@dataclass
class Rule:
    """What to do with requests of a method whose path matches; `times` of them, or once for each path."""

    method: str
    path: str
    fault: str
    status: int = 0
    times: int = 1
    seconds: float = 1.0
    once_each: bool = False
    hits: list[str] = field(default_factory=list)

    def takes(self, method: str, path: str) -> bool:
        if self.method not in (method, "*") or not re.search(self.path, path):
            return False
        return f"{method} {path}" not in self.hits if self.once_each else len(self.hits) < self.times


class Proxy(ThreadingHTTPServer):
    """Listens on a free port; `rules` may be changed at any time."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.rules, self.lock = (host, port), list[Rule](), threading.Lock()
        self.seen: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def choose(self, method: str, path: str) -> Rule | None:
        with self.lock:
            self.seen[method] += 1
            rule = next((rule for rule in self.rules if rule.takes(method, path)), None)
            if rule is not None:
                rule.hits.append(f"{method} {path}")
            return rule

    def count(self, change: int) -> None:
        with self.lock:
            self.under_way += change
            self.most_under_way = max(self.most_under_way, self.under_way)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Cut connections are what this is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        self.server.count(+1)
        try:
            self._answer()
        finally:
            self.server.count(-1)

    def _answer(self) -> None:
        body = self._body()
        rule = self.server.choose(self.command, self.path)
        fault = rule.fault if rule is not None else ""
        if rule is not None and fault in ("status", "stall", "reset"):
            self._refuse(rule)
            return
        response, answer = self._forward(body)
        if fault == "lost":
            self._cut()
            return
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(answer))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "half":
            self.wfile.write(answer[: len(answer) // 2])
            self.wfile.flush()
            self._cut()
        elif fault == "slow" and rule is not None:
            step = max(len(answer) // 10, 1)
            for start in range(0, len(answer), step):
                self.wfile.write(answer[start : start + step])
                self.wfile.flush()
                time.sleep(rule.seconds / 10)
        else:
            self.wfile.write(answer)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(*self.server.target, timeout=60)
        headers = {
            k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect", "connection")
        }
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response, answer

    def _refuse(self, rule: Rule) -> None:
        if rule.fault == "stall":
            time.sleep(rule.seconds)
        if rule.fault != "status":
            self._cut()
            return
        code = _CODES[rule.status]
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
        self.send_response_only(rule.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _cut(self) -> None:
        """Reset, not a friendly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
