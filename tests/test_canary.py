"""Engines that drift or die: nothing they say is published, their process is replaced, the shards come out the same."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator import Manifest, curate, parse_spec, verify
from curator.cluster import Workers, connect
from curator.data import IntArray, ModelIdentity, Scorer, TokenScores
from curator.errors import EngineDied, EngineDrifted, ScorerError, ShardError
from curator.frozen import open_plan
from curator.job import Job
from curator.manifest import ScoreReceipt, ShardFolder
from curator.plan import ShardRef
from curator.progress import Silent
from curator.scorers.bigram import BigramModel
from curator.stages.canary import CANARY, Canary, StoredCanary, tolerance_nats
from curator.stages.score import ScoreStage
from curator.tokens.canary_text import CANARY_TEXT, encode_canary
from curator.tokens.tokenizer import TokensConfig, load_tokenizer
from curator.worker import ShardFailure, raise_failures

MakeSpec = Callable[..., dict[str, Any]]
RAY = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


@dataclass
class Shifted:
    """The bigram engine, off by some nats per token; `shift` may be set while it runs."""

    engine: Scorer
    shift: float = 0.0

    def score(self, sequences: Sequence[IntArray], on_tokens: Callable[[int], None]) -> list[TokenScores]:
        return [TokenScores(s.logprobs_T + np.float32(self.shift)) for s in self.engine.score(sequences, on_tokens)]

    def notes(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def canary_ids() -> IntArray:
    return encode_canary(load_tokenizer(BigramModel().tokenizer_source(), None, TokensConfig()))


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    return ShardFolder(root=str(tmp_path), name="key/scores/key")


def identify(**changes: Any) -> ModelIdentity:
    return BigramModel().identify().model_copy(update=changes)


def make_engine(shift: float = 0.0) -> Shifted:
    model = BigramModel()
    return Shifted(model.build(model.identify(), 1), shift)


def stored(folder: ShardFolder) -> Path:
    return Path(folder.root) / folder.name / CANARY


def test_the_first_engine_stores_its_scores_and_a_sound_one_reproduces_them(
    folder: ShardFolder, canary_ids: IntArray
) -> None:
    engine = make_engine()
    Canary(canary_ids, folder, "reference", identify()).check(engine)
    content = stored(folder).read_bytes()
    record = StoredCanary.model_validate_json(content)
    (scores,) = engine.score([canary_ids], lambda _: None)
    assert list(record.ids) == canary_ids.tolist() and record.logprobs == tuple(scores.logprobs_T[1:].tolist())
    other = Canary(canary_ids, folder, "reference", identify())
    other.check(make_engine())
    other.check(make_engine())
    assert stored(folder).read_bytes() == content
    assert folder.published() == folder.receipts() == set()


@pytest.mark.parametrize(("dtype", "harmless"), [("float32", 5e-4), ("bfloat16", 0.03), ("float16", 0.03)])
def test_a_drift_is_what_the_dtype_does_not_explain(
    folder: ShardFolder, canary_ids: IntArray, dtype: str, harmless: float
) -> None:
    canary = Canary(canary_ids, folder, "reference", identify(dtype=dtype))
    engine = make_engine()
    canary.check(engine)
    engine.shift = harmless
    canary.check(engine)
    engine.shift = -2 * tolerance_nats(dtype)
    with pytest.raises(
        EngineDrifted, match=rf"'reference' on .* drifted: .*off by .* nats on average.*{dtype}"
    ) as caught:
        canary.check(engine)
    assert caught.value.retryable


@pytest.mark.parametrize("shift", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_never_stored(folder: ShardFolder, canary_ids: IntArray, shift: float) -> None:
    with pytest.raises(EngineDrifted, match=r"gave log-prob (nan|inf) for token 1 of the canary text"):
        Canary(canary_ids, folder, "reference", identify()).check(make_engine(shift))
    assert not stored(folder).exists()


def test_a_stored_canary_of_other_tokens_is_an_error_that_no_retry_mends(
    folder: ShardFolder, canary_ids: IntArray
) -> None:
    Canary(canary_ids, folder, "reference", identify()).check(make_engine())
    with pytest.raises(
        ScorerError, match=r"canary\.json' holds the canary of other tokens.*remove this file"
    ) as caught:
        Canary(canary_ids[1:], folder, "reference", identify()).check(make_engine())
    assert not caught.value.retryable


@pytest.mark.parametrize("length", [0, 1])
def test_without_two_tokens_there_is_no_canary(folder: ShardFolder, canary_ids: IntArray, length: int) -> None:
    Canary(canary_ids[:length], folder, "reference", identify()).check(make_engine(float("nan")))
    assert not stored(folder).exists()


def test_the_canary_fits_any_context(folder: ShardFolder, canary_ids: IntArray) -> None:
    Canary(canary_ids, folder, "reference", identify(context=7)).check(make_engine())
    assert len(StoredCanary.model_validate_json(stored(folder).read_bytes()).ids) == 7 < len(canary_ids)


def test_the_text_holds_every_kind_and_is_never_changed(canary_ids: IntArray) -> None:
    """Stored scores of older runs are of this very text: a change would stop them from being resumed."""
    import hashlib

    assert hashlib.sha256(CANARY_TEXT.encode()).hexdigest()[:16] == "599b086ac8dc923b"
    assert 100 <= len(canary_ids) <= 300


# ------------------------------------------------------------------------------------------------ in a real cluster


@dataclass(frozen=True)
class FaultyModel:
    """The bigram model with an engine that goes wrong when it scores its second shard: once, or in every process."""

    fault: str
    marker: Path
    always: bool = False
    features: tuple[str, ...] = ()

    def build(self, identity: ModelIdentity, threads: int) -> Scorer:
        return FaultyEngine(self, BigramModel().build(identity, threads))


class FaultyEngine:
    """Calls are: canary, shard, canary, shard, canary, ..."""

    def __init__(self, model: FaultyModel, engine: Scorer) -> None:
        self.model, self.engine, self.calls, self.broken = model, engine, 0, False

    def score(self, sequences: Sequence[IntArray], on_tokens: Callable[[int], None]) -> list[TokenScores]:
        self.calls += 1
        if self.calls >= (2 if self.model.always else 4) and (self.model.always or self._first_of_all()):
            self.broken = True
        if not self.broken:
            return self.engine.score(sequences, on_tokens)
        if self.model.fault == "died":
            raise EngineDied("the engine core is gone")
        if self.model.fault == "crashed":
            raise RuntimeError("device-side assert")
        return [TokenScores(s.logprobs_T - np.float32(0.25)) for s in self.engine.score(sequences, on_tokens)]

    def notes(self) -> dict[str, Any]:
        return {}

    def _first_of_all(self) -> bool:
        try:
            with self.model.marker.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return False
        return True


class Recorder(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def back_to_tokens(directory: Path) -> None:
    for name in ("manifest.json", "calibration.json", "README.md", "report.html"):
        (directory / name).unlink()
    shutil.rmtree(directory / "curated")
    for scores in directory.glob("*/scores"):
        shutil.rmtree(scores)


def score_with(model: FaultyModel, job: Job, retries: int) -> tuple[list[ShardFailure[ShardRef]], Recorder]:
    """What `curate` does for the reference, but with this model's engine."""
    stage = ScoreStage(
        tokens=job.tokens, folder=job.scores("reference"), name="reference", config=model,  # type: ignore[arg-type]
        identity=job.plan.models["reference"], has_bos=False, special=TokensConfig(), canary=job.plan.canary, threads=1,
    )  # fmt: skip
    recorder = Recorder()
    with connect("local", retries) as cluster:
        pool = cluster.pool(Workers(count=2), len(job.plan.shards))
        failures = pool.map(
            stage, list(job.plan.shards), reporter=recorder, tokens_of=lambda r: r.tokens, on_result=lambda _: None
        )
    return failures, recorder


