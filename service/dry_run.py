"""What a job would take, found in a process of its own: planning reads a stranger's files, and may take long.

    python -m service.dry_run < SPEC.json

prints an `EstimateModel`; a spec or corpus that cannot be planned is exit 2 and one JSON object with the error.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from curator.errors import CuratorError
from service.models import EstimateModel, ModelEstimateModel
from service.problems import Problem
from service.settings import Settings

_COMMAND = (sys.executable, "-m", "service.dry_run")
_AT_ONCE = 2
_MOST_ASKED = 4  # by one tenant, of which one runs
_BAD_SPEC = 2
_OWN_VARIABLES = "CURATOR_"


class _Slots:
    """Who may plan: two at once, one of each tenant, so that nobody is held up by what another tenant asks."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._asked: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def take(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it; Problem 503 for a tenant of whom too many wait already."""
        if self._asked[tenant] >= _MOST_ASKED:
            raise _busy(f"{_MOST_ASKED} of your dry runs are under way or wait")
        self._asked[tenant] += 1
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        try:
            async with turn, self._free:
                yield
        finally:
            self._asked[tenant] -= 1
            if not self._asked[tenant]:
                del self._asked[tenant], self._turns[tenant]


_SLOTS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Slots] = WeakKeyDictionary()


async def dry_run(spec: dict[str, Any], settings: Settings, *, tenant: str = "") -> EstimateModel:
    """Plan and estimate.

    Args:
        spec: what was admitted.
        settings: say how long it may take, waiting included.
        tenant: who asks; dry runs of one tenant run one after the other.

    Raises:
        Problem: 422 the job could not be planned; 503 `busy` when others are planned first, `plan_timeout` when
            planning takes too long.
    """
    slots = _SLOTS.setdefault(asyncio.get_running_loop(), _Slots())
    started = False
    try:
        async with asyncio.timeout(settings.validate_timeout_s), slots.take(tenant):
            started = True
            code, out, err = await _run(json.dumps(spec).encode())
    except TimeoutError as error:
        if not started:
            raise _busy(f"other dry runs took all of {settings.validate_timeout_s:g} s") from error
        detail = (
            f"the plan was not ready after {settings.validate_timeout_s:g} s (corpora that cannot be split are "
            "read whole); submit the job without a dry run, or narrow corpus.uri"
        )
        raise Problem(503, "plan_timeout", detail, headers={"Retry-After": "60"}) from error
    if code == 0:
        return EstimateModel.model_validate_json(out)
    if code == _BAD_SPEC:
        message = json.loads(out)["message"]
        raise Problem(422, "invalid_spec", message, errors=[{"path": "", "message": message}])
    raise RuntimeError(f"the dry run ended with code {code}: {err.decode(errors='replace')[-2000:]}")


def _busy(why: str) -> Problem:
    detail = f"{why}; ask again later, or check the spec alone with ?plan=false"
    return Problem(503, "busy", detail, headers={"Retry-After": "10"})


async def _run(spec: bytes) -> tuple[int | None, bytes, bytes]:
    """Run the process to its end, and end all that it has started, however this is left."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_VARIABLES)}
    process = await asyncio.create_subprocess_exec(
        *_COMMAND, env=environment, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await process.communicate(spec)
    finally:
        with suppress(ProcessLookupError):  # its group is gone when it and its children are
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return process.returncode, out, err


def _estimate(content: dict[str, Any]) -> EstimateModel:
    from curator.estimate import estimate_job, usable_workers
    from curator.frozen import find_plan
    from curator.job import Job
    from curator.spec import parse_spec

    spec = parse_spec(content)
    job = Job(spec, find_plan(spec))
    estimate = estimate_job(job, usable_workers(job), measure=True)
    models = [
        ModelEstimateModel(
            name=model.name, engine=job.plan.models[model.name].engine, id=job.plan.models[model.name].id,
            context=job.plan.models[model.name].context, tokens_per_s=model.tokens_per_s, seconds=model.seconds,
            basis=model.basis,
        )
        for model in estimate.models
    ]  # fmt: skip
    warnings = [f"{bad.file} at offset {bad.offset}: {bad.reason} {bad.detail}" for bad in job.plan.damage]
    if estimate.free_bytes is not None and estimate.disk_bytes > estimate.free_bytes:
        warnings.append(f"about {estimate.disk_bytes:,} bytes are needed and {estimate.free_bytes:,} are free")
    return EstimateModel(
        name=spec.name, shards=estimate.shards, tokens=estimate.tokens, disk_bytes=estimate.disk_bytes,
        free_bytes=estimate.free_bytes, eta_s=estimate.seconds, workers=estimate.workers, models=models,
        warnings=warnings,
    )  # fmt: skip


def main() -> None:
    """Entry point of the process."""
    answer = os.dup(1)  # what libraries print goes to stderr
    os.dup2(2, 1)
    try:
        code, text = 0, _estimate(json.load(sys.stdin)).model_dump_json()
    except CuratorError as error:
        code, text = _BAD_SPEC, json.dumps({"message": str(error)})
    with os.fdopen(answer, "w") as stream:
        stream.write(text)
    sys.exit(code)


if __name__ == "__main__":
    main()
