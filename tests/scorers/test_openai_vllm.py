"""The engine behind HTTP against real vLLM servers on loopback, by the float32 transformers engine."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.data import Scorer, TokenScores
from curator.errors import ScorerError
from curator.scorers.openai import OpenAIModel
from curator.scorers.transformers import TransformersModel

pytest.importorskip("vllm", reason="the servers are vLLM's")
pytestmark = pytest.mark.slow

CONTEXT = 128
SCORING = (
    '{"architectures": ["TokenScoringLlamaForCausalLM"], "head_dtype": "model", "token_scores": ["rank", "entropy"]}'
)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="module")
def folder(tokenized_checkpoint: Path) -> Path:
    return tokenized_checkpoint


@contextmanager
def serve(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """Run vLLM's server for a model; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(port), "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, env=os.environ | ENVIRONMENT, start_new_session=True
        )
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(1)
        if process.poll() is not None:
            break
    pytest.fail(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="class")
def pooling(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM with this library's plug-in."""
    with serve(
        folder, tmp_path_factory.mktemp("pooling") / "log", "--runner", "pooling", "--hf-overrides", SCORING
    ) as url:
        yield url


@pytest.fixture(scope="class")
def stock(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM as it comes."""
    with serve(folder, tmp_path_factory.mktemp("stock") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    lengths = [2, 0, 1, 127, 3, *generator.integers(2, 127, 60)]
    return [generator.integers(0, 5000, n, dtype=np.int32) for n in lengths]


@pytest.fixture(scope="module")
def local(folder: Path) -> Scorer:
    """The same model run here, in float32."""
    config = TransformersModel(engine="transformers", model=str(folder), dtype="float32", features=("entropy", "rank"))
    return config.build(config.identify(), threads=1)


@pytest.fixture(scope="module")
def oracle(local: Scorer, sequences: list[np.ndarray]) -> list[TokenScores]:
    return local.score(sequences, lambda n: None)


def start(url: str, features: tuple[str, ...] = (), **options: Any) -> tuple[Scorer, str, int]:
    config = OpenAIModel(engine="openai", model="tiny", url=url, features=features, engine_args=options)
    identity = config.identify()
    return config.build(identity, threads=1), identity.engine_version, identity.context


def assert_close(found: list[TokenScores], wanted: list[TokenScores], *features: str) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=1e-4)
        if "entropy" in features:
            np.testing.assert_allclose(one.entropy_T, other.entropy_T, atol=1e-4)
        if "rank" in features:  # two tokens may be as good as equal
            assert one.rank_T is not None and other.rank_T is not None
            assert (np.abs(one.rank_T - other.rank_T)[1:] <= 2).all() and np.isnan(one.rank_T[:1]).all()
            assert len(one.rank_T) < 20 or (one.rank_T == other.rank_T)[1:].mean() > 0.9


class TestServerWithOurPlugIn:
    def test_scores_are_those_of_transformers(
        self, pooling: str, sequences: list[np.ndarray], oracle: list[TokenScores]
    ) -> None:
        scorer, version, context = start(pooling, features=("entropy", "rank"))
        assert version.startswith("vllm 0.") and version.endswith(", pooling") and context == CONTEXT
        seen: list[int] = []
        assert_close(scorer.score(sequences, seen.append), oracle, "entropy", "rank")
        assert sum(seen) == sum(map(len, sequences)) and scorer.notes() == {}

    def test_the_whole_context_can_be_used(self, pooling: str) -> None:
        scorer, _, context = start(pooling)
        [scores] = scorer.score([np.arange(context, dtype=np.int32)], lambda n: None)
        assert scores.entropy_T is None and np.isfinite(scores.logprobs_T[1:]).all()

    def test_ids_outside_the_vocabulary_are_refused_in_the_server_s_words(self, pooling: str) -> None:
        with pytest.raises(ScorerError, match=rf"{pooling} \(model 'tiny'\) refused .*1000000 is out of vocabulary"):
            start(pooling)[0].score([np.array([1, 10**6], np.int32)], lambda n: None)

    def test_it_cannot_echo(self, pooling: str) -> None:
        with pytest.raises(ScorerError, match=r"echo: .*404"):
            start(pooling, protocol="echo", send="ids")


class TestStockServer:
    def test_prompt_logprobs_are_those_of_transformers(
        self, stock: str, sequences: list[np.ndarray], oracle: list[TokenScores]
    ) -> None:
        scorer, version, context = start(stock, features=("rank",))
        assert version.endswith(", prompt_logprobs") and context == CONTEXT - 1
        assert_close(scorer.score(sequences, lambda n: None), oracle, "rank")

    def test_echoed_log_probs_are_those_of_transformers(
        self, stock: str, sequences: list[np.ndarray], local: Scorer
    ) -> None:
        named = [ids % 1024 for ids in sequences]  # to echo a token, the server must have a text for it
        scorer, version, _ = start(stock, protocol="echo", concurrency=4)
        assert version.endswith(", echo")
        assert_close(scorer.score(named, lambda n: None), local.score(named, lambda n: None))

    def test_entropy_needs_our_plug_in(self, stock: str) -> None:
        with pytest.raises(ScorerError, match=r"no log-probs and entropy .*\n  pooling: .*404"):
            start(stock, features=("entropy",))

    @pytest.mark.parametrize("protocol", ["prompt_logprobs", "echo"])
    def test_text_is_scored_on_the_very_ids_it_stands_for(
        self, stock: str, folder: Path, mix_rows: list[dict[str, str]], protocol: str
    ) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        encoded = (tokenizer.encode(row["text"][:200]).ids for row in mix_rows[:60])
        texts = [np.array(ids, np.int32) for ids in encoded if 2 <= len(ids) <= 127]
        assert len(texts) > 10
        by_text, version, _ = start(stock, send="text", protocol=protocol, tokenizer=str(folder))
        by_ids, _, _ = start(stock)
        assert version.endswith(f", {protocol} of text")
        assert_close(by_text.score(texts, lambda n: None), by_ids.score(texts, lambda n: None))
        pieces = np.concatenate([tokenizer.encode(piece).ids for piece in ("th", "e")]).astype(np.int32)
        with pytest.raises(ScorerError, match=r"sequence 1 \(\d+ tokens\) has no text"):
            by_text.score([texts[0], pieces], lambda n: None)
