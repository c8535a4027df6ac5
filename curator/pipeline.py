"""The whole story: from a spec to a published dataset.

    plan -> tokenize -> score, per model -> calibrate -> select -> publish

Every step skips what is already there, so running the same command again resumes, and a finished job returns at once.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from curator import cluster, storage
from curator.cluster import ShardFailure, open_pool, raise_failures
from curator.errors import OutputError, ShardError
from curator.job import CALIBRATION, Calibration, Job
from curator.manifest import MANIFEST, LostShard, Manifest, ShardFolder, TokenReceipt, read_manifest
from curator.plan import PLAN, Plan, ShardRef, check_same_spec, open_plan, read_plan
from curator.progress import Reporter, Silent
from curator.publish import publish_dataset
from curator.spec import CurationSpec, parse_spec
from curator.stages.calibrate import calibrate
from curator.stages.score import ScoreStage
from curator.stages.select import SelectStage
from curator.stages.tokenize import TokenizeStage


def curate(spec: CurationSpec, reporter: Reporter | None = None) -> Manifest:
    """Run a job to its end, or resume it.

    Args:
        spec: what to do.
        reporter: hears of progress; silent by default.

    Returns:
        The manifest of the published dataset.

    Raises:
        CuratorError: of the kind that says what is wrong; whatever was published stays, and the same call resumes.
    """
    job = Job(spec, open_plan(spec), reporter or Silent())
    if storage.exists(storage.join(job.root, MANIFEST)):
        return read_manifest(job.root)
    with cluster.connect(spec.run.address):
        lost = tokenize(job)
        for name in spec.models:
            lost += score(job, name, lost)
        calibration = freeze_calibration(job, lost)
        select_shards(job, calibration)
    return publish_dataset(job, calibration)


def select(directory: str, policy: Any, output: str, *, weights_only: bool = False, reporter: Reporter | None = None,
           run: Any = None) -> Manifest:  # fmt: skip
    """Apply another policy to a finished dataset's stored scores; no model runs, `directory` is not touched.

    Args:
        directory: a finished dataset whose work folder still exists.
        policy: a policy config, or a mapping such as {"kind": "loss", "keep": 0.5}.
        output: folder of the new dataset.
        weights_only: write row-aligned `doc_id` and `token_weights` to `weights/` alone.
        reporter: hears of progress; silent by default.
        run: how to work (`RunConfig` or a mapping); by default as the first run did.

    Returns:
        The new dataset's manifest.

    Raises:
        SpecError: the policy is wrong or needs a model that was not scored.
        OutputError: `directory` is not finished, its scores are gone, or `output` holds something else.
    """
    plan, lost = _selectable(directory)
    changes = {"policy": _as_plain(policy), "output": {**plan.spec["output"], "uri": output}}
    changes["work"] = CurationSpec.model_validate(plan.spec).work_root
    spec = parse_spec({**plan.spec, **changes, **({"run": _as_plain(run)} if run else {})}, "select")
    if spec.output_root == storage.absolute(directory):
        raise OutputError(f"output {output!r} is the dataset itself; choose a new folder")
    plan = plan.model_copy(update={"spec": spec.model_dump(mode="json")})
    job = Job(spec, plan, reporter or Silent(), weights_only)
    _require_shards(job, lost)
    if not storage.write_once(job.root, PLAN, plan.model_dump_json(indent=1).encode()):
        frozen = read_plan(job.root)
        assert frozen is not None
        check_same_spec(frozen, spec)
    with cluster.connect(spec.run.address):
        calibration = freeze_calibration(job, list(lost))
        select_shards(job, calibration)
    return publish_dataset(job, calibration)


# ------------------------------------------------------------------------------------------------ the steps


def tokenize(job: Job) -> list[LostShard]:
    """Write every token shard that is not there yet."""
    done = job.tokens.published()
    tasks = [tuple(s for s in group if s.number not in done) for group in job.plan.passes()]
    tasks = [task for task in tasks if task]
    if not tasks:
        return []
    stage = TokenizeStage(job.tokens, job.spec, job.plan)
    with open_pool(job.workers(), len(tasks), job.spec.run.retries) as pool:
        job.reporter.start("tokenize", len(tasks), sum(_tokens(task) for task in tasks))
        failures = pool.map(stage, tasks, reporter=job.reporter, tokens_of=_written, on_result=_forget)
        job.reporter.finish()
    return _accept(job, "tokenize", failures)


def score(job: Job, name: str, lost: Sequence[LostShard]) -> list[LostShard]:
    """Write one model's score shards that are not there yet."""
    folder, config = job.scores(name), job.spec.models[name]
    done = folder.published()
    tasks = [shard for shard in job.shards(tuple(lost)) if shard.number not in done]
    if not tasks:
        return []
    stage = ScoreStage(
        tokens=job.tokens, folder=folder, name=name, config=config, identity=job.plan.models[name],
        has_bos=job.plan.tokenizer.bos_id is not None, threads=job.spec.run.threads_per_worker,
    )  # fmt: skip
    with open_pool(job.workers(config.gpus), len(tasks), job.spec.run.retries) as pool:
        job.reporter.start(f"score {name}", len(tasks), sum(_tokens((task,)) for task in tasks))
        failures = pool.map(
            stage, tasks, reporter=job.reporter, tokens_of=lambda receipt: receipt.tokens, on_result=_forget
        )
        job.reporter.finish()
    return _accept(job, f"score {name}", failures)


