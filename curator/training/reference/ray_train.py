"""Training on several GPUs or machines: the same training as in one process, by workers that Ray Train starts.

Ray Train gives each worker its GPU and its place among the others; what they then do is `train_here`, as under
torchrun. What the main worker says comes back line by line, and so do its result and any worker's errors, each as it
was raised. When a worker is lost, all are started again and go on from the last checkpoint; an error that no further
attempt mends ends them all at once, so that none waits for one that is gone and none is started for nothing.

Invariant: a training has the same spec, data and output however it is started; the spec's places must be the same on
all machines.
"""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from curator import cluster  # before ray: it sets what ray reads when it is imported
from curator.errors import ClusterError, CuratorError, TrainingError
from curator.training.reference.place import find_output
from curator.training.reference.record import TrainResult
from curator.training.reference.spec import Say, TrainRun, TrainSpec
from curator.training.reference.staging import RAY_FAILED, RAY_RUN, remove_folder, take_ray_folder

_POLL_S = 0.5
_FURTHER_ATTEMPTS = 2


def train_on_ray(spec: TrainSpec, say: Say) -> TrainResult:
    """Train by `spec.run.workers` workers; see `train_reference`.

    Raises:
        ClusterError: the cluster cannot be reached, has no room for the workers, or lost them too often.
        CuratorError: as `train_here`.
    """
    output = find_output(spec.output)
    with cluster.connect(spec.run.address):
        _check_room(spec.run)
        scratch = take_ray_folder(output)
        try:
            return _follow(lambda mailbox: _fit(spec, mailbox, scratch), say)
        finally:
            remove_folder(scratch)


def _check_room(run: TrainRun) -> None:
    """Refuse at once what Ray would wait for without end."""
    import ray

    room = ray.cluster_resources()
    for name, each in (("CPU", run.threads_per_worker), ("GPU", run.gpus_per_worker)):
        wanted, has = each * run.workers, room.get(name, 0)
        if wanted > has:
            raise ClusterError(
                f"{run.workers} workers need {wanted} {name}s and the cluster has {has:g}; lower run.workers or "
                f"run.{name.lower() if name == 'GPU' else 'thread'}s_per_worker"
            )


def _fit(spec: TrainSpec, mailbox: Any, scratch: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run = spec.run
    variables = {"OMP_NUM_THREADS": str(run.threads_per_worker), "TOKENIZERS_PARALLELISM": "false"}
    if not run.gpus_per_worker:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    resources = {"CPU": run.threads_per_worker, "GPU": run.gpus_per_worker}
    TorchTrainer(
        _work,
        train_loop_config={
            "spec": spec.model_dump(mode="json"),
            "folder": os.getcwd(),
            "mailbox": mailbox,
            "failed": str(scratch / RAY_FAILED),
        },
        scaling_config=ScalingConfig(
            num_workers=run.workers, use_gpu=bool(run.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=RAY_RUN,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=_FURTHER_ATTEMPTS),
            callbacks=[_make_guard(scratch / RAY_FAILED)],
            worker_runtime_env={"env_vars": variables},
        ),
    ).fit()


def _make_guard(failed: Path) -> Any:
    """Ray Train tries again after any error of a worker, which costs its start each time; this ends the run instead."""
    from ray.train import UserCallback

    class Guard(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            if failed.exists():
                raise TrainingError("a worker failed with an error that no further attempt mends")

    return Guard()


def _work(given: dict[str, Any]) -> None:
    """What each worker does; the main one puts lines and its result into the mailbox, each one its error.

    Every error is raised, too: Ray Train then ends the other workers, which wait for this one. Where `failed` says that
    no further attempt mends it, none is made, and one that was begun all the same ends at once.
    """
    from curator.training.reference.train import train_here

    os.chdir(given["folder"])
    mailbox, failed, rank = given["mailbox"], Path(given["failed"]), int(os.environ.get("RANK", "0"))
    if failed.exists():
        raise TrainingError("an earlier attempt failed with an error that no further one mends")

    def say(line: str) -> None:
        if rank == 0:
            mailbox.put(("line", line))

    try:
        result = train_here(TrainSpec.model_validate(given["spec"]), say)
    except CuratorError as error:
        mailbox.put(("error", (rank, error)))
        failed.touch()
        raise
    if rank == 0:
        mailbox.put(("result", result.model_dump_json()))


def _follow(fit: Callable[[Any], None], say: Say) -> TrainResult:
    """Run Ray Train in a thread, and say here what its main worker says."""
    from ray.util.queue import Empty, Queue

    mailbox = Queue(actor_options={"num_cpus": 0})
    ended: list[BaseException | None] = []

    def work() -> None:
        try:
            fit(mailbox)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    Thread(target=work, daemon=True).start()
    outcome: Any = None
    errors: dict[int, CuratorError] = {}
    while True:
        over = bool(ended)  # looked at before the mailbox is: nothing comes after the end
        try:
            kind, content = mailbox.get(timeout=_POLL_S)
        except Empty:
            if over:
                break
            continue
        if kind == "line":
            say(content)
        elif kind == "error":
            errors.setdefault(*content)
        else:
            outcome = content
    mailbox.shutdown()
    if errors:
        raise errors[min(errors)]  # the main worker's says most; others may only say that it failed
    if outcome is None:
        raise ClusterError(f"Ray Train gave up: {ended[0]}; the same command goes on from the last checkpoint")
    return TrainResult.model_validate_json(outcome)
