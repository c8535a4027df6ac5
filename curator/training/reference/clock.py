"""When a training run ends, how its learning rate falls, and what it says meanwhile.

The learning rate follows how much of the run is over, by steps or by time, whichever is further: a run that is cut off
by the clock still ends its cosine. This module imports transformers; import it only to train.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import TrainerCallback

from curator.training.reference import distributed

_LINE_EVERY_S = 5.0


@dataclass
class Clock:
    """How much of the run is over, by steps or by time."""

    total_steps: int
    limit_s: float
    step: int = 0
    started: float = 0.0
    elapsed_s: float = 0.0

    def start(self) -> None:
        """Training begins, or goes on."""
        self.started = time.monotonic() - self.elapsed_s

    def tick(self) -> None:
        """A step ended."""
        self.step += 1
        self.elapsed_s = distributed.of_main(time.monotonic() - self.started)

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return min(1.0, max(self.step / self.total_steps, self.elapsed_s / self.limit_s))

    @property
    def over(self) -> bool:
        """Whether the next step, taking as long as the mean, would end behind the limit."""
        return self.elapsed_s + self.elapsed_s / max(self.step, 1) > self.limit_s

    def learning_rate_factor(self) -> float:
        """Half a cosine, from 1 to 0."""
        return 0.5 * (1 + math.cos(math.pi * self.progress))


@dataclass
class Report(TrainerCallback):  # type: ignore[misc]
    """Moves the clock, stops at its limit and says a line every few seconds.

    Attributes:
        clock: what it moves.
        tokens_of: tokens of a step, from 0.
        say: takes lines.
        tokens: seen so far, repeated ones counted again.
    """

    clock: Clock
    tokens_of: Callable[[int], int]
    say: Callable[[str], None]
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    said_at: float = -math.inf
    began_with: tuple[int, float] = (0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.began_with = self.tokens, self.clock.elapsed_s
        self.clock.start()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the clock: here, since the schedule is asked for the next learning rate right after."""
        self.tokens += self.tokens_of(self.clock.step)
        self.clock.tick()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when time is up."""
        control.should_training_stop |= self.clock.over

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Say how it goes, now and then and at the end."""
        if not logs or "loss" not in logs:
            return
        self.losses.append(logs["loss"])
        clock = self.clock
        if clock.over or clock.step == clock.total_steps or clock.elapsed_s - self.said_at >= _LINE_EVERY_S:
            tokens, since = self.began_with
            rate, left = (self.tokens - tokens) / (clock.elapsed_s - since), clock.elapsed_s * (1 / clock.progress - 1)
            self.say(
                f"step {clock.step:,} of at most {clock.total_steps:,}  loss {np.mean(self.losses):.4f}  "
                f"{self.tokens:,} tokens  {rate:,.0f} tokens/s  {left:,.0f} s left"
            )
            self.losses.clear()
            self.said_at = clock.elapsed_s
