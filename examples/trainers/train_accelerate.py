"""Train on a curated dataset with plain PyTorch and Accelerate.

    python examples/trainers/train_accelerate.py DATASET MODEL OUTPUT [--sequence-length 1024] [--steps 100] ...
    accelerate launch --num_processes 8 examples/trainers/train_accelerate.py ...

An optimiser step is a list of micro-batches. What they are divided by is summed over the list and over all ranks
before the first forward, so `Accelerator(gradient_accumulation_steps=...)`, which would average micro-batches whatever
they weigh, is not used.
"""

import argparse
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import curator
from curator.training import Collator, Endless
from curator.training.objective import Objective


def train_step(
    accelerator: Accelerator, model: Any, optimizer: Any, batches: list[dict[str, torch.Tensor]], objective: Objective
) -> float:
    """One optimiser step over micro-batches; returns the loss of the whole step, over all ranks."""
    amounts = torch.stack([objective.amount(batch) for batch in batches]).to(accelerator.device)
    denominator = accelerator.reduce(amounts.sum(), "sum")
    model.train()
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(batches, start=1):
        with nullcontext() if number == len(batches) else accelerator.no_sync(model):
            loss, _ = objective.loss(model, batch, denominator)
            accelerator.backward(loss * accelerator.num_processes)  # gradients are averaged over ranks
        total += loss.detach()
    optimizer.step()
    optimizer.zero_grad()
    return float(accelerator.reduce(total, "sum"))


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train on a curated dataset with Accelerate.")
    parser.add_argument("dataset", help="folder of a curated dataset")
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("output", help="folder for the trained model")
    parser.add_argument("--sequence-length", type=int, default=1024, help="pack to this many tokens; 0 = whole rows")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=options.cpu)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    # curator.load gives each rank its own rows, so the loader itself is not prepared. Epoch follows epoch without an
    # end, so that no rank waits for another that has fewer rows.
    data = Endless(curator.load(options.dataset, options.sequence_length or None))
    loader = DataLoader(data, batch_size=options.micro_batch, collate_fn=Collator())
    model, optimizer = accelerator.prepare(model, optimizer)
    stream = (send_to_device(batch, accelerator.device) for batch in loader)
    for step in range(1, options.steps + 1):
        loss = train_step(accelerator, model, optimizer, list(islice(stream, options.accumulate)), Objective())
        accelerator.print(f"step {step}  loss {loss:.4f}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(options.output)
        AutoTokenizer.from_pretrained(options.model).save_pretrained(options.output)
    accelerator.end_training()


if __name__ == "__main__":
    main()
