"""Peak memory of a worker over a small and a large corpus: it must depend on the row group, not on the corpus.

    python benchmarks/memory.py --data FOLDER_WITH_corpus/mix.jsonl.gz

Runs the whole job with the bigram engine, whose own memory is negligible, on the first 10 MB of the mix and on all of
it (plain jsonl, one worker, the default shard size), and prints each stage's peak, from the receipts.
"""

import argparse
import gzip
import json
import shutil
import tempfile
from pathlib import Path

from curator import curate, parse_spec
from curator.job import Job
from curator.manifest import CuratedReceipt, Receipt, ScoreReceipt, ShardFolder, TokenReceipt
from curator.plan import read_plan

SMALL_BYTES = 10_000_000
RESULTS = Path(__file__).parent / "results" / "memory.json"


def run(corpus: Path, folder: Path) -> dict[str, int]:
    """Run the job; peak resident bytes of the workers by stage."""
    spec = parse_spec(
        {
            "name": "memory",
            "corpus": {"kind": "jsonl", "uri": str(corpus), "id_field": "id"},
            "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
            "policy": {"kind": "excess_loss", "keep": 0.6},
            "output": {"uri": str(folder)},
            "run": {"workers": 1},
        }
    )
    curate(spec)
    plan = read_plan(str(folder))
    assert plan is not None
    job = Job(spec, plan)
    stages: dict[str, tuple[ShardFolder, type[Receipt]]] = {
        "tokenize": (job.tokens, TokenReceipt),
        "score": (job.scores("reference"), ScoreReceipt),
        "select": (job.curated, CuratedReceipt),
    }
    return {
        name: max(folder.receipt(number, kind).peak_memory_bytes for number in folder.published())
        for name, (folder, kind) in stages.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    data = parser.parse_args().data
    folder = Path(tempfile.mkdtemp())
    try:
        large, small = folder / "large.jsonl", folder / "small.jsonl"
        with gzip.open(data / "corpus" / "mix.jsonl.gz") as packed, large.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
        with large.open("rb") as source, small.open("wb") as target:
            while target.tell() < SMALL_BYTES:
                target.write(source.readline())
        peaks = {path.stem: run(path, folder / path.stem) for path in (small, large)}
    finally:
        sizes = {path.stem: path.stat().st_size for path in (small, large)}
        shutil.rmtree(folder)
    print(f"{'stage':<10}{'small, MiB':>12}{'large, MiB':>12}{'growth':>9}")
    for stage, small_bytes in peaks["small"].items():
        large_bytes = peaks["large"][stage]
        print(
            f"{stage:<10}{small_bytes / 2**20:>12.0f}{large_bytes / 2**20:>12.0f}{large_bytes / small_bytes - 1:>9.1%}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"corpus_bytes": sizes, "peak_bytes": peaks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
