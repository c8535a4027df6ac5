"""Training on several GPUs or machines: the same training as in one process, by workers that Ray Train starts.

Ray Train gives each worker its GPU and its place among the others; what they then do is `train_here`, as under
torchrun. What the main worker says comes back line by line, and so do its result and any worker's errors, each as it
was raised. When a worker is lost, all are started again and go on from the last checkpoint; an error that no further
attempt mends ends them all at once, so that none waits for one that is gone and none is started for nothing.

Invariant: a training has the same spec, data and output however it is started; the spec's places must be the same on
all machines.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any, NamedTuple

from curator import (
    cluster,  # before ray: it sets what ray reads when it is imported
    interrupts,
)
from curator.errors import ClusterError, CuratorError, TrainingError
from curator.training.reference.place import find_output
from curator.training.reference.record import TrainResult
from curator.training.reference.spec import Say, TrainRun, TrainSpec
from curator.training.reference.staging import RAY_FAILED, RAY_RUN, open_ray_folder

_POLL_S = 0.5
_RAYS_HANDLER = "ray._private.worker"
_FURTHER_ATTEMPTS = 2


class _Post(NamedTuple):
    """Two queues between here and the workers.

    Attributes:
        mailbox: what the workers have to say: pairs of a kind and its content.
        wishes: not empty when they are to leave.
    """

    mailbox: Any
    wishes: Any


@dataclass
class _Heard:
    """What the workers have said so far, besides lines."""

    began: bool = False
    result: str | None = None
    errors: dict[int, CuratorError] = field(default_factory=dict)

    def take(self, kind: str, content: Any) -> None:
        """Take a message: of several errors of one worker the first."""
        if kind == "began":
            self.began = True
        elif kind == "error":
            self.errors.setdefault(*content)
        else:
            self.result = content


def train_on_ray(spec: TrainSpec, say: Say) -> TrainResult:
    """Train by `spec.run.workers` workers; see `train_reference`.

    Raises:
        ClusterError: the cluster cannot be reached, has no room for the workers, or lost them too often.
        CuratorError: as `train_here`.
    """
    output = find_output(spec.output)
    with cluster.connect(spec.run.address):
        _check_room(spec.run)
        with open_ray_folder(output) as scratch:
            return _follow(lambda post: _fit(spec, post, scratch), say)


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


def _fit(spec: TrainSpec, post: _Post, scratch: Path) -> None:
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
            "post": post,
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
    post, failed, rank = given["post"], Path(given["failed"]), int(os.environ.get("RANK", "0"))
    put = post.mailbox.put if rank == 0 else _ignore
    if failed.exists():
        raise TrainingError("an earlier attempt failed with an error that no further one mends")

    @contextmanager
    def leaving() -> Iterator[Callable[[], bool]]:
        put(("began", None))
        yield (lambda: not post.wishes.empty()) if rank == 0 else bool

    try:
        result = train_here(TrainSpec.model_validate(given["spec"]), lambda line: put(("line", line)), leaving)
    except CuratorError as error:
        post.mailbox.put(("error", (rank, error)))
        failed.touch()
        raise
    except KeyboardInterrupt:  # all leave after one step, and no further attempt is wanted
        return
    put(("result", result.model_dump_json()))


def _ignore(message: tuple[str, Any]) -> None:
    """One worker speaks for all."""


def _follow(fit: Callable[[_Post], None], say: Say) -> TrainResult:
    """Run Ray Train in a thread, and say here what its main worker says."""
    from ray.util.queue import Queue

    post = _Post(*(Queue(actor_options={"num_cpus": 0}) for _ in _Post._fields))
    ended: list[BaseException | None] = []

    def work() -> None:
        try:
            fit(post)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    Thread(target=work, daemon=True).start()
    heard = _listen(post, ended, say)
    for queue in post:
        queue.shutdown()
    if heard.errors:
        raise heard.errors[min(heard.errors)]  # the main worker's says most; others may only say that it failed
    if heard.result is None:
        raise ClusterError(f"Ray Train gave up: {ended[0]}; the same command goes on from the last checkpoint")
    return TrainResult.model_validate_json(heard.result)


@contextmanager
def _postponed() -> Iterator[Callable[[], bool]]:
    """Only note a Ctrl-C or SIGTERM, of which Ray would end this process as soon as it is connected."""
    handler = signal.getsignal(signal.SIGTERM)
    of_ray = getattr(handler, "__module__", None) == _RAYS_HANDLER and current_thread() is main_thread()
    if of_ray:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with interrupts.postponed(signal.SIGTERM) as interrupted:
            yield interrupted
    finally:
        if of_ray:
            signal.signal(signal.SIGTERM, handler)


def _listen(post: _Post, ended: list[BaseException | None], say: Say) -> _Heard:
    """Take what comes from the workers until they have ended, and tell them when somebody wants them to leave."""
    from ray.util.queue import Empty

    heard, told = _Heard(), False
    interrupted: Callable[[], bool] | None = None  # before the first step a Ctrl-C ends it at once
    with ExitStack() as stack:
        while True:
            if heard.began and interrupted is None:
                interrupted = stack.enter_context(_postponed())
            if interrupted is not None and interrupted() and not told:
                told = True
                post.wishes.put(True)
                say("ending after the step that the workers are in; a second interrupt ends them at once")
            over = bool(ended)  # looked at before the mailbox is: nothing comes after the end
            try:
                kind, content = post.mailbox.get(timeout=_POLL_S)
            except Empty:
                if over:
                    return heard
                continue
            if kind == "line":
                say(content)
            else:
                heard.take(kind, content)
