"""Cut and weights over 20 million stored tokens, then publishing them: seconds and memory on two processes.

    python benchmarks/selection.py [--tokens 20000000] [--policy '{"kind": "excess_loss"}']

Writes token and score shards of two models to a temporary folder (real text from Python's documentation, made-up ids
and log-probs of the usual spread), then times what `curator select` does on its workers: both passes of the cut,
weights for every token, and publishing the curated shards. Starting the processes is not counted. Wall time is that of
this machine as loaded as it is; CPU seconds are those of all processes.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from curator import tables
from curator.manifest import ShardFolder
from curator.outputs.parquet import ParquetOutput
from curator.plan import ShardRef
from curator.policies import PolicyConfig
from curator.selection.apply import apply_policy
from curator.selection.cuts import Cuts, find_boundaries, find_cuts, merge_counts, merge_ties
from curator.stages.calibrate import CountStage
from curator.stages.pieces import ShardFiles
from curator.stages.select import SelectStage

MODELS = ("reference", "base")
SHARD_TOKENS = 4_000_000
ROW_TOKENS = 1_100  # mean of the corpus mix
WORKERS = 2
RESULTS = Path(__file__).parent / "results" / "selection.json"
LIMITS = {"cut and weights": 5.0, "publish": 15.0}


def write_shard(files: ShardFiles, number: int, tokens: int) -> int:
    """Write one shard's token and score files; returns its tokens."""
    generator = np.random.default_rng(number)
    text = "".join(topics.values())
    uris = [files.tokens.uri(number), *(files.scores[model].uri(number) for model in MODELS)]
    schemas = [tables.token_schema(pa.schema([])), *(tables.score_schema(()) for _ in MODELS)]
    for uri in uris:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    writers = [tables.open_writer(uri, schema) for uri, schema in zip(uris, schemas, strict=True)]
    rows = written = 0
    while written < tokens:
        lengths = np.minimum(
            generator.lognormal(np.log(ROW_TOKENS) - 0.5, 1, tables.ROW_GROUP_TOKENS // ROW_TOKENS), 20_000
        )
        offsets = np.cumsum([0, *lengths.astype(np.int64) + 1])
        writers[0].write_table(make_tokens(generator, offsets, rows, text))
        base_T = -generator.exponential(2.2, offsets[-1])
        for writer, logprobs_T in zip(
            writers[1:], (base_T + generator.normal(0.1, 0.4, len(base_T)), base_T), strict=True
        ):
            stored_T = np.minimum(logprobs_T, 0).astype(np.float16)
            stored_T[offsets[:-1]] = np.nan
            writer.write_table(pa.table([tables.list_array(stored_T, offsets)], schema=writer.schema))
        rows, written = rows + len(lengths), written + int(offsets[-1])
    for writer in writers:
        writer.close()
    return written


def make_tokens(generator: np.random.Generator, offsets: np.ndarray, first_row: int, text: str) -> pa.Table:
    """One row group of tokens, four bytes of text each, ids spread as word frequencies are."""
    count, rows = int(offsets[-1]), len(offsets) - 1
    starts = generator.integers(0, len(text) - 100_000, rows)
    columns = {
        "doc_id": [f"mix.jsonl:{first_row + row}" for row in range(rows)],
        "source": [f"source_{i}" for i in generator.integers(0, 10, rows)],
        "text": [text[s : s + 4 * n] for s, n in zip(starts, np.diff(offsets), strict=True)],
        "input_ids": tables.list_array(np.minimum(generator.zipf(1.3, count), 49_151).astype(np.int32), offsets),
        "token_bytes": tables.list_array(np.minimum(generator.poisson(3, count) + 1, 20).astype(np.int32), offsets),
    }
    return pa.table(columns, schema=tables.token_schema(pa.schema([])))


def count_shard(stage: CountStage, shard: ShardRef) -> Any:
    """One pass of the cut, as a worker does it."""
    return stage.run(shard, None, lambda _: None)


def weigh_shard(files: ShardFiles, policy: Any, cuts: Cuts, shard: ShardRef) -> tuple[int, int]:
    """Weigh every token of a shard; scored and kept tokens."""
    scored = kept = 0
    for piece in files.pieces(shard.number, policy):
        score_T, weights_T = apply_policy(policy, piece, cuts.by_scope)
        scored += len(score_T) - int(np.isnan(score_T).sum())
        kept += int(np.count_nonzero(weights_T))
    return scored, kept


def publish_shard(stage: SelectStage, shard: ShardRef) -> int:
    """Publish a shard; its size in bytes."""
    return stage.run(shard, None, lambda _: None).bytes


def usage() -> tuple[float, int]:
    """CPU seconds and peak resident bytes of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def calibrate(run: Callable[..., list[Any]], files: ShardFiles, policy: Any) -> Cuts:
    """Both passes, merged as the driver does."""
    counts = merge_counts(part.counts for part in run(count_shard, CountStage(files, policy)))
    boundaries = find_boundaries(policy, counts)
    ties = merge_ties(part.ties for part in run(count_shard, CountStage(files, policy, boundaries)))
    return find_cuts(policy, counts, ties)


def measure(pool: ProcessPoolExecutor, folder: Path, shards: list[ShardRef], files: ShardFiles, policy: Any) -> Any:
    """Time the phases over shards that are already written."""

    def run(function: Callable[..., Any], *fixed: Any) -> list[Any]:
        return [job.result() for job in [pool.submit(function, *fixed, shard) for shard in shards]]

    cpu, start = total_cpu(pool), time.perf_counter()
    cuts = calibrate(run, files, policy)
    cut_s = time.perf_counter() - start
    weighed = run(weigh_shard, files, policy, cuts)
    weights_s, weights_cpu_s = time.perf_counter() - start, total_cpu(pool) - cpu
    peak = sum(used[1] for used in worker_usage(pool)) + usage()[1]
    cpu, start = total_cpu(pool), time.perf_counter()
    carried = pa.schema([]).serialize().to_pybytes()
    output = ParquetOutput(uri=str(folder))
    curated = ShardFolder(root=str(folder), name="curated")
    sizes = run(publish_shard, SelectStage(curated, files, policy, output, carried, cuts, False))
    publish_s, publish_cpu_s = time.perf_counter() - start, total_cpu(pool) - cpu
    scored, kept = (sum(counts) for counts in zip(*weighed, strict=True))
    return {
        "tokens": sum(shard.tokens for shard in shards), "scored": scored, "kept_share": kept / scored,
        "cut_s": cut_s, "cut and weights_s": weights_s, "cut and weights_cpu_s": weights_cpu_s,
        "cut and weights_peak_bytes": peak, "publish_s": publish_s, "publish_cpu_s": publish_cpu_s,
        "published_bytes": sum(sizes),
    }  # fmt: skip


def worker_usage(pool: ProcessPoolExecutor) -> list[tuple[float, int]]:
    """`usage` of each worker: each is kept busy a moment, so that every one answers."""
    answers = dict(job.result() for job in [pool.submit(slow_usage) for _ in range(WORKERS)])
    return list(answers.values())


def slow_usage() -> tuple[int, tuple[float, int]]:
    used = usage()
    time.sleep(0.3)
    return os.getpid(), used


def total_cpu(pool: ProcessPoolExecutor) -> float:
    return sum(used[0] for used in worker_usage(pool)) + usage()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--policy", default='{"kind": "excess_loss", "keep": 0.6}')
    arguments = parser.parse_args()
    policy = TypeAdapter(PolicyConfig).validate_json(arguments.policy)
    folder = Path(tempfile.mkdtemp())
    scores = {model: ShardFolder(root=str(folder), name=model) for model in MODELS}
    files = ShardFiles(ShardFolder(root=str(folder), name="tokens"), scores)
    count = -(-arguments.tokens // SHARD_TOKENS)
    try:
        with ProcessPoolExecutor(WORKERS, get_context("spawn")) as writers:
            jobs = [writers.submit(write_shard, files, i, arguments.tokens // count) for i in range(count)]
            shards = [ShardRef(number=i, extents=(), tokens=job.result()) for i, job in enumerate(jobs)]
        with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
            worker_usage(pool)
            result = measure(pool, folder, shards, files, policy)
    finally:
        shutil.rmtree(folder)
    print(f"{result['scored']:,} scored tokens, kept {result['kept_share']:.5%}")
    for phase, limit in LIMITS.items():
        wall_s, cpu_s = result[f"{phase}_s"], result[f"{phase}_cpu_s"]
        print(f"{phase:<16} {wall_s:5.1f} s wall, {cpu_s:5.1f} s CPU (limit {limit:.0f} s)")
    print(f"peak memory of all processes {result['cut and weights_peak_bytes'] / 2**20:,.0f} MiB (limit 1,024 MiB)")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"policy": policy.model_dump(mode="json"), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
