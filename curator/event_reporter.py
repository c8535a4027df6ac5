"""Progress of a job as events: what the service's users watch, beside what a person at a terminal reads.

Invariants: every progress event holds all stages so far, so that the newest one alone says how far the job is; and its
`counted` holds only what has been done since the one before, so that whoever adds up all of them counts nothing twice,
however often the job is started again.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from curator.hiding import hide
from curator.progress import Reporter, ShardResult

_PROGRESS_S = 1.0

Write = Callable[[str, dict[str, Any]], None]
"""Takes the type and the data of an event."""


class EventReporter:
    """A Reporter that writes events, and passes everything on to one that a person reads."""

    def __init__(self, write: Write, shown: Reporter) -> None:
        self._write, self._shown = write, shown
        self._stages: list[dict[str, Any]] = []
        self._status = "validating"
        self._started_s = self._written_s = 0.0
        self._done = (0, 0, 0)
        self._tokens_counted = 0
        self._results: Counter[ShardResult] = Counter()

    def start(self, stage: str, shards: int, tokens: int) -> None:
        """A stage begins; the first one puts the job in progress, publishing finalizes it."""
        status = "finalizing" if stage == "publish" else "in_progress"
        if status != self._status:
            self._write("state", {"status": status})
            self._status = status
        entry = {"stage": stage, "shards": shards, "tokens": tokens, "state": "started"}
        self._stages.append(entry)
        self._write("stage", entry)
        self._started_s = time.monotonic()
        self._done = (0, 0, 0)
        self._tokens_counted = 0
        self._progress()
        self._shown.start(stage, shards, tokens)

    def update(self, shards_done: int, tokens_done: int, workers: int) -> None:
        """The stage has advanced; written once a second at most."""
        self._done = (shards_done, tokens_done, workers)
        if time.monotonic() - self._written_s >= _PROGRESS_S:
            self._progress()
        self._shown.update(shards_done, tokens_done, workers)

    def finish(self) -> None:
        """The stage has ended."""
        seconds = round(time.monotonic() - self._started_s, 3)
        self._stages[-1] = self._stages[-1] | {"state": "finished", "seconds": seconds}
        self._write("stage", self._stages[-1])
        self._progress()
        self._shown.finish()

    def count_shards(self, result: ShardResult, shards: int) -> None:
        """Part of the next progress event."""
        self._results[result] += shards

    def flush(self) -> None:
        """Write what a stage that was broken off had done since its last progress event."""
        if self._stages and (self._results or self._new_tokens()):
            self._progress()

    def say(self, message: str) -> None:
        """One line; whoever may read the job's events sees it, and no secret in it."""
        self._write("message", {"text": hide(message)})
        self._shown.say(message)

    def _progress(self) -> None:
        self._written_s = time.monotonic()
        shards_done, tokens_done, workers = self._done
        stage = self._stages[-1]
        elapsed_s = self._written_s - self._started_s
        rate = tokens_done / elapsed_s if tokens_done and elapsed_s > 0 else None
        remaining = max(stage["tokens"] - tokens_done, 0)
        self._write(
            "progress",
            {
                "stage": stage["stage"], "stages": self._stages,
                "shards_done": shards_done, "shards": stage["shards"],
                "tokens_done": tokens_done, "tokens": stage["tokens"], "workers": workers,
                "tokens_per_s": None if rate is None else round(rate, 1),
                "eta_s": None if not rate else round(remaining / rate, 1),
                "counted": self._take_counts(),
            },
        )  # fmt: skip

    def _take_counts(self) -> dict[str, Any]:
        tokens, shards = self._new_tokens(), dict(self._results)
        self._tokens_counted += tokens
        self._results.clear()
        return {"tokens": tokens, "shards": shards}

    def _new_tokens(self) -> int:
        """Tokens done and not counted yet; 0 after a failed attempt, until as many have been done again.

        While a stage runs, workers' figures are ahead for moments: they count up to the stage's estimate.
        """
        done, stage = self._done[1], self._stages[-1]
        if stage["state"] == "started":
            done = min(done, stage["tokens"])
        return max(done - self._tokens_counted, 0)
