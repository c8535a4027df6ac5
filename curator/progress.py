"""Live progress of a run: bars on a terminal, one plain line every ten seconds otherwise.

The pipeline only knows the `Reporter` protocol; whoever wants other output (a service, a test) passes its own.
What is said may be a job's log, which its user sees: secrets are hidden (`curator.hiding`).
"""

import sys
import time
from typing import Literal, Protocol, TextIO, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from curator.hiding import hide

LINE_INTERVAL_S = 10.0

ShardResult = Literal["published", "adopted", "retried", "failed", "lost"]
"""What became of a shard in a stage: published now; found whole, left by a killed run; an attempt failed and is made
again; every attempt failed and so does the job; every attempt failed and the dataset does without it."""


class Reporter(Protocol):
    """What a run tells while it goes on."""

    def start(self, stage: str, shards: int, tokens: int) -> None:
        """A stage begins; `tokens` is an estimate of its work, 0 if unknown."""
        ...

    def update(self, shards_done: int, tokens_done: int, workers: int) -> None:
        """The running stage has advanced."""
        ...

    def finish(self) -> None:
        """The running stage has ended."""
        ...

    def say(self, message: str) -> None:
        """One line that stays."""
        ...


@runtime_checkable
class ShardCounter(Protocol):
    """A Reporter that also wants to know what became of the shards, such as one that feeds a service's figures."""

    def count_shards(self, result: ShardResult, shards: int) -> None:
        """So many more shards of the running stage have this result."""
        ...


def count_shards(reporter: Reporter, result: ShardResult, shards: int = 1) -> None:
    """Tell a reporter what became of shards, if it wants to know."""
    if shards and isinstance(reporter, ShardCounter):
        reporter.count_shards(result, shards)


def describe_rate(tokens_done: int, tokens: int, elapsed_s: float) -> str:
    """`1,234 tokens/s, ETA 0:05:10`, as far as it can be known."""
    if not tokens_done or elapsed_s <= 0:
        return "starting"
    rate = tokens_done / elapsed_s
    remaining_s = max(tokens - tokens_done, 0) / rate
    minutes, seconds = divmod(round(remaining_s), 60)
    return f"{rate:,.0f} tokens/s, ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Silent:
    """Reports nothing."""

    def start(self, stage: str, shards: int, tokens: int) -> None:
        """Do nothing."""

    def update(self, shards_done: int, tokens_done: int, workers: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def say(self, message: str) -> None:
        """Do nothing."""


class Lines:
    """Plain lines, for logs: one at a stage's start and end, and one every `LINE_INTERVAL_S` seconds between."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._stage, self._shards, self._tokens = "", 0, 0
        self._started_s = self._printed_s = 0.0
        self._done = (0, 0)

    def start(self, stage: str, shards: int, tokens: int) -> None:
        """Print the stage's first line."""
        self._stage, self._shards, self._tokens = stage, shards, tokens
        self._started_s = self._printed_s = time.monotonic()
        self._done = (0, 0)
        self.say(f"{stage}: {shards:,} shards, about {tokens:,} tokens")

    def update(self, shards_done: int, tokens_done: int, workers: int) -> None:
        """Print a line if the last one is old enough."""
        self._done = (shards_done, tokens_done)
        now_s = time.monotonic()
        if now_s - self._printed_s >= LINE_INTERVAL_S:
            self._printed_s = now_s
            rate = describe_rate(tokens_done, self._tokens, now_s - self._started_s)
            counts = f"{shards_done:,}/{self._shards:,} shards, {tokens_done:,} tokens"
            self.say(f"{self._stage}: {counts}, {workers} workers, {rate}")

    def finish(self) -> None:
        """Print the stage's last line."""
        elapsed_s = time.monotonic() - self._started_s
        shards_done, tokens_done = self._done
        rate = f", {tokens_done / elapsed_s:,.0f} tokens/s" if tokens_done and elapsed_s > 0 else ""
        self.say(f"{self._stage}: done, {shards_done:,} shards, {tokens_done:,} tokens in {elapsed_s:.1f} s{rate}")

    def say(self, message: str) -> None:
        """Print one line."""
        print(hide(message), file=self._stream, flush=True)


class Bars:
    """One rich bar per stage, for terminals."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shards"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._tokens, self._started_s = 0, 0.0

    def start(self, stage: str, shards: int, tokens: int) -> None:
        """Show a new bar."""
        self._progress.start()
        self._tokens, self._started_s = tokens, time.monotonic()
        self._task = self._progress.add_task(stage, total=shards, rate="starting")

    def update(self, shards_done: int, tokens_done: int, workers: int) -> None:
        """Move the bar; between shards it moves by tokens."""
        if self._task is None:
            return
        total = self._progress.tasks[self._task].total or 0
        share = min(tokens_done / self._tokens, 1.0) * total if self._tokens else shards_done
        rate = describe_rate(tokens_done, self._tokens, time.monotonic() - self._started_s)
        self._progress.update(self._task, completed=max(shards_done, int(share)), rate=rate)

    def finish(self) -> None:
        """Complete the bar and leave it standing."""
        if self._task is not None:
            self._progress.update(self._task, completed=self._progress.tasks[self._task].total)
        self._progress.stop()
        self._task = None

    def say(self, message: str) -> None:
        """Print one line above the bars."""
        self._progress.console.print(hide(message), markup=False, highlight=False)


def make_reporter(console: Console | None = None) -> Reporter:
    """Bars on a terminal, plain lines otherwise; both on standard error."""
    console = console or Console(stderr=True, emoji=False)
    return Bars(console) if console.is_terminal else Lines()
