"""A job run to its end by a process of its own, as `curator run` does: its log, its trace, its job directory."""

import os
from contextlib import nullcontext
from pathlib import Path

from curator import logs, tracing
from curator.hiding import keep_keys_of
from curator.manifest import Manifest, read_manifest
from curator.spec import load_spec


def run_spec(spec_file: str, data_dir: Path | None = None, log_format: logs.LogFormat = "text") -> Manifest:
    """Run or resume the job of a spec file.

    Args:
        spec_file: YAML or JSON.
        data_dir: of a service that shall see the job, or None.
        log_format: of standard error: `json` for machines, else bars on a terminal and lines elsewhere.

    Returns:
        The manifest of the published dataset.

    Raises:
        CuratorError: the job cannot run or has failed; the same call resumes it.
    """
    if log_format == "json":
        logs.start("json", ends_too=True)
    with nullcontext() if log_format == "json" else logs.for_a_person():
        return _run(spec_file, data_dir, log_format)


def _run(spec_file: str, data_dir: Path | None, log_format: logs.LogFormat) -> Manifest:
    spec = load_spec(spec_file)
    keep_keys_of(spec.model_dump(include={"models"}))
    from curator.job_runner import run_in
    from curator.pipeline import curate

    logs.adopt_ray()
    reporter = logs.reporter(log_format, terminal=True)
    with tracing.process("driver"):
        if data_dir is not None:
            return read_manifest(run_in(data_dir, spec, reporter).output)
        with tracing.span("job.run", parent=os.environ.get(tracing.VARIABLE)):
            return curate(spec, reporter)
