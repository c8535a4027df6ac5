"""The `curator` command. Thin: each subcommand reads its arguments, calls the library and prints.

Exit codes: 0 done, 1 failed, 2 bad spec or usage, 3 finished with quarantined rows or shards.
"""

import json
import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from curator import logs, remote
from curator.errors import CuratorError, OutputError, SpecError
from curator.hiding import hide
from curator.interrupts import heeded
from curator.training.check import command as check_command

FAILED, BAD_USAGE, QUARANTINED, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    name="curator",
    help="Token-weighted datasets for training language models. Exit codes: 0 done, 1 failed, 2 bad spec or usage, "
    "3 finished with quarantined rows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="spec file, YAML or JSON")]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="folder or URI of a dataset")]


@app.command()
def run(
    spec: SpecPath,
    data_dir: Annotated[
        Path | None, typer.Option(help="data directory of a service: the job gets a directory there and shows up in it")
    ] = None,
    log_format: Annotated[
        logs.LogFormat,
        typer.Option(envvar=logs.FORMAT_VARIABLE, help="progress and errors for people, or one JSON object a line"),
    ] = "text",
) -> None:
    """Run a job to its end; the same command resumes it."""
    from curator.batch import run_spec

    _finish(run_spec(spec, data_dir, log_format))


@app.command()
def plan(spec: SpecPath, as_json: Annotated[bool, typer.Option("--json", help="print the whole plan")] = False) -> None:
    """Show shards, tokens, time and disk; runs nothing and writes nothing."""
    from curator.estimate import estimate_job, usable_workers
    from curator.frozen import find_plan
    from curator.job import Job
    from curator.spec import load_spec

    job_spec = load_spec(spec)
    job = Job(job_spec, find_plan(job_spec))
    if as_json:
        print(job.plan.model_dump_json(indent=1))
        return
    estimate = estimate_job(job, usable_workers(job))
    out.print(f"corpus     {len(job.plan.sources):,} files, about {job.plan.text_bytes:,} bytes of text")
    out.print(f"tokenizer  {job.plan.tokenizer.source} ({job.plan.tokenizer.fingerprint[:16]})")
    out.print(f"shards     {estimate.shards:,}, about {estimate.tokens:,} tokens")
    free = "" if estimate.free_bytes is None else f", {estimate.free_bytes / 1e9:,.1f} GB are free"
    out.print(f"disk       about {estimate.disk_bytes / 1e9:,.3f} GB{free}")
    for model in estimate.models:
        identity = job.plan.models[model.name]
        time = "unknown time" if model.seconds is None else f"about {_duration(model.seconds)}"
        out.print(
            f"{model.name:<10} {identity.engine} {identity.id}, context {identity.context}: {time} ({model.basis})"
        )
        if identity.engine_reason:
            out.print(f"{'':<10} {identity.engine} was chosen because {identity.engine_reason}")
    total = "unknown" if estimate.seconds is None else f"about {_duration(estimate.seconds)} of scoring"
    out.print(f"ETA        {total} on {estimate.workers} workers")
    for bad in job.plan.damage:
        out.print(f"damaged    {bad.file} at offset {bad.offset}: {bad.reason} {bad.detail}")


@app.command()
def preview(
    spec: SpecPath,
    rows: Annotated[int, typer.Option(min=1, help="documents to score")] = 20,
    output: Annotated[Path, typer.Option(help="where to write the page")] = Path("preview.html"),
    browse: Annotated[bool, typer.Option("--open/--no-open", help="open the page in a browser")] = True,
) -> None:
    """Score a sample here and now, and show it as the report would."""
    from curator.preview import make_preview
    from curator.spec import load_spec

    html, summary = make_preview(load_spec(spec), rows)
    output.write_text(html, encoding="utf-8")
    out.print(summary)
    out.print(f"page       {output.resolve()}")
    if browse:
        webbrowser.open(output.resolve().as_uri())


@app.command()
def select(
    directory: Directory,
    policy: Annotated[str, typer.Option(help="file with the policy alone (YAML or JSON), or a spec to take it from")],
    output: Annotated[str, typer.Option(help="folder of the new dataset")],
    weights_only: Annotated[bool, typer.Option("--weights-only", help="write row-aligned weights, no text")] = False,
) -> None:
    """Apply another policy to stored scores; runs no model and leaves DIR as it is."""
    from curator.pipeline import select as select_policy
    from curator.progress import make_reporter
    from curator.spec import read_mapping

    content = read_mapping(policy)
    _finish(
        select_policy(
            directory, content.get("policy", content), output, weights_only=weights_only, reporter=make_reporter()
        )
    )


@app.command()
def verify(directory: Directory) -> None:
    """Re-check a dataset's digests, counts and alignment."""
    from curator.audit import verify as verify_dataset

    problems = verify_dataset(directory)
    for problem in problems:
        out.print(problem)
    out.print(f"{directory}: {len(problems)} problems" if problems else f"{directory}: sound")
    raise typer.Exit(FAILED if problems else 0)


@app.command()
def report(directory: Directory) -> None:
    """Write report.html of a dataset again."""
    from curator.publish import rewrite_report

    out.print(f"report     {rewrite_report(directory)}")


