"""A whole job whose reference is served by vLLM on Ray workers, with an engine killed in its midst."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curator import curate, parse_spec, verify
from curator.frozen import open_plan
from curator.job import Job
from curator.manifest import ScoreReceipt

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore")]

ROWS, SHARD_TOKENS = 60, 20_000


def kill_the_first_worker(job: Job, killed: list[int]) -> None:
    """SIGKILL the process that made the first score shard, as soon as that is published."""
    folder = job.scores("reference")
    while not killed:
        for number in folder.published():
            killed.append(int(folder.receipt(number, ScoreReceipt).worker.rpartition(":")[2]))
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.2)


def test_a_job_survives_the_death_of_a_vllm_engine(
    make_spec: Callable[..., dict[str, Any]], tokenized_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = {"enforce_eager": True, "max_num_batched_tokens": 512}
    vllm = {"engine": "vllm", "model": str(tokenized_checkpoint), "context": 128, "features": ["entropy"]}
    models = {
        "reference": vllm | {"engine_args": arguments},
        "base": {"engine": "transformers", "model": str(tokenized_checkpoint), "context": 128},
    }
    spec = parse_spec(make_spec(ROWS, SHARD_TOKENS, models=models, run={"workers": 1}), "test")
    job = Job(spec, open_plan(spec))
    assert len(job.plan.shards) > 1
    assert job.plan.models["reference"].engine_version.endswith(", in_engine")
    killed: list[int] = []
    watcher = threading.Thread(target=kill_the_first_worker, args=(job, killed), daemon=True)
    watcher.start()
    manifest = curate(spec)
    watcher.join(timeout=10)
    assert killed and manifest.totals.rows == ROWS
    assert verify(str(tmp_path / "out")) == []
    folder = job.scores("reference")
    workers = {folder.receipt(number, ScoreReceipt).worker for number in folder.published()}
    assert len(workers) > 1  # the shards after the kill were made by a fresh process
    table = pq.read_table(tmp_path / "out" / "curated")
    ours, theirs = (
        np.concatenate(table.column(f"logprobs_{name}").to_pylist()).astype(np.float32)
        for name in ("reference", "base")
    )
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=2**-10, atol=1e-3, equal_nan=True)  # stored as float16
