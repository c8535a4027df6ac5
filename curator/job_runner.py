"""Run the job of a job directory: the same pipeline as `curator run`, told event by event.

    python -m curator.job_runner DIRECTORY EPOCH

is what the service starts, on its own machine or through Ray's Jobs API; `curator run --data-dir` does the same in
its own process. The process beats every few seconds, notices within a second that the job has passed to another epoch
(cancelled, or taken over), and then ends without writing anything more.

A driver of the service that is told to end although the job is still its own (the machine shuts down) leaves the job
as it is, for the service to start it again; a person's Ctrl-C on `curator run` cancels the job.

Invariant: only the owner of the job's epoch writes events, and a job that ran to an end has that as its last state.
"""

import argparse
import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from curator import logs, storage, tracing
from curator.errors import CuratorError, OutputError, Superseded
from curator.event_reporter import EventReporter, Write
from curator.hiding import describe, keep_keys_of
from curator.job_directory import (
    DEFAULT_TENANT,
    TERMINAL,
    JobDirectory,
    JobRecord,
    list_jobs,
    new_id,
    now,
)
from curator.manifest import MANIFEST, read_manifest
from curator.progress import Reporter
from curator.signs_of_life import HEARTBEAT_S, SUPERSEDED, alive, beat_of_this_process, is_running, uninterrupted
from curator.spec import CurationSpec, parse_spec, stage_keys

MARK = "CURATOR_JOB"
"""Variable in the environment of everything that a job starts, Ray's daemons included: its id."""

FAILED, INTERRUPTED = 1, 130


def run_job(directory: JobDirectory, epoch: int, shown: Reporter, heartbeat_s: float = HEARTBEAT_S) -> None:
    """Run a job to its end as the owner of `epoch`, and write how it ended.

    Raises:
        CuratorError: why it failed, after that was written.
        Superseded: the job is no longer this process's; nothing was written.
        KeyboardInterrupt: it was interrupted, by SIGINT or SIGTERM; nothing was written.
    """

    def write(kind: str, data: dict[str, Any]) -> None:
        directory.append(epoch, kind, data)

    record = directory.check(epoch)  # before the first sign of life, which would hide the newer owner's
    keep_keys_of(record.spec)
    logs.also(job=record.id, attempt=record.attempt, epoch=epoch)
    parent = os.environ.get(tracing.VARIABLE) or record.traceparent
    job = tracing.of_job(record.id, record.attempt, epoch)
    with tracing.span("job.run", job, parent=parent), alive(directory, epoch, heartbeat_s):
        try:
            ended = _curate(record, write, shown) if record.kind == "curate" else _train(record, write, shown)
        except Superseded:
            raise
        except (KeyboardInterrupt, SystemExit) as interruption:  # SIGTERM, too: Ray makes an exit of it
            directory.check(epoch)  # a fenced process learns here why it was interrupted
            raise KeyboardInterrupt from interruption
        except Exception as error:
            write("state", {"status": "failed", "error": {"type": type(error).__name__, "message": describe(error)}})
            raise
        write("state", {"status": "completed", **ended})


def conclude(record: JobRecord) -> dict[str, Any]:
    """The state in which a stopped job ends: cancelled, with a partial manifest; or completed, if all was published.

    To be called when nothing of the job runs any more.
    """
    from curator.inspection import open_job
    from curator.partial import write_partial_manifest

    if record.kind != "curate":
        return {"status": "cancelled"}
    try:
        job = open_job(record.output)
        if job is None or stage_keys(job.spec) != stage_keys(parse_spec(record.spec, RECORD_ORIGIN)):
            return {"status": "cancelled"}  # it has begun nothing there, or the folder is another's
        if storage.exists(storage.join(record.output, MANIFEST)):
            manifest = read_manifest(record.output)
            totals = manifest.totals.model_dump()
            return {"status": "completed", "totals": totals, "quarantined": manifest.quarantined}
        write_partial_manifest(job)
        job.clear_staging()
    except CuratorError as error:  # what is published may be damaged; that must not keep the job from ending
        return {"status": "cancelled", "error": {"type": type(error).__name__, "message": str(error)}}
    return {"status": "cancelled"}


# ------------------------------------------------------------------------------------------------ beside a service


