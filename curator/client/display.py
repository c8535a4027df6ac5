"""How a job of the service is shown: live bars on a terminal, plain lines otherwise, a table of many.

The figures are the service's own (its rate and ETA), so that they are right also for who looks in on a job midway.
"""

import time
from collections.abc import Iterable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from curator.client.records import Progress as JobProgress
from curator.client.records import RemoteJob
from curator.report.visible_text import as_shown

LINE_INTERVAL_S = 10.0


def printable(text: str) -> str:
    """Text of a job as one line for a terminal: without colours, and with control characters made visible."""
    return as_shown(Text.from_ansi(text).plain).replace("\r", "\u240d").replace("\n", "\u240a")


def describe(progress: JobProgress) -> str:
    """`12/40 shards, 1,234 tokens, 4 workers, 1,234 tokens/s, ETA 0:05:10`, as far as it is known."""
    shards = f"{progress.shards_done:,}" + (f"/{progress.shards:,}" if progress.shards else "")
    parts = [f"{shards} shards", f"{progress.tokens_done:,} tokens"]
    if progress.workers:
        parts.append(f"{progress.workers} workers")
    return ", ".join([*parts, *describe_rate(progress)])


def describe_rate(progress: JobProgress) -> list[str]:
    """Rate and ETA, those that are known."""
    parts = [f"{progress.tokens_per_s:,.0f} tokens/s"] if progress.tokens_per_s else []
    if progress.eta_s is not None:
        minutes, seconds = divmod(round(progress.eta_s), 60)
        parts.append(f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
    return parts


class Display(Protocol):
    """Shows one job as it changes."""

    def show(self, job: RemoteJob) -> None:
        """The job has changed."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class JobLines:
    """A line for each state and stage, and one every `LINE_INTERVAL_S` seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = ""
        self._begun: set[tuple[int, str]] = set()
        self._ended: set[tuple[int, str]] = set()
        self._printed_s = time.monotonic()

    def show(self, job: RemoteJob) -> None:
        """Print what is new."""
        if job.status != self._status:
            self._status = job.status
            waiting = f", number {job.queue_position} of the queue" if job.queue_position else ""
            self._say(f"{job.id}: {job.status}{waiting}")
        if job.progress is None:
            return
        for stage in job.progress.stages:
            key = (job.attempt, stage.stage)
            if key not in self._begun:
                self._begun.add(key)
                self._say(f"{stage.stage}: {stage.shards or 0:,} shards, about {stage.tokens or 0:,} tokens")
            if stage.state == "finished" and key not in self._ended:
                self._ended.add(key)
                took = "" if stage.seconds is None else f" in {stage.seconds:.1f} s"
                self._say(f"{stage.stage}: done{took}")
        if job.progress.stage and time.monotonic() - self._printed_s >= LINE_INTERVAL_S:
            self._say(f"{job.progress.stage}: {describe(job.progress)}")

    def close(self) -> None:
        """Nothing to do."""

    def _say(self, line: str) -> None:
        self._printed_s = time.monotonic()
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


class JobBars:
    """One bar per stage."""

    def __init__(self, console: Console) -> None:
        self._lines = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shards"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            console=console,
        )
        self._bars: dict[tuple[int, str], TaskID] = {}
        self._status = ""
        self._lines.start()

    def show(self, job: RemoteJob) -> None:
        """Move the bars; a new state is a line above them."""
        if job.status != self._status:
            self._status = job.status
            self._lines.console.print(f"{job.id}: {job.status}", markup=False, highlight=False)
        if job.progress is None:
            return
        for stage in job.progress.stages:
            key = (job.attempt, stage.stage)
            if key not in self._bars:
                self._bars[key] = self._lines.add_task(printable(stage.stage), total=stage.shards, rate="")
            if stage.state == "finished":
                self._lines.update(self._bars[key], completed=stage.shards or 0, rate="")
                self._lines.stop_task(self._bars[key])
            elif stage.stage == job.progress.stage:
                rate = ", ".join(describe_rate(job.progress)) or "starting"
                self._lines.update(self._bars[key], completed=_shards_done(job.progress), rate=rate)

    def close(self) -> None:
        """Leave the bars standing."""
        self._lines.stop()


def _shards_done(progress: JobProgress) -> float:
    """Shards with their fractions: between shards the bar moves by tokens."""
    share = min(progress.tokens_done / progress.tokens, 1.0) if progress.tokens else 0.0
    return max(progress.shards_done, share * (progress.shards or 0))


def make_display(console: Console | None = None) -> Display:
    """Bars on a terminal, plain lines otherwise; both on standard error."""
    console = console or Console(stderr=True, emoji=False)
    return JobBars(console) if console.is_terminal else JobLines(console)


def make_table(jobs: Iterable[RemoteJob]) -> Table:
    """Jobs, one a row."""
    table = Table("job", "name", "status", "progress", "created", box=None, pad_edge=False, header_style="bold")
    for job in jobs:
        created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M") if job.created_at else ""
        progress = ""
        if job.progress is not None and not job.finished:
            progress = f"{job.progress.stage or ''}: {describe(job.progress)}"
        elif job.quarantined_rows:
            progress = f"{job.quarantined_rows:,} rows quarantined"
        table.add_row(*(Text(printable(cell)) for cell in (job.id, job.name or "", job.status, progress, created)))
    return table
