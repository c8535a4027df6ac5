"""Which dataset is a job's: that of its output whose frozen plan is of the job's own spec, and no other.

A job may be given a folder that holds another dataset, or that another job fills first. The run then refuses to touch
it; but until then, and ever after, the job's `output` is the name of somebody else's dataset.

Invariant: through a job nobody sees a dataset that another spec made; to its readers, such a folder is an empty one. An
equal spec names the same corpus, which whoever submitted it was allowed to read.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from curator import inspection, storage
from curator.errors import CuratorError, OutputError, StorageError
from curator.job import Job as CurationJob
from curator.plan import PLAN, read_plan
from curator.spec import digest, parse_spec, stage_keys
from service.problems import Problem
from service.store import Job

_REMEMBERED_PLANS = 1024  # a digest each
_REMEMBERED_SPECS = 128  # up to a megabyte of text each, seldom more than a few KB


def has_dataset(job: Job) -> bool:
    """Whether a dataset of this job has been begun in its output.

    Raises:
        CuratorError: the plan there is damaged or cannot be read.
    """
    plan = storage.join(job.output, PLAN)
    if job.kind != "curate" or not storage.exists(plan):
        return False
    return _made_by_plan(job.output, storage.fingerprint(plan)) == _made_by_spec(json.dumps(job.spec))


def open_dataset(job: Job) -> CurationJob | None:
    """The job as the library sees it; None while it has no dataset, and for a reference's training.

    Raises:
        CuratorError: the plan there is damaged or cannot be read.
    """
    return inspection.open_job(job.output) if has_dataset(job) else None


@lru_cache(maxsize=_REMEMBERED_PLANS)
def _made_by_plan(directory: str, version: str) -> str:
    """Digest of what decides a dataset's content; `version` only tells a plan from the one that it replaced."""
    plan = read_plan(directory)
    if plan is None:
        raise OutputError(f"{directory!r} has no {PLAN} any more; ask again")
    return digest(stage_keys(parse_spec(plan.spec, PLAN)))


@lru_cache(maxsize=_REMEMBERED_SPECS)
def _made_by_spec(spec: str) -> str:
    return digest(stage_keys(parse_spec(json.loads(spec))))


@contextmanager
def explained() -> Iterator[None]:
    """Turn what reading an output raises into a Problem: 503 while its store fails, 409 for what it holds."""
    try:
        yield
    except (CuratorError, OSError) as error:
        if _store_failed(error):
            detail, later = f"the job's output cannot be read now: {error}", {"Retry-After": "10"}
            raise Problem(503, "storage_unavailable", detail, headers=later) from error
        raise Problem(409, "unreadable_output", f"the job's output cannot be read: {error}") from error


def _store_failed(error: Exception) -> bool:
    """Whether the store is at fault: the library says StorageError of a damaged file, too, and of one just removed."""
    if not isinstance(error, StorageError):
        return False
    cause: BaseException | None = error
    while isinstance(cause, StorageError):  # the one of the shard is from the one of its file
        cause = cause.__cause__
    if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
        return False
    return cause.errno is not None or type(cause) is not OSError  # Arrow says a bare OSError of what it cannot decode
