"""Real servers for the client to meet: a small service that misbehaves on request, and a wire that is cut at will."""

import base64
import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

KEY = "tc_" + "k" * 32
JOB = "job_" + "0" * 26


class Wire:
    """A TCP proxy; `cuts` says, for the connections to come, after how many bytes of the answer they are reset."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts: list[int] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # a test may have closed it
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                limit = self.cuts.pop(0) if self.cuts else None
                threading.Thread(target=self._join, args=(client, limit), daemon=True).start()

    def _join(self, client: socket.socket, limit: int | None) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
        self._pump(server, client, limit)
        if limit is not None:  # a reset, as of a machine that went down
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536 if limit is None else max(min(65536, limit), 1)):
                if limit is not None:
                    data, limit = data[:limit], limit - len(data)
                    sink.sendall(data)
                    if limit <= 0:
                        break
                else:
                    sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR) if limit is None else None


class SmallService:
    """The endpoints that the client needs most, with what they answer in the hands of the test."""

    key, job = KEY, JOB

    def __init__(self) -> None:
        self.port = 0
        self.bodies: list[Any] = []
        self.uploaded: list[bytes] = []
        self.jobs: dict[str, str] = {}  # idempotency key -> job id
        self.seen: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        self.refusals: list[Response] = []  # answered first, to any request
        self.events = 200
        self.shards: list[bytes] = []
        self.complete = True
        self.states: list[dict[str, Any]] = []  # what the job is in turn, each time it is asked for
        self.state: dict[str, Any] = {}
        self.file_name = "curated/{:05d}.parquet"
        self.elsewhere: str | None = None  # where shards are redirected to
        self.honour_range = True
        self.lost: list[dict[str, Any]] = []
        self.proxy_etag: str | None = None  # as of a proxy that sends the files itself
        self.ignore_last_id = False
        self.loop = False  # what is elsewhere is redirected too
        self.damage = False  # send other bytes than are listed
        self.claim_bytes: int | None = None  # the size that is listed
        self.stale_entries: list[list[dict[str, Any]]] = []  # listed first
        self.app = FastAPI()
        self.app.middleware("http")(self._note)
        self.app.post("/v1/jobs", response_model=None)(self._submit)
        self.app.get("/v1/jobs/{job}")(self._job)
        self.app.get("/v1/jobs")(self._jobs)
        self.app.get("/v1/uploads")(self._uploads)
        self.app.post("/v1/uploads", status_code=201)(self._upload)
        self.app.get("/v1/jobs/{job}/events", response_model=None)(self._events)
        self.app.get("/v1/jobs/{job}/logs")(self._logs)
        self.app.get("/v1/jobs/{job}/manifest")(self._manifest)
        self.app.get("/v1/jobs/{job}/shards")(self._list)
        self.app.get("/v1/jobs/{job}/shards/{number}", response_model=None)(self._shard)
        self.app.get("/store/{number}", response_model=None)(self._stored)

    def refuse(self, status: int, code: str = "busy", headers: dict[str, str] | None = None, **more: Any) -> None:
        problem = {"type": f"urn:curator:problem:{code}", "status": status, "detail": f"told {code}", **more}
        self.refusals.append(JSONResponse(problem, status, headers=headers, media_type="application/problem+json"))

    async def _note(self, request: Request, proceed: Callable[[Request], Any]) -> Any:
        self.seen.append((request.method, request.url.path, {**request.headers, "query": request.url.query}))
        if self.refusals:
            return self.refusals.pop(0)
        return await proceed(request)

    async def _submit(self, request: Request) -> Any:
        key = request.headers["idempotency-key"]
        self.bodies.append(await request.json())
        job = self.jobs.setdefault(key, f"job_{len(self.jobs):026d}")
        return JSONResponse({"id": job, "status": "queued"}, 202)

    async def _job(self, job: str, response: Response) -> Any:
        if self.states:
            self.state = self.states.pop(0)
            response.headers["ETag"] = f'"{len(self.states)}"'
        return {"id": job, "status": "completed" if self.complete else "in_progress", "name": "test"} | self.state

    async def _jobs(self, cursor: int = 0) -> Any:
        data = [
            {"id": f"job_{n:026d}", "status": "failed", "name": f"\x1b[31mn{n}"} for n in range(cursor, cursor + 10)
        ]
        return {"data": data, "has_more": cursor < 50, "next_cursor": cursor + 10}

    async def _uploads(self) -> Any:
        data = [
            {
                "id": f"upl_{number}",
                "filename": "corpus.jsonl",
                "uri": f"upload://upl_{number}/corpus.jsonl",
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for number, content in enumerate(self.uploaded, 1)
        ]
        return {"data": data, "has_more": False}

    async def _upload(self, request: Request) -> Any:
        content = await request.body()
        assert request.headers["content-length"] == str(len(content))
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert request.headers["repr-digest"] == f"sha-256=:{digest}:"
        self.uploaded.append(content)
        return (await self._uploads())["data"][-1]

    async def _events(self, request: Request) -> Any:
        after = 0 if self.ignore_last_id else int(request.headers.get("last-event-id", 0))
        if after >= self.events:
            return Response(status_code=204)

        async def stream() -> Any:
            yield ": hello\n\n"
            for number in range(after + 1, self.events + 1):
                data = {"id": number, "at": "2026-01-01T00:00:00Z", "type": "message", "data": {"text": "é" * number}}
                yield f"id: {number}\nevent: message\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _logs(self, after: int = 0) -> Any:
        data = [{"id": n, "text": f"line {n} \x1b[2J"} for n in range(after + 1, min(after + 4, 10))]
        return {"data": data, "has_more": bool(data), "next_cursor": None}

    def _entries(self) -> list[dict[str, Any]]:
        return [
            {
                "number": number,
                "file": self.file_name.format(number),
                "bytes": self.claim_bytes or len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for number, content in enumerate(self.shards)
        ]

    async def _manifest(self) -> Any:
        return {
            "complete": self.complete,
            "name": "test",
            "lost_shards": self.lost,
            "shards": self.stale_entries.pop() if self.stale_entries else self._entries(),
        }

    async def _list(self) -> Any:
        return {"data": self._entries(), "has_more": False, "next_cursor": None}

    async def _shard(self, number: int, request: Request) -> Any:
        if self.elsewhere:
            return RedirectResponse(f"{self.elsewhere}/store/{number}", 307)
        digest = hashlib.sha256(self.shards[number]).hexdigest()
        return self._bytes(number, request, self.proxy_etag or f'"{digest}"')

    async def _stored(self, number: int, request: Request) -> Any:
        if self.loop:
            return RedirectResponse(str(request.url), 307)
        return self._bytes(number, request, '"etag-of-a-store"')

    def _bytes(self, number: int, request: Request, etag: str) -> Response:
        content, start = self.shards[number], 0
        if self.damage:
            content = bytes(len(content))
        asked = request.headers.get("range")
        if asked and self.honour_range and request.headers.get("if-range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Response(content[start:], 206 if start else 200, headers, "application/octet-stream")


def serve(app: Any) -> tuple[uvicorn.Server, int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=1))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return server, server.servers[0].sockets[0].getsockname()[1]


@pytest.fixture
def service() -> Iterator[SmallService]:
    small = SmallService()
    server, small.port = serve(small.app)
    yield small
    server.should_exit = True


@pytest.fixture
def make_wire() -> Iterator[Callable[[int], Wire]]:
    """A wire to a port of this machine."""
    wires: list[Wire] = []

    def make(port: int) -> Wire:
        wires.append(Wire(port))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()


@pytest.fixture
def wire(service: SmallService, make_wire: Callable[[int], Wire]) -> Wire:
    return make_wire(service.port)


@pytest.fixture
def shards() -> list[bytes]:
    draw = random.Random(0)
    return [draw.randbytes(draw.randrange(150_000, 400_000)) for _ in range(6)]
