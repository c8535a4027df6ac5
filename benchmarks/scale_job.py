"""Jobs of any number of shards that were never run: the plan, receipts and files that a real one would have left.

Everything is copied from one real shard, which the real stages made here of the real corpus: its receipts with other
numbers, its files as hard links. So a job of 100,000 shards has the true sizes of all that a driver reads, and takes
minutes and a few gigabytes to make instead of a GPU cluster and two terabytes.
"""

import gzip
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from curator import parse_spec
from curator.data import Extent, SourceFile, Split
from curator.frozen import write_plan
from curator.job import Calibration, Job
from curator.manifest import RECEIPTS, ScoreReceipt, ShardFolder
from curator.plan import Plan, ShardRef, _cut_shards, make_plan, read_plan
from curator.selection.cuts import find_boundaries, find_cuts
from curator.stages.calibrate import Counted, CountStage
from curator.stages.pieces import ShardFiles
from curator.stages.score import ScoreStage
from curator.stages.select import SelectStage
from curator.stages.tokenize import TokenizeStage

SHARD_TOKENS = 4_000_000
_SHARDS_PER_FILE = 64
_LINKS = 10_000  # of one inode: file systems allow 65,000 or fewer


def spec_of(folder: Path, corpus: str) -> dict[str, Any]:
    """Two models of the engine that costs nothing, and the policy that needs both passes of calibration."""
    return {
        "name": "scale",
        "corpus": {"kind": "jsonl", "uri": corpus, "source_field": "source", "id_field": "id"},
        "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
        "policy": {"kind": "excess_loss", "keep": 0.6},
        "output": {"uri": str(folder)},
        "shard_tokens": SHARD_TOKENS,
    }


# ------------------------------------------------------------------------------------------------ one real shard


def make_template(folder: Path, data: Path, shard_tokens: int = SHARD_TOKENS) -> Job:
    """Run every stage on the first shard of the mix, in this process; `counted.pickle`: what calibrating counts."""
    folder.mkdir(parents=True)
    corpus = folder / "mix.jsonl"
    with gzip.open(data / "corpus" / "mix.jsonl.gz", "rb") as packed, corpus.open("wb") as plain:
        for line in packed:
            plain.write(line)
            if plain.tell() > 6 * shard_tokens:
                break
    spec = parse_spec(spec_of(folder / "out", str(corpus)) | {"shard_tokens": shard_tokens}, "template")
    plan = make_plan(spec)
    plan = plan.model_copy(update={"shards": plan.shards[:1]})
    write_plan(str(folder / "out"), plan)
    job = Job(spec, plan)
    calibration = _run_stages(job, folder)
    (folder / "calibration.json").write_text(calibration.model_dump_json())
    return job


def _run_stages(job: Job, folder: Path) -> Calibration:
    def run(stage: Any, task: Any) -> Any:
        stage.open()
        return stage.run(task, stage.load(task), lambda _: None)

    plan, spec = job.plan, job.spec
    (shard,) = plan.shards
    run(TokenizeStage(job.tokens, spec, plan), (shard,))
    for name, config in spec.models.items():
        run(
            ScoreStage(
                tokens=job.tokens, folder=job.scores(name), name=name, config=config, identity=plan.models[name],
                has_bos=plan.tokenizer.bos_id is not None, special=spec.tokens, canary=plan.canary, threads=1,
            ),
            shard,
        )  # fmt: skip
    files = ShardFiles(job.tokens, {name: job.scores(name) for name in spec.models})
    first: Counted = run(CountStage(files, spec.policy), shard)
    second: Counted = run(CountStage(files, spec.policy, find_boundaries(spec.policy, first.counts)), shard)
    (folder / "counted.pickle").write_bytes(pickle.dumps((first, second)))
    cuts = find_cuts(spec.policy, first.counts, second.ties)
    carried = plan.carried_schema().serialize().to_pybytes()
    run(SelectStage(job.curated, files, spec.policy, spec.output, carried, cuts, weights_only=False), shard)
    return Calibration(cuts=cuts)


