"""One way to train and to measure a model, for the base and for every arm alike."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from setting import Setting
from torch import Tensor
from transformers import AutoModelForCausalLM

from curator.scorers.memory import keep_freed_memory
from curator.training import weighted_cross_entropy

Batch = dict[str, Tensor]
Loss = Callable[[Tensor, Batch], Tensor]
_EVALUATED_AT_ONCE = 16


def load_model(folder: Path, setting: Setting) -> Any:
    """A model in float32; its products run in bfloat16 where the hardware multiplies it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(setting.device)


def autocast(device: torch.device) -> Any:
    """Products in bfloat16 where that is faster."""
    capable = torch.cpu.get_capabilities() if device.type == "cpu" else {"avx512_bf16": True}
    enabled = bool(capable.get("avx512_bf16") or capable.get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def stored_weights(logits: Tensor, batch: Batch) -> Tensor:
    """The loss of every arm whose selection is in the data set."""
    return weighted_cross_entropy(logits, batch["input_ids"], batch["token_weights"])


@dataclass
class Plan:
    """How to train.

    Attributes:
        steps: optimiser steps.
        rate: learning rate after `warmup` steps.
        decay: last share of the steps, in which the rate falls to 0 along half a cosine; 0 = constant, so that every
            point of the curve is a result that one could have stopped at.
        look: called with the step before training and after each of `look_at`.
        halfway: called once after half the steps; gives what the other half trains on.
        keep: file in which a stopped training is found again; None = it begins anew.
    """

    steps: int
    rate: float
    warmup: int
    decay: float = 0.0
    look_at: frozenset[int] = frozenset()
    look: Callable[[int], None] = field(default=lambda step: None)
    weight_decay: float = 0.1
    keep: Path | None = None
    halfway: Callable[[], Iterator[Batch]] | None = None

    def factor(self, step: int) -> float:
        """What the rate is multiplied by in step 0, 1, ..."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = self.steps * (1 - self.decay)
        if self.decay == 0 or step < start:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - start) / (self.steps - start)))


def train(model: Any, batches: Iterator[Batch], plan: Plan, setting: Setting, loss: Loss = stored_weights) -> float:
    """Train in place; returns the seconds spent in steps, looking not counted."""
    keep_freed_memory()  # a quarter more steps a second on one core
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.rate, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.factor)
    done, seconds = 0, 0.0
    if plan.keep is not None and plan.keep.exists():
        done, seconds = _take_up(plan.keep, model, optimizer, schedule)
        batches = itertools.islice(batches, done, None)
    else:
        plan.look(0)
    for step in range(done + 1, plan.steps + 1):
        began = time.perf_counter()
        batch = {name: values.to(setting.device) for name, values in next(batches).items()}
        with autocast(setting.device):
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        loss(logits, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - began
        if plan.halfway is not None and step == plan.steps // 2:
            batches = plan.halfway()
        if step in plan.look_at:
            plan.look(step)
            if plan.keep is not None:
                state = {"step": step, "seconds": seconds, "model": model.state_dict()}
                state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                torch.save(state, plan.keep.with_suffix(".part"))
                plan.keep.with_suffix(".part").replace(plan.keep)
    return seconds


def _take_up(kept: Path, model: Any, optimizer: Any, schedule: Any) -> tuple[int, float]:
    state = torch.load(kept, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return state["step"], state["seconds"]


def batched(sequences: Iterable[dict[str, Tensor]], count: int) -> Iterator[Batch]:
    """Stack `count` packed sequences at a time; what is left at the end is not used."""
    waiting: list[dict[str, Tensor]] = []
    for sequence in sequences:
        waiting.append(sequence)
        if len(waiting) == count:
            yield {name: torch.stack([row[name] for row in waiting]) for name in waiting[0]}
            waiting = []


def measure(model: Any, documents: list[np.ndarray], setting: Setting) -> float:
    """Mean loss per predicted token in nats; documents longer than the training sequence are cut to it."""
    documents = sorted((ids[: setting.size.sequence_length] for ids in documents), key=len)
    total = tokens = 0.0
    with torch.inference_mode():
        for start in range(0, len(documents), _EVALUATED_AT_ONCE):
            part = documents[start : start + _EVALUATED_AT_ONCE]
            ids = torch.zeros(len(part), max(map(len, part)), dtype=torch.int64)
            weights = torch.zeros(ids.shape)
            for row, values in enumerate(part):
                ids[row, : len(values)] = torch.from_numpy(values.astype(np.int64))
                weights[row, : len(values)] = 1
            ids, weights = ids.to(setting.device), weights.to(setting.device)
            with autocast(setting.device):
                logits = model(input_ids=ids, use_cache=False).logits
            total += weighted_cross_entropy(logits, ids, weights, denominator=1.0).item()
            tokens += weights[:, 1:].sum().item()
    return total / tokens


def token_losses(model: Any, documents: list[np.ndarray], setting: Setting) -> np.ndarray:
    """Loss of every predicted token in nats, documents one after the other."""
    found = []
    with torch.inference_mode():
        for ids in documents:
            row = torch.from_numpy(ids[None, : setting.size.sequence_length].astype(np.int64)).to(setting.device)
            with autocast(setting.device):
                logits = model(input_ids=row, use_cache=False).logits
            found.append(torch.nn.functional.cross_entropy(logits[0, :-1].float(), row[0, 1:], reduction="none").cpu())
    return torch.cat(found).numpy()
