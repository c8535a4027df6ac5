"""The whole story: from a spec to a published dataset.

    plan -> tokenize -> score, per model -> calibrate -> select -> publish

Every step skips what is already there, so running the same command again resumes, and a finished job returns at once.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from curator import interrupts, storage, tracing
from curator.cluster import Cluster, Pool, connect
from curator.errors import CorpusError, OutputError, ShardError
from curator.frozen import check_engine, check_same_spec, check_vacant, open_plan, write_plan
from curator.hiding import hide
from curator.job import Calibration, Job
from curator.manifest import (
    CALIBRATION,
    MANIFEST,
    PARTIAL_MANIFEST,
    LostShard,
    Manifest,
    ShardFolder,
    read_manifest,
)
from curator.partial import write_partial_manifest
from curator.plan import PLAN, Plan, ShardRef, read_plan, with_absolute_places
from curator.progress import Reporter, Silent, count_shards
from curator.publish import bad_rows, publish_dataset
from curator.spec import CurationSpec, parse_spec
from curator.stages.calibrate import calibrate
from curator.stages.pieces import ShardFiles
from curator.stages.score import ScoreStage
from curator.stages.select import SelectStage
from curator.stages.tokenize import TokenizeStage, describe_bad_row
from curator.worker import brief, raise_failures


@interrupts.heeded()
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
    with tracing.span("plan"):
        plan = open_plan(spec)
    job = Job(spec, plan, reporter or Silent())
    if storage.exists(storage.join(job.root, MANIFEST)):
        return _finished(job)
    lost = job.shards_given_up()
    job.clear_staging()
    try:
        with connect(spec.run.address, spec.run.retries) as cluster:
            lost += tokenize(job, cluster, lost)
            for name in spec.models:
                lost += score(job, cluster, name, lost)
            _require_any(job, lost)
            calibration = weigh(job, cluster, lost)
        return publish(job, calibration)
    except KeyboardInterrupt:
        interrupts.take()
        write_partial_manifest(job)
        raise


@interrupts.heeded()
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
    changes["work"] = plan.spec["work"] or storage.absolute(directory)
    spec = parse_spec({**plan.spec, **changes, **({"run": _as_plain(run)} if run else {})}, "select")
    if spec.output_root.rstrip("/") == storage.absolute(directory).rstrip("/"):
        raise OutputError(f"output {output!r} is the dataset itself; choose a new folder")
    content = "weights" if weights_only else "dataset"
    job = Job(
        spec, plan.model_copy(update={"spec": with_absolute_places(spec), "content": content}), reporter or Silent()
    )
    _require_shards(job, lost)
    _claim_output(job)
    if storage.exists(storage.join(job.root, MANIFEST)):
        return _finished(job)
    with connect(spec.run.address, spec.run.retries) as cluster:
        calibration = weigh(job, cluster, list(lost))
    return publish(job, calibration)


# ------------------------------------------------------------------------------------------------ the steps


def tokenize(job: Job, cluster: Cluster, lost: Sequence[LostShard] = ()) -> list[LostShard]:
    """Write every token shard that is not there yet."""
    _refuse_bad_rows(job)
    done = job.tokens.published() | {shard.number for shard in lost}
    tasks = [tuple(s for s in group if s.number not in done) for group in job.plan.passes()]
    tasks = [task for task in tasks if task]
    if not tasks:
        return []
    stage = TokenizeStage(job.tokens, job.spec, job.plan)
    return _map(job, cluster.pool(job.workers(), len(tasks)), "tokenize", stage, tasks)


def _refuse_bad_rows(job: Job) -> None:
    """With `on_bad_row: fail`, also what planning or an earlier, more lenient run has found is an error."""
    if job.spec.on_bad_row == "fail":
        for bad in bad_rows(job):
            raise CorpusError(describe_bad_row(bad))


def score(job: Job, cluster: Cluster, name: str, lost: Sequence[LostShard]) -> list[LostShard]:
    """Write one model's score shards that are not there yet."""
    folder, config = job.scores(name), job.spec.models[name]
    done = folder.published()
    tasks = [shard for shard in job.shards(tuple(lost)) if shard.number not in done]
    if not tasks:
        return []
    check_engine(job.plan, job.spec, name)
    stage = ScoreStage(
        tokens=job.tokens, folder=folder, name=name, config=config, identity=job.plan.models[name],
        has_bos=job.plan.tokenizer.bos_id is not None, special=job.spec.tokens, canary=job.plan.canary,
        threads=job.spec.run.threads_per_worker,
    )  # fmt: skip
    return _map(job, cluster.pool(job.workers(config.gpus), len(tasks)), f"score {name}", stage, tasks)


