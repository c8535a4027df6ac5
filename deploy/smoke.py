#!/usr/bin/env python3
"""Prove that a deployment works, from outside: upload a corpus, run a job, download its shards, check every byte.

Talks plain HTTP with the standard library, so that it tests the service and not our client; reads shards with pyarrow.

    CURATOR_API_KEY=... python deploy/smoke.py http://127.0.0.1:8000

Prints a line per check. Exit code: 0 all passed, 1 a check failed, 2 wrong usage.
"""

import argparse
import base64
import hashlib
import http.client
import io
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

KEEP = 0.6
SPOILT = b'{"id": "spoilt", "text": \n'
WORDS = (
    "which",
    "of",
    "its",
    "tokens",
    "a",
    "model",
    "that",
    "reads",
    "this",
    "line",
    "should",
    "learn",
    "from",
    "today",
)


class Failed(Exception):
    """A check that did not hold."""


class Service:
    """Requests with a key; redirects (to an object store) are followed without it."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url.rstrip("/"), key

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[bytes, Any]:
        """The answer's body and headers; Failed for any status but 2xx."""
        try:
            request = urllib.request.Request(self._url + path, data=body, method=method, headers=headers)
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            raise Failed(f"{method} {path}: {error.code} {error.read(500).decode(errors='replace')}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:  # refused, cut short, no address at all
            raise Failed(f"{method} {path}: {error or type(error).__name__}") from None

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The same, JSON both ways."""
        sent = None if body is None else json.dumps(body).encode()
        answer = self.ask(method, path, sent, **{"Content-Type": "application/json"} | headers)[0]
        try:
            return json.loads(answer)
        except ValueError:
            raise Failed(f"{method} {path}: no JSON but {answer[:80]!r}; is this the service's address?") from None


def make_rows(count: int) -> dict[str, str]:
    """A corpus in which no two documents are equal."""
    return {
        f"row-{i:06}": f"Document {i}. " + " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(20 + i % 60))
        for i in range(count)
    }


def upload(service: Service, rows: dict[str, str]) -> str:
    """Send the corpus, with one line that is no JSON; gives its URI."""
    lines = [json.dumps({"id": name, "text": text}).encode() + b"\n" for name, text in rows.items()]
    content = b"".join([*lines[: len(lines) // 2], SPOILT, *lines[len(lines) // 2 :]])
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    body, _ = service.ask("POST", "/v1/uploads?filename=smoke.jsonl", content, **{"Repr-Digest": f"sha-256=:{digest}:"})
    return str(json.loads(body)["uri"])


def make_spec(uri: str, shard_tokens: int) -> dict[str, Any]:
    """A job that needs no model but those that ship with curator."""
    return {
        "name": "smoke",
        "corpus": {"kind": "jsonl", "uri": uri, "id_field": "id"},
        "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
        "policy": {"kind": "excess_loss", "keep": KEEP},
        "shard_tokens": shard_tokens,
    }


def finish(service: Service, job_id: str, within_s: float) -> dict[str, Any]:
    """Wait until a job has ended."""
    deadline, job = time.monotonic() + within_s, {}
    while time.monotonic() < deadline:
        job = service.json("GET", f"/v1/jobs/{job_id}?wait=10")
        if job["status"] in ("completed", "failed", "cancelled"):
            return dict(job)
    raise Failed(f"the job is still {job.get('status')} after {within_s:g} s")


def require(holds: bool, problem: str) -> None:
    """Raise Failed unless it holds."""
    if not holds:
        raise Failed(problem)


def check_shard(service: Service, job_id: str, number: int, entry: dict[str, Any]) -> Any:
    """Download one shard and compare its digest; gives its rows."""
    content, headers = service.ask("GET", f"/v1/jobs/{job_id}/shards/{number}")
    digest = hashlib.sha256(content)
    require(
        digest.hexdigest() == entry["sha256"], f"shard {number}: sha256 {digest.hexdigest()}, not {entry['sha256']}"
    )
    promised = headers.get("Repr-Digest")
    expected = f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    require(promised in (None, expected), f"shard {number}: Repr-Digest {promised}, not {expected}")
    table = pq.read_table(io.BytesIO(content))
    require(table.num_rows == entry["rows"], f"shard {number}: {table.num_rows} rows, not {entry['rows']}")
    return table


def check_rows(tables: list[Any], rows: dict[str, str]) -> tuple[int, int]:
    """Every document once, and labels are the tokens whose weight is not 0; gives tokens and kept tokens."""
    found: list[tuple[str, str]] = []
    for table in tables:
        found += zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    require(sorted(found) == sorted(rows.items()), f"{len(found)} rows, which are not the {len(rows)} that were sent")
    tokens = kept = 0
    for table in tables:
        columns = [table[name].to_pylist() for name in ("input_ids", "labels", "token_weights")]
        for ids, labels, weights in zip(*columns, strict=True):
            require(
                labels == [token if weight else -100 for token, weight in zip(ids, weights, strict=True)],
                f"labels {labels[:8]} do not agree with weights {weights[:8]} of tokens {ids[:8]}",
            )
            tokens, kept = tokens + len(ids), kept + sum(weight != 0 for weight in weights)
    return tokens, kept


def checks(service: Service, count: int, shard_tokens: int, within_s: float) -> Iterator[str]:
    """All checks in turn; yields what each has shown."""
    service.ask("GET", "/livez")
    service.ask("GET", "/readyz")
    yield "the service is alive and ready"
    me = service.json("GET", "/v1/me")
    yield f"the key is one of tenant {me['tenant']!r}"
    rows = make_rows(count)
    uri = upload(service, rows)
    yield f"uploaded {count} documents and a spoilt line as {uri}"
    name = hashlib.sha256(f"{uri}{time.time()}".encode()).hexdigest()[:20]
    spec = make_spec(uri, shard_tokens)
    job, again = (service.json("POST", "/v1/jobs", spec, **{"Idempotency-Key": name}) for _ in range(2))
    require(job["id"] == again["id"], f"one Idempotency-Key made two jobs, {job['id']} and {again['id']}")
    yield f"submitted {job['id']}, twice, as one job"
    started = time.monotonic()
    ended = finish(service, job["id"], within_s)
    require(ended["status"] == "completed", f"the job ended as {ended['status']}: {ended.get('error')}")
    yield f"completed in {time.monotonic() - started:.1f} s, attempt {ended['attempt']}, epoch {ended['epoch']}"
    manifest = service.json("GET", f"/v1/jobs/{job['id']}/manifest")
    lost = sum(manifest["quarantined"].values())
    require(lost == 1, f"quarantined {manifest['quarantined']}, and there was 1 spoilt line")
    yield f"the manifest names {len(manifest['shards'])} shards and the spoilt line: {manifest['quarantined']}"
    tables = [check_shard(service, job["id"], n, entry) for n, entry in enumerate(manifest["shards"])]
    yield f"downloaded {len(tables)} shards, each with the digest that the manifest promises"
    tokens, kept = check_rows(tables, rows)
    yield f"all {count} documents are there once, and labels agree with weights"
    share = kept / max(tokens - count, 1)  # the first token of a document has no score
    require(abs(share - KEEP) < 0.02, f"{share:.3f} of the scored tokens are kept, not {KEEP}")
    yield f"kept {kept} of {tokens} tokens, {share:.3f} of those that have a score"


def main() -> int:
    """Run the checks and say how each went."""
    parser = argparse.ArgumentParser(description="Prove that a deployment works; the key is in CURATOR_API_KEY.")
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("--rows", type=int, default=400, help="documents to send (400)")
    parser.add_argument("--shard-tokens", type=int, default=5000, help="tokens of a shard (5000)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that the job may take (300)")
    arguments = parser.parse_args()
    key = os.environ.get("CURATOR_API_KEY", "")
    if not key:
        print("smoke: CURATOR_API_KEY is not set; set it to a key with scopes read and write", file=sys.stderr)
        return 2
    try:
        for passed in checks(Service(arguments.url, key), arguments.rows, arguments.shard_tokens, arguments.timeout):
            print(f"ok    {passed}", flush=True)
    except Failed as error:
        print(f"FAIL  {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