def freeze_calibration(job: Job, lost: list[LostShard]) -> Calibration:
    """Take the cuts over all shards and freeze them, with the shards that are missing, before any shard is cut."""
    frozen = job.read_calibration()
    if frozen is None:
        calibration = Calibration(cuts=calibrate(job, job.shards(tuple(lost))), lost=tuple(lost))
        storage.write_once(job.root, CALIBRATION, calibration.model_dump_json().encode())
        frozen = job.read_calibration()
        assert frozen is not None
    return frozen


def select_shards(job: Job, calibration: Calibration) -> None:
    """Write every curated shard that is not there yet."""
    done = job.curated.published()
    tasks = [shard for shard in job.shards(calibration.lost) if shard.number not in done]
    if not tasks:
        return
    stage = SelectStage(job.curated, job.tokens, _score_folders(job), job.spec, job.plan, calibration.cuts)
    with open_pool(job.workers(), len(tasks), job.spec.run.retries) as pool:
        job.reporter.start("select", len(tasks), sum(_tokens((task,)) for task in tasks))
        failures = pool.map(
            stage, tasks, reporter=job.reporter, tokens_of=lambda receipt: receipt.tokens, on_result=_forget
        )
        job.reporter.finish()
    raise_failures("select", failures, _describe)


def _score_folders(job: Job) -> dict[str, ShardFolder]:
    return {name: job.scores(name) for name in job.spec.models}


def _accept(job: Job, stage: str, failures: Sequence[ShardFailure[Any]]) -> list[LostShard]:
    """Fail the job for shards that failed for good, or, if the spec says so, go on without them."""
    if job.spec.on_bad_shard == "fail":
        raise_failures(stage, failures, _describe)
    lost = []
    for failure in failures:
        shards = failure.task if isinstance(failure.task, tuple) else (failure.task,)
        lost += [LostShard(number=s.number, stage=stage, reason=str(failure.failure.error)) for s in shards]
    if lost and len(lost) == len(job.plan.shards):
        raise ShardError(f"{stage}: every shard failed, the first with: {lost[0].reason}")
    return lost


def _describe(task: Any) -> str:
    shards: tuple[ShardRef, ...] = task if isinstance(task, tuple) else (task,)
    return "shard " + ", ".join(f"{shard.number:05d}" for shard in shards)


def _tokens(task: tuple[ShardRef, ...]) -> int:
    return sum(shard.tokens for shard in task)


def _written(receipts: list[TokenReceipt]) -> int:
    return sum(receipt.tokens for receipt in receipts)


def _forget(result: Any) -> None:
    """What a stage published is read back from its receipts, so that a resumed run sees the same."""


# ------------------------------------------------------------------------------------------------ selecting again


def _selectable(directory: str) -> tuple[Plan, tuple[LostShard, ...]]:
    manifest, plan = read_manifest(directory), read_plan(directory)
    if plan is None:
        raise OutputError(f"{directory!r} has no {PLAN}; select needs the folder that `curator run` made, not a copy")
    return plan, manifest.lost_shards


def _require_shards(job: Job, lost: tuple[LostShard, ...]) -> None:
    wanted = {shard.number for shard in job.shards(lost)}
    for folder in [job.tokens, *_score_folders(job).values()]:
        missing = sorted(wanted - folder.published())
        if missing:
            where = storage.join(folder.root, folder.name)
            raise OutputError(f"{where!r} lacks shard {missing[0]:05d}; its stored scores are gone, run the job again")


def _as_plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
