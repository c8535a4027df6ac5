"""What a job would take, found in a process of its own: planning reads a stranger's files, and may take long.

    python -m service.dry_run < SPEC.json

prints an `EstimateModel`; a spec or corpus that cannot be planned is exit 2 and one JSON object with the error.
"""

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

from curator.errors import CuratorError
from service.models import EstimateModel, ModelEstimateModel
from service.problems import Problem
from service.settings import Settings

_AT_ONCE = asyncio.Semaphore(2)
_BAD_SPEC = 2


async def dry_run(spec: dict[str, Any], settings: Settings) -> EstimateModel:
    """Plan and estimate; Problem 422 if the job could not be planned, 503 if that takes too long."""
    async with _AT_ONCE:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service.dry_run",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = await asyncio.wait_for(
                process.communicate(json.dumps(spec).encode()), settings.validate_timeout_s
            )
        except TimeoutError as error:
            detail = (
                f"the plan was not ready after {settings.validate_timeout_s:g} s (corpora that cannot be split are "
                "read whole); submit the job without a dry run, or narrow corpus.uri"
            )
            raise Problem(503, "plan_timeout", detail, headers={"Retry-After": "60"}) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode == 0:
        return EstimateModel.model_validate_json(out)
    if process.returncode == _BAD_SPEC:
        message = json.loads(out)["message"]
        raise Problem(422, "invalid_spec", message, errors=[{"path": "", "message": message}])
    raise RuntimeError(f"the dry run ended with code {process.returncode}: {err.decode(errors='replace')[-2000:]}")


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
