"""`curator run` over the sample of the mix, as a user starts it, for `scoring.py`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REFERENCE = "reference"


def write_job(folder: Path, texts: list[str], model: str, threads: int) -> Path:
    """Corpus and spec: the engine under test as reference, the bigram model, which costs nothing, as base."""
    folder.mkdir(parents=True)
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    spec = {
        "name": "benchmark",
        "corpus": {"kind": "jsonl", "uri": str(folder / "corpus.jsonl"), "id_field": "id"},
        "models": {
            REFERENCE: {"engine": "vllm", "model": model, "dtype": "bfloat16"},
            "base": {"engine": "bigram", "model": "unigram"},
        },
        "policy": {"kind": "excess_loss", "keep": 0.6},
        "output": {"uri": str(folder / "dataset")},
        "run": {"workers": 1, "threads_per_worker": threads},
    }
    (folder / "spec.yaml").write_text(json.dumps(spec))  # JSON is YAML
    return folder / "spec.yaml"


def measure(folder: Path, texts: list[str], model: str, threads: int, limit_s: float) -> dict[str, Any]:
    """Run the job; tokens, wall time, and rates by the receipts, which leave out the start of Ray and of the engine."""
    spec = write_job(folder, texts, model, threads)
    command = [str(Path(sys.executable).parent / "curator"), "run", str(spec)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    started = time.monotonic()
    with (folder / "log").open("wb") as log:
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {limit_s:.0f} s"}
    wall_s = time.monotonic() - started
    if done.returncode:
        return {"error": f"exit {done.returncode}: {(folder / 'log').read_text(errors='replace').strip()[-300:]}"}
    return read_receipts(folder / "dataset") | {"wall_s": wall_s}


def read_receipts(output: Path) -> dict[str, Any]:
    """Tokens, and tokens per second of the scoring stage and of all stages together."""
    from curator.job import Job
    from curator.manifest import CuratedReceipt, Receipt, ScoreReceipt, TokenReceipt
    from curator.plan import read_plan
    from curator.spec import load_spec

    plan = read_plan(str(output))
    assert plan is not None, f"{output} holds no plan"
    job = Job(load_spec(str(output.parent / "spec.yaml")), plan)
    stages: dict[str, tuple[Any, type[Receipt]]] = {
        "tokenize": (job.tokens, TokenReceipt),
        "score": (job.scores(REFERENCE), ScoreReceipt),
        "score base": (job.scores("base"), ScoreReceipt),
        "select": (job.curated, CuratedReceipt),
    }
    receipts = {name: [folder.receipt(n, kind) for n in folder.published()] for name, (folder, kind) in stages.items()}
    seconds = {name: sum(one.seconds for one in found) for name, found in receipts.items()}
    tokens = sum(one.tokens for one in receipts["score"])
    return {
        "tokens": tokens, "seconds": seconds,
        "score_tokens_per_s": tokens / seconds["score"], "all_stages_tokens_per_s": tokens / sum(seconds.values()),
        "worker_peak_bytes": max(one.peak_memory_bytes for one in receipts["score"]),
    }  # fmt: skip