def weigh(job: Job, cluster: Cluster, lost: list[LostShard]) -> Calibration:
    """Find the cuts, freeze them, and write every curated shard that is not there yet."""
    files = ShardFiles(job.tokens, _score_folders(job))
    calibration, done = job.read_calibration(), job.curated.published()
    tasks = job.shards(tuple(lost) if calibration is None else calibration.lost)
    if calibration is not None and len(done) == len(tasks):
        return calibration
    pool = cluster.pool(job.workers(), len(tasks))
    if calibration is None:
        cuts = calibrate(pool, files, job.spec.policy, tasks, job.reporter)
        calibration = freeze_calibration(job, Calibration(cuts=cuts, lost=tuple(lost)))
    stage = SelectStage(
        folder=job.curated, files=files, policy=job.spec.policy, output=job.spec.output,
        carried=job.plan.carried_schema().serialize().to_pybytes(), cuts=calibration.cuts,
        weights_only=job.weights_only,
    )  # fmt: skip
    _map(job, pool, "select", stage, [task for task in tasks if task.number not in done])
    return calibration


@tracing.span("publish")
def publish(job: Job, calibration: Calibration) -> Manifest:
    """Write what makes the shards a dataset: card, report and, last, the manifest."""
    shards = len(job.shards(calibration.lost))
    job.reporter.start("publish", shards, 0)
    manifest = publish_dataset(job, calibration)
    storage.remove(storage.join(job.root, PARTIAL_MANIFEST))  # of an attempt that was cancelled
    job.reporter.update(shards, manifest.totals.tokens, 1)
    job.reporter.finish()
    return manifest


def _finished(job: Job) -> Manifest:
    """The manifest of a dataset that is there; mends what a crash right behind the manifest's creation left undone."""
    manifest = read_manifest(job.root)
    storage.remove(storage.join(job.root, PARTIAL_MANIFEST))
    storage.settle(storage.join(job.root, MANIFEST))
    job.clear_staging()
    return manifest


def freeze_calibration(job: Job, calibration: Calibration) -> Calibration:
    """Keep the cuts and the shards they were taken without, before any shard is cut: a resumed run cannot mix."""
    storage.write_once(job.root, CALIBRATION, calibration.model_dump_json().encode())
    frozen = job.read_calibration()
    assert frozen is not None
    return frozen


def _score_folders(job: Job) -> dict[str, ShardFolder]:
    return {name: job.scores(name) for name in job.spec.models}


def _map(job: Job, pool: Pool, name: str, stage: Any, tasks: Sequence[Any]) -> list[LostShard]:
    """Run a stage that publishes shards; fail the job for shards that failed for good, or accept their loss.

    What is published is read back from receipts, not from results, so that a resumed run sees the same. A shard that
    was scored cannot be lost any more: its place in the cut is taken.
    """
    job.reporter.start(name, len(tasks), sum(shard.tokens for task in tasks for shard in _shards(task)))

    def count(result: Any) -> None:
        for receipt in _receipts(result):
            count_shards(job.reporter, "adopted" if receipt.adopted else "published")

    with tracing.stage(stage, name) as traced:
        failures = pool.map(traced, tasks, reporter=job.reporter, tokens_of=_count_tokens, on_result=count)
    published = stage.folder.published() if failures else set()  # a pass over one file may have got some shards done
    hopeless = job.spec.on_bad_shard == "fail" or name == "select"
    tried = [shard.number for failure in failures for shard in _shards(failure.task)]
    count_shards(job.reporter, "published", sum(number in published for number in tried))
    count_shards(job.reporter, "failed" if hopeless else "lost", sum(number not in published for number in tried))
    job.reporter.finish()
    if hopeless:
        raise_failures(name, failures, _describe)
    lost = [
        LostShard(number=shard.number, stage=name, reason=hide(brief(str(failure.failure.error))))
        for failure in failures
        for shard in _shards(failure.task)
        if shard.number not in published
    ]
    for shard in lost:
        job.reporter.say(f"{name}: shard {shard.number:05d} is left out: {shard.reason}")
    return lost


def _require_any(job: Job, lost: Sequence[LostShard]) -> None:
    if lost and not job.shards(tuple(lost)):
        raise ShardError(
            f"{lost[0].stage}: every shard failed, the first with: {lost[0].reason}; run the same command to try again"
        )


def _shards(task: Any) -> tuple[ShardRef, ...]:
    return task if isinstance(task, tuple) else (task,)


def _receipts(result: Any) -> list[Any]:
    return result if isinstance(result, list) else [result]


def _count_tokens(result: Any) -> int:
    return sum(receipt.tokens for receipt in _receipts(result))


def _describe(task: Any) -> str:
    return "shard " + ", ".join(f"{shard.number:05d}" for shard in _shards(task))


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


def _claim_output(job: Job) -> None:
    """Freeze the plan in the new dataset's folder, or see that the one there is the same."""
    frozen = read_plan(job.root)
    if frozen is None:
        check_vacant(job.root)
        if write_plan(job.root, job.plan):
            return
        frozen = read_plan(job.root)  # another run froze its plan in the meantime
        assert frozen is not None
    check_same_spec(frozen, job.spec, job.plan.content)
    if frozen.plan_key != job.plan.plan_key:
        raise OutputError(f"{job.root!r} was selected from another corpus; choose another output")


def _as_plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
