"""The command `curator check-trainer`: does a trainer use the weights? One command before its step, one after it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

FAILED = 1

out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)

commands = typer.Typer(
    help="Find out from one training step whether a trainer uses the weights, and if not, what it does instead.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add `check-trainer` to the `curator` command."""
    app.add_typer(commands, name="check-trainer")


@commands.command()
def write(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="new folder for the canary")],
    hard: Annotated[bool, typer.Option("--hard", help="weights of 0 and 1 only, for trainers that take masks")] = False,
) -> None:
    """Write a tiny model and a tiny curated dataset to train it on, for one step."""
    from curator.training.check.canary import DATA, MODEL, write_canary

    _hide_progress_bars()
    write_canary(directory, hard)
    out.print(f"model      {directory / MODEL}")
    out.print(f"dataset    {directory / DATA}")
    out.print(
        "train the model for exactly ONE optimiser step over all rows, in several micro-batches (README.md), then"
    )
    out.print(f"           curator check-trainer read {directory} CHECKPOINT")


@commands.command()
def read(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="what `write` wrote")],
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="trained model: folder or .safetensors")],
    rows: Annotated[int, typer.Option(min=1, help="kinds of explanation to list")] = 6,
) -> None:
    """Say which gradient the step followed. Exit code 0: the weights reach the loss; 1: they do not, or who knows."""
    from curator.training.check.verdict import check_trainer

    _hide_progress_bars()
    verdict = check_trainer(directory, checkpoint)
    out.print(verdict.summary)
    for note in verdict.notes:
        out.print(f"note: {note}")
    if verdict.fits:
        out.print(f"\n{'cosine':>8}  {'misfit':>8}  {'step of':<8} explanation")
    for fit in verdict.fits[:rows]:
        out.print(f"{fit.cosine:8.5f}  {fit.misfit:8.1e}  {fit.optimizer:<8} {fit.name}: {fit.says}")
    if not verdict.sound:
        raise typer.Exit(FAILED)


def _hide_progress_bars() -> None:
    """Nothing here takes long enough for one."""
    from transformers.utils import logging

    logging.disable_progress_bar()