def run_in(data_dir: Path, spec: CurationSpec, shown: Reporter) -> JobRecord:
    """Run a job here, with a directory under a service's data directory, where the service sees it.

    The same spec goes on with the same directory, unless that job is being worked on.

    Raises:
        OutputError: the job is at work elsewhere.
        KeyboardInterrupt: it was interrupted here, or cancelled in the service.
        CuratorError: as `curate`.
    """
    content = spec.model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    directory = _find(data_dir.absolute(), digest, spec.output_root)
    if directory is None:
        record = JobRecord(
            id=new_id("job"), kind="curate", tenant=DEFAULT_TENANT, name=spec.name, spec=content,
            output=spec.output_root, body_sha256=digest, created_at=now(), cwd=os.getcwd(),
        )  # fmt: skip
        directory = _make(data_dir.absolute(), record)
    elif directory.last_state()[0] == "completed" and storage.exists(storage.join(spec.output_root, MANIFEST)):
        return directory.record()
    else:
        _take(directory)
    _run_here(directory, shown)
    return directory.record()


def _find(data_dir: Path, digest: str, output: str) -> JobDirectory | None:
    for directory in list_jobs(data_dir):
        with suppress(CuratorError):  # damaged: another job's trouble
            record = directory.record()
            if (record.body_sha256, record.output) == (digest, output):
                directory.create(record)  # its first event, in case a crash came before that
                return directory
    return None


def _make(data_dir: Path, record: JobRecord) -> JobDirectory:
    directory = JobDirectory(data_dir / "jobs" / record.id)
    directory.path.mkdir(parents=True)
    directory.beat(beat_of_this_process(record.epoch))  # before the record: a service must not find it without owner
    directory.create(record, status="validating")
    return directory


def _take(directory: JobDirectory) -> None:
    record, (status, _) = directory.record(), directory.last_state()
    if status not in TERMINAL and is_running(directory.heartbeat()):
        raise OutputError(
            f"job {record.id} of this spec is {status} and at work; wait for it, or cancel it in the service first"
        )
    epoch, attempt = record.epoch + 1, record.attempt + (status in TERMINAL)
    directory.advance(epoch, {"status": "validating"}, attempt=attempt, owner=beat_of_this_process(epoch))


def _run_here(directory: JobDirectory, shown: Reporter) -> None:
    record = directory.record()
    os.environ[MARK] = record.id  # so that a service finds what this process leaves behind when it is killed
    try:
        run_job(directory, record.epoch, shown, heartbeat_s=1.0)  # how long the service bears silence is not known here
    except KeyboardInterrupt:
        with uninterrupted():
            directory.append(record.epoch, "state", conclude(record))
        raise
    except Superseded as error:
        if directory.last_state()[0] in ("cancelling", "cancelled"):
            raise KeyboardInterrupt from error
        raise
    finally:
        del os.environ[MARK]


def _curate(record: JobRecord, write: Write, shown: Reporter) -> dict[str, Any]:
    from curator.pipeline import curate

    logs.adopt_ray()
    reporter = EventReporter(write, shown)
    try:
        manifest = curate(parse_spec(record.spec, RECORD_ORIGIN), reporter)
    except Exception:
        with suppress(CuratorError, OSError):  # why the job failed is what is to be told
            reporter.flush()
        raise
    return {
        "totals": manifest.totals.model_dump(),
        "quarantined": manifest.quarantined,
        "lost_shards": len(manifest.lost_shards),
    }


def _train(record: JobRecord, write: Write, shown: Reporter) -> dict[str, Any]:
    from pydantic import TypeAdapter

    from curator.spec import validate
    from curator.training.reference.spec import TrainSpec
    from curator.training.reference.train import train_reference

    reporter = EventReporter(write, shown)
    spec = validate(TypeAdapter(TrainSpec), record.spec, RECORD_ORIGIN)
    reporter.start("train", 0, 0)
    with tracing.span("stage train"):
        result = train_reference(spec, reporter.say)
    reporter.finish()
    return {"quarantined": result.bad_rows}


RECORD_ORIGIN = "the job's spec"


def main() -> None:
    """Entry point of the process that the service starts."""
    parser = argparse.ArgumentParser(prog="python -m curator.job_runner", description=__doc__)
    parser.add_argument("directory", type=Path, help="the job's directory")
    parser.add_argument("epoch", type=int, help="number of this owner")
    parser.add_argument("--heartbeat", type=float, default=HEARTBEAT_S, help="seconds between two signs of life")
    arguments = parser.parse_args()
    directory, form = JobDirectory(arguments.directory), logs.chosen_format()
    logs.start(form, job=directory.path.name, epoch=arguments.epoch)
    try:
        with tracing.process("driver"):
            run_job(directory, arguments.epoch, logs.reporter(form), arguments.heartbeat)
    except Superseded as error:
        logs.say_error(error)
        os._exit(SUPERSEDED)  # Ray's farewell may crash when its cluster has been stopped; nothing here is needed
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # or when it was interrupted while it started
    except CuratorError as error:
        logs.say_error(error)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
