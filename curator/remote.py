"""The commands that talk to a service: `curator submit | status | logs | events | cancel | resume | download`.

Thin: each makes a `curator.Client`, calls one of its methods and prints. The API key comes from CURATOR_API_KEY alone:
a command line is seen by every user of a machine.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from curator.errors import CuratorError, ServerError, SpecError

if TYPE_CHECKING:
    from curator.client import Client, RemoteJob

FAILED, QUARANTINED = 1, 3

out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

Server = Annotated[
    str, typer.Option(metavar="URL", envvar="CURATOR_SERVER", help="address of the service; key: CURATOR_API_KEY")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="id of a job")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="go on until the job is over")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    """Add these commands to the `curator` command."""
    for command in (submit, status, logs, events, cancel, resume, download):
        app.command()(command)


def submit(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="spec file, YAML or JSON; output may be left out")],
    server: Server,
    upload: Annotated[Path | None, typer.Option(help="send this file and use it as the corpus")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="show progress until the job is over")] = False,
    kind: Annotated[str, typer.Option(help="curate or train_reference")] = "curate",
    idempotency_key: Annotated[str | None, typer.Option(help="the same key and spec give the same job")] = None,
) -> None:
    """Hand a job to a service; prints its id."""
    from curator.spec import read_mapping

    content = read_mapping(spec)
    with _client(server) as client:
        if upload is not None:
            _use_upload(client, content, upload)
        job = client.submit(content, idempotency_key, kind)
        out.print(job.id)
        if wait:
            _watch(client, job.id)


def status(
    server: Server,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="id of a job; without it, a table of jobs")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="show progress until the job is over")] = False,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, help="rows of the table")] = 20,
) -> None:
    """Show a job, or the newest jobs."""
    if watch and (job is None or as_json):
        raise typer.BadParameter("needs a JOB, and goes without --json", param_hint="--watch")
    with _client(server) as client:
        if watch and job is not None:
            _watch(client, job)
        elif job is not None:
            _show(client.job(job), as_json)
        else:
            _list(client, limit, as_json)


def logs(server: Server, job: JobId, follow: Follow = False) -> None:
    """Print what a job's process has printed."""
    from curator.client.display import printable

    with _client(server) as client:
        for line in client.logs(job, follow=follow):
            out.print(printable(line.text) if out.is_terminal else line.text)


def events(server: Server, job: JobId, follow: Follow = False) -> None:
    """Print what happened to a job, one JSON object a line."""
    with _client(server) as client:
        for event in client.events(job, follow=follow):
            print(event.model_dump_json(), flush=True)


def cancel(server: Server, job: JobId) -> None:
    """Stop a job; what it has published stays."""
    with _client(server) as client:
        out.print(f"{job}: {client.cancel(job).status}")


def resume(server: Server, job: JobId) -> None:
    """Let a failed or cancelled job go on."""
    with _client(server) as client:
        out.print(f"{job}: {client.resume(job).status}")


def download(
    server: Server,
    job: JobId,
    output: Annotated[
        Path | None, typer.Option(help="folder of the dataset; run again to go on [default: ./JOB]")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="shards fetched at a time")] = 4,
) -> None:
    """Bring a job's dataset here, or what is published of it so far; every file's sha256 is checked."""
    with _client(server) as client, _bytes_bar() as on_progress:
        done = client.download(job, output or Path(job), parallel, on_progress)
    out.print(f"dataset    {done.directory.resolve()}")
    out.print(f"shards     {done.shards:,}, {done.bytes:,} bytes, {done.fetched:,} fetched now")
    if not done.complete:
        out.print("partial    the job is not completed; run the same command again for the rest")


# ------------------------------------------------------------------------------------------------ parts


@contextmanager
def _client(server: str) -> "Iterator[Client]":
    try:
        from curator.client import Client
    except ModuleNotFoundError as error:
        raise CuratorError(str(error)) from error
    try:
        client = Client(server)
    except ServerError as error:
        raise typer.BadParameter(str(error), param_hint="--server, CURATOR_API_KEY") from None
    with client:
        yield client


def _use_upload(client: "Client", spec: dict[str, Any], file: Path) -> None:
    if not isinstance(spec.get("corpus"), dict):
        raise SpecError("corpus: is no mapping; give it a kind, and --upload sets its uri")
    if not file.is_file():
        raise typer.BadParameter(f"{str(file)!r} is no file", param_hint="--upload")
    spec["corpus"]["uri"] = client.upload(file).uri


def _watch(client: "Client", job_id: str) -> None:
    """Show a job until it is over, then how it ended; the exit code says it too."""
    from curator.client.display import make_display

    display = make_display()
    try:
        for job in client.watch(job_id):
            display.show(job)
    except KeyboardInterrupt:
        display.close()
        err.print(f"{job_id} goes on; `curator status {job_id} --watch` shows it, `curator cancel {job_id}` stops it")
        raise typer.Exit(FAILED) from None
    finally:
        display.close()
    _show(job, as_json=False)
    if job.status != "completed":
        raise typer.Exit(FAILED)
    lost = client.manifest(job_id).get("lost_shards") if job.kind == "curate" else None
    if lost:
        out.print(f"lost       {len(lost):,} shards, listed in the manifest")
    if lost or job.quarantined_rows:
        raise typer.Exit(QUARANTINED)


def _list(client: "Client", limit: int, as_json: bool) -> None:
    from itertools import islice

    from curator.client.display import make_table

    jobs = list(islice(client.jobs(), limit))
    if as_json:
        print(json.dumps([job.model_dump(mode="json") for job in jobs], indent=2))
    elif jobs:
        out.print(make_table(jobs))
    else:
        out.print("no jobs")


def _show(job: "RemoteJob", as_json: bool) -> None:
    from curator.client.display import describe, printable

    if as_json:
        print(job.model_dump_json(indent=2))
        return
    lines = [("job", job.id), ("name", job.name or ""), ("status", f"{job.status} (attempt {job.attempt})")]
    if job.queue_position is not None:
        lines.append(("queue", f"position {job.queue_position}"))
    if job.progress is not None and not job.finished:
        lines.append(("progress", f"{job.progress.stage or ''}: {describe(job.progress)}"))
    if job.error:
        lines.append(("error", f"{job.error.get('type', '')}: {job.error.get('message', '')}"))
    lines += _describe_totals(job)
    if job.output:
        lines.append(("output", job.output))
    for label, text in lines:
        out.print(f"{label:<10} {printable(text)}")


def _describe_totals(job: "RemoteJob") -> list[tuple[str, str]]:
    totals = job.totals or {}
    if not totals:
        return []
    scored = totals.get("scored_tokens") or 0
    share = f" ({totals.get('kept_tokens', 0) / scored:.2%} of those scored)" if scored else ""
    lines = [
        ("rows", f"{totals.get('rows', 0):,}"),
        ("tokens", f"{totals.get('tokens', 0):,}, kept {totals.get('kept_tokens', 0):,}{share}"),
    ]
    if job.quarantined_rows:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in (job.quarantined or {}).items())
        lines.append(("quarantine", f"{job.quarantined_rows:,} rows" + (f" ({reasons})" if reasons else "")))
    return lines


@contextmanager
def _bytes_bar() -> "Iterator[Any]":
    """A bar of bytes on a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    if not err.is_terminal:
        yield None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("download", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