def open_template(folder: Path) -> tuple[Job, Calibration]:
    """What `make_template` left."""
    plan = Plan.model_validate_json((folder / "out" / "plan.json").read_bytes())
    calibration = Calibration.model_validate_json((folder / "calibration.json").read_bytes())
    return Job(parse_spec(plan.spec, "template"), plan), calibration


# ------------------------------------------------------------------------------------------------ as many as wanted


class Evenly:
    """A corpus whose files need not be there: each splits into `per_file` equal extents, as plain jsonl does."""

    def __init__(self, per_file: int, rows: int) -> None:
        self._per_file, self._rows = per_file, rows

    def split(self, source: SourceFile, target_bytes: int) -> Split:
        """Equal parts."""
        size = source.size_bytes // self._per_file
        return Split(
            [
                Extent(source=0, start=i * size, stop=(i + 1) * size, first_row=i * self._rows, size_bytes=size)
                for i in range(self._per_file)
            ]
        )


def sources_of(shards: int, shard_bytes: int) -> list[SourceFile]:
    """The files of a corpus of so many shards, 64 in each."""
    files = -(-shards // _SHARDS_PER_FILE)
    return [
        SourceFile(
            uri=f"/corpus/part-{i:06d}.jsonl", path=f"part-{i:06d}.jsonl",
            size_bytes=shard_bytes * min(_SHARDS_PER_FILE, shards), fingerprint=f"mtime:{1_700_000_000 + i}.5",
        )
        for i in range(files)
    ]  # fmt: skip


def cut(template: Plan, shards: int) -> tuple[list[SourceFile], list[ShardRef]]:
    """The planner's own packing, over files of which it is told where lines end."""
    size = template.shards[0].extents[0].size_bytes
    sources = sources_of(shards, size)
    found, _ = _cut_shards(Evenly(min(_SHARDS_PER_FILE, shards), 2_500), sources, size, template.bytes_per_token)  # type: ignore[arg-type]
    return sources, found[:shards]


def open_or_make_job(folder: Path, template: Job, shards: int) -> Job:
    """The folder of a job that has published all its shards and is about to publish the dataset."""
    spec = parse_spec(spec_of(folder, template.spec.corpus.uri), "scale")
    if (frozen := read_plan(str(folder))) is not None:
        return Job(spec, frozen)
    sources, refs = cut(template.plan, shards)
    update = {"spec": template.plan.spec | {"output": {**template.plan.spec["output"], "uri": str(folder)}}}
    plan = template.plan.model_copy(update=update | {"sources": tuple(sources), "shards": tuple(refs)})
    job = Job(spec, plan)
    for made, of in _folders(job, template):
        _copy(made, of, shards)
    write_plan(str(folder), plan)
    return job


def _folders(job: Job, template: Job) -> Iterator[tuple[ShardFolder, ShardFolder]]:
    yield job.tokens, template.tokens
    for name in job.plan.models:
        yield job.scores(name), template.scores(name)
    yield job.curated, template.curated


def _copy(made: ShardFolder, of: ShardFolder, shards: int) -> None:
    folder = Path(made.root) / made.name
    (folder / RECEIPTS).mkdir(parents=True)
    before, after = Path(of.root, of.receipt_file(0)).read_text().split('"number":0,', 1)
    shard = Path(of.root, of.file(0))
    for number in range(shards):
        if number % _LINKS == 0:
            shard = Path(shutil.copy(shard, folder / f"template-{number}"))
        os.link(shard, folder / f"{number:05d}.parquet")
        (folder / RECEIPTS / f"{number:05d}.json").write_text(f'{before}"number":{number},{after}')


def sizes(job: Job) -> dict[str, float]:
    """Bytes of the receipts and of the files of shard 0."""
    folders: Sequence[tuple[str, ShardFolder]] = [
        ("tokens", job.tokens), *((f"scores {name}", job.scores(name)) for name in job.plan.models),
        ("curated", job.curated),
    ]  # fmt: skip
    found = {f"{name} receipt": Path(f.root, f.receipt_file(0)).stat().st_size for name, f in folders}
    return found | {f"{name} shard": Path(f.root, f.file(0)).stat().st_size for name, f in folders}


def score_receipt(job: Job) -> ScoreReceipt:
    """What a worker answers for a scored shard."""
    return job.scores("reference").receipt(0, ScoreReceipt)
