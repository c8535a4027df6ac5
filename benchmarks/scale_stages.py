"""What the stages beside scoring cost on one core: planning's pass over the corpus, tokenising, counting, selecting."""

import gzip
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import scale_job
import workloads

from curator.corpora.jsonl import JsonlCorpus
from curator.corpora.parquet import ParquetCorpus
from curator.manifest import ScoreReceipt
from curator.stages.calibrate import CountStage
from curator.stages.pieces import ShardFiles
from curator.stages.select import SelectStage
from curator.tokens.tokenizer import EncodedDocument, TokensConfig, load_tokenizer

_TOKENIZED_ROWS = 1_500
_TARGET_BYTES = 16_000_000


def measure(template: Path, folder: Path) -> dict[str, float]:
    """Bytes or tokens per second of CPU, by step."""
    job, calibration = scale_job.open_template(template)
    text = (template / "mix.jsonl").read_bytes()
    tokens = job.scores("reference").receipt(0, ScoreReceipt).tokens
    (shard,) = job.plan.shards
    files = ShardFiles(job.tokens, {name: job.scores(name) for name in job.plan.models})
    carried = job.plan.carried_schema().serialize().to_pybytes()
    output = job.curated.model_copy(update={"root": str(folder)})
    select = SelectStage(output, files, job.spec.policy, job.spec.output, carried, calibration.cuts, weights_only=False)
    count = CountStage(files, job.spec.policy)
    found = _tokenize(text)
    found["count_tokens_per_s"] = tokens / _cpu(lambda: count.run(shard, None, lambda _: None))
    found["select_tokens_per_s"] = tokens / _cpu(lambda: select.run(shard, None, lambda _: None))
    return found | _split(text, folder)


def _tokenize(text: bytes) -> dict[str, float]:
    """With the tokenizer of SmolLM2 (49,152 tokens): bytes of text per second, and bytes per token."""
    tokenizer = load_tokenizer(str(workloads.small_model()), None, TokensConfig())
    lines = [_text_of(row) for row in islice(text.splitlines(), _TOKENIZED_ROWS)]
    size = sum(len(line.encode()) for line in lines)
    encoded: list[Any] = []
    spent = _cpu(lambda: encoded.extend(tokenizer.encode(lines)))
    tokens = sum(len(one.input_ids) for one in encoded if isinstance(one, EncodedDocument))
    return {"tokenize_bytes_per_s": size / spent, "text_bytes_per_token": size / tokens}


def _text_of(row: bytes) -> str:
    return str(json.loads(row)["text"])


def _split(text: bytes, folder: Path) -> dict[str, float]:
    """Bytes of text whose places planning finds in a second, by the corpus' format."""
    plain = folder / "mix.jsonl"
    plain.write_bytes(text)
    (folder / "mix.jsonl.gz").write_bytes(gzip.compress(text, 6))
    with pa.CompressedOutputStream(str(folder / "mix.jsonl.zst"), "zstd") as packed:
        packed.write(text)
    table = pa.table({"text": [_text_of(row) for row in islice(text.splitlines(), 2_000)]})
    pq.write_table(table, folder / "mix.parquet", row_group_size=500)
    text_bytes = {"mix.parquet": table.nbytes}
    found = {}
    for path in sorted(folder.glob("mix.*")):
        columnar = path.suffix == ".parquet"
        corpus = ParquetCorpus(kind="parquet", uri=str(path)) if columnar else JsonlCorpus(kind="jsonl", uri=str(path))
        (source,) = corpus.list_sources()
        spent = min(_cpu(lambda: corpus.split(source, _TARGET_BYTES)) for _ in range(3))  # noqa: B023
        found[f"plan_{path.name.removeprefix('mix.').replace('.', '_')}_bytes_per_s"] = (
            text_bytes.get(path.name, len(text)) / spent
        )
    return found


def _cpu(call: Callable[[], Any]) -> float:
    before = time.process_time()
    call()
    return time.process_time() - before