def wait_for_end(pid: int) -> bool:
    """Whether a process is gone, or about to be: the kernel keeps its name until its parent has asked."""
    for _ in range(50):
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


class TestInACluster:
    pytestmark = RAY

    @pytest.mark.parametrize(
        ("fault", "said"),
        [("drifted", "drifted: its scores"), ("died", "the engine core is gone"), ("crashed", "device-side assert")],
    )
    def test_a_faulty_engine_is_replaced_and_the_shards_come_out_the_same(
        self, make_spec: MakeSpec, tmp_path: Path, fault: str, said: str
    ) -> None:
        spec = parse_spec(make_spec(shard_tokens=15_000))
        expected: Manifest = curate(spec)
        back_to_tokens(tmp_path / "out")
        job = Job(spec, open_plan(spec))
        model = FaultyModel(fault, tmp_path / "marker")
        failures, recorder = score_with(model, job, retries=1)
        assert failures == []
        assert len(recorder.said) == 1 and said in recorder.said[0] and "trying again" in recorder.said[0]
        faulty = int(model.marker.read_text())
        assert wait_for_end(faulty)
        folder = job.scores("reference")
        receipts = [folder.receipt(shard.number, ScoreReceipt) for shard in job.plan.shards]
        by_faulty = [receipt for receipt in receipts if receipt.worker.endswith(f":{faulty}")]
        assert len(by_faulty) == 1  # the one before its fault
        assert curate(spec) == expected and verify(str(tmp_path / "out")) == []

    def test_an_engine_that_always_drifts_fails_the_job_and_publishes_nothing(
        self, make_spec: MakeSpec, tmp_path: Path
    ) -> None:
        spec = parse_spec(make_spec(rows=40, shard_tokens=30_000))
        curate(spec)
        back_to_tokens(tmp_path / "out")
        job = Job(spec, open_plan(spec))
        failures, _ = score_with(FaultyModel("drifted", tmp_path / "marker", always=True), job, retries=1)
        assert len(failures) == len(job.plan.shards) > 1 and {failure.attempts for failure in failures} == {2}
        assert job.scores("reference").published() == set()
        with pytest.raises(ShardError, match=r"score: \d+ shards failed[\s\S]*'reference' on .* drifted"):
            raise_failures("score", failures, lambda shard: f"shard {shard.number:05d}")

    def test_a_job_against_other_stored_scores_names_the_drift_and_what_to_remove(
        self, make_spec: MakeSpec, tmp_path: Path
    ) -> None:
        spec = parse_spec(make_spec(rows=20))
        expected = curate(spec)
        folder = Job(spec, open_plan(spec)).scores("reference")
        content = json.loads(stored(folder).read_bytes())
        back_to_tokens(tmp_path / "out")
        content["logprobs"] = [value - 0.1 for value in content["logprobs"]]
        stored(folder).parent.mkdir(parents=True)
        stored(folder).write_text(json.dumps(content))
        with pytest.raises(EngineDrifted, match=r"off by 0\.1 nats on average.*remove the folder '.*scores/"):
            curate(spec)
        assert folder.published() == set()
        shutil.rmtree(stored(folder).parent)
        assert curate(spec) == expected