@app.command()
def export(
    directory: Directory,
    form: Annotated[str, typer.Option("--for", metavar="NAME", help="trainer, such as axolotl, megatron or tinker")],
    output: Annotated[str, typer.Option(help="local folder of the export, absent or empty")],
    sequence_length: Annotated[
        int | None, typer.Option(help="pack to this many tokens; for trainers that pack by themselves, cut to it")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of the order of rows [default: as in the files]")] = None,
) -> None:
    """Write a dataset in the form that a trainer reads; its README says how to use it."""
    from curator.export import GUIDE, export_dataset

    record = export_dataset(directory, form, output, sequence_length=sequence_length, seed=seed)
    out.print(f"export     {output} for {record.kind}; how to use it is in {GUIDE}")
    out.print(f"rows       {record.rows:,} in {record.sequences:,} sequences ({record.skipped_rows:,} rows skipped)")
    out.print(f"tokens     {record.tokens:,}, kept {record.kept_tokens:,}, weight {record.weight_sum:,.6g}")


@app.command()
def schema(
    kind: Annotated[str, typer.Option(help="of which spec: curate, or train_reference")] = "curate",
) -> None:
    """Print the JSON schema of a spec: every setting, what it means, its default."""
    from curator.data import StrictModel
    from curator.spec import CurationSpec
    from curator.training.reference.spec import TrainSpec

    specs: dict[str, type[StrictModel]] = {"curate": CurationSpec, "train_reference": TrainSpec}
    if kind not in specs:
        raise typer.BadParameter(f"{kind!r} is no kind of spec; use {' or '.join(specs)}")
    print(json.dumps(specs[kind].model_json_schema(), indent=2))


@app.command()
def train_reference(spec: SpecPath) -> None:
    """Fine-tune a base model on good data into a reference directory; goes on where it was interrupted.

    `curator schema --kind train_reference` prints the settings.
    """
    from pydantic import TypeAdapter

    from curator.spec import read_mapping, validate
    from curator.training.reference.spec import TrainSpec
    from curator.training.reference.train import train_reference

    train_spec = validate(TypeAdapter(TrainSpec), read_mapping(spec), spec)
    result = train_reference(train_spec)
    if os.environ.get("RANK", "0") == "0":
        out.print(f"reference  {result.output}")
    # A launcher takes any exit status but 0 for a failure of the group; the counts are in training.json.
    if result.bad_rows and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise typer.Exit(QUARANTINED)


remote.register(app)
check_command.register(app)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on; 0 = any free one [default: 8000]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="jobs, uploads and the database [default: curator-data]")
    ] = None,
    allow_root: Annotated[
        list[str] | None,
        typer.Option(help="folder or s3:// prefix that corpora, models and outputs may lie under; may be repeated"),
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="TOML file with settings; all are in docs/service.md")] = None,
    reindex: Annotated[
        bool, typer.Option("--reindex", help="first rebuild the jobs' table from their directories")
    ] = False,
    new_key: Annotated[bool, typer.Option("--new-key", help="print one more API key with all scopes")] = False,
) -> None:
    """Serve the REST API and the dashboard; prints an API key on its first start."""
    from pydantic import ValidationError

    from curator import storage

    try:
        from service.serve import serve as serve_until_stopped
        from service.settings import load_settings
    except ImportError as error:
        raise SpecError(f"serve needs {error.name}, which is not installed: install token-curator[service]") from error
    roots = tuple(storage.absolute(root) for root in allow_root) if allow_root else None
    try:
        chosen = load_settings(settings, host=host, port=port, data_dir=data_dir, allow_root=roots)
    except (ValidationError, ValueError) as error:
        raise SpecError(f"settings: {error}") from error
    serve_until_stopped(chosen, reindex=reindex, new_key=new_key)


def _finish(manifest: "object") -> None:
    """Print where the result is, and exit 3 if something was quarantined."""
    from curator import storage
    from curator.manifest import Manifest

    assert isinstance(manifest, Manifest)
    totals, root = manifest.totals, storage.absolute(manifest.spec["output"]["uri"])
    share = totals.kept_tokens / totals.scored_tokens if totals.scored_tokens else 0.0
    out.print(f"dataset    {root}")
    if manifest.content == "dataset":
        out.print(f"report     {storage.join(root, 'report.html')}")
    out.print(f"rows       {totals.rows:,} ({totals.rows_without_kept_tokens:,} without a kept token)")
    out.print(f"tokens     {totals.tokens:,}, kept {totals.kept_tokens:,} ({share:.2%} of those scored)")
    if totals.duplicate_ids:
        out.print(f"ids        {totals.duplicate_ids:,} rows repeat an earlier row's id; all are kept")
    if manifest.lost_shards:
        out.print(f"lost       {len(manifest.lost_shards):,} shards, listed in manifest.json")
    if totals.quarantined_rows:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.quarantined.items())
        out.print(f"quarantine {totals.quarantined_rows:,} rows ({reasons}), listed in quarantine.jsonl")
    if totals.quarantined_rows or manifest.lost_shards:
        raise typer.Exit(QUARANTINED)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def main() -> None:
    """Run the command; errors made on purpose print one message and no traceback."""
    try:
        with heeded():
            app()
    except CuratorError as error:
        if not logs.told(error):
            err.print(f"error: {hide(str(error))}")
        sys.exit(BAD_USAGE if isinstance(error, SpecError | OutputError) else FAILED)
    except KeyboardInterrupt:
        _leave_interrupted()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer's word for Ctrl-C, once it has read the arguments
            _leave_interrupted()
        raise


def _leave_interrupted() -> NoReturn:
    if not logs.told("interrupted; run the same command to resume"):
        err.print("interrupted; run the same command to resume")
    sys.stdout.flush()
    os._exit(INTERRUPTED)  # Ray's farewell may crash when it was interrupted while it started
