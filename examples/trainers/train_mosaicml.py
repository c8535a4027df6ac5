"""Train with MosaicML Streaming on a dataset exported by `curator export DIR --for mosaicml --sequence-length N`.

    python -m venv streaming && streaming/bin/pip install mosaicml-streaming transformers
    streaming/bin/python train_mosaicml.py curated_mosaicml --model HuggingFaceTB/SmolLM2-135M --steps 100

An environment of its own, without token-curator: mosaicml-streaming needs transformers below 5 and numpy below 2.2.
`StreamingDataset` splits rows over ranks and workers and resumes by itself.
Written for mosaicml-streaming 0.13.0.
"""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from streaming import StreamingDataset
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack packed rows; arrays of MDS are views of read-only memory, so they are copied."""
    names = ("input_ids", "position_ids", "token_weights")
    batch = {name: torch.stack([torch.from_numpy(item[name].copy()) for item in items]) for name in names}
    return {name: values if name == "token_weights" else values.long() for name, values in batch.items()}


def weighted_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor], denominator: torch.Tensor) -> torch.Tensor:
    """Sum of w * CE over the tokens that have a token before them, divided by the weight sum of the whole step."""
    losses = cross_entropy(logits[:, :-1].float().flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none")
    return (losses * batch["token_weights"][:, 1:].flatten()).sum() / denominator


def train_step(model: Any, optimizer: torch.optim.Optimizer, batches: list[dict[str, torch.Tensor]]) -> float:
    """One optimiser step over micro-batches, divided by the weight sum of them all; returns its loss."""
    denominator = torch.stack([batch["token_weights"][:, 1:].sum() for batch in batches]).sum()
    total = 0.0
    for batch in batches:
        # With a cache, or with an attention mask, packed documents would see each other.
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        loss = weighted_loss(logits, batch, denominator)
        loss.backward()
        total += float(loss)
    optimizer.step()
    optimizer.zero_grad()
    return total


def main() -> None:
    """Read the command line and train on one device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--output", default="runs/mosaicml")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(options.model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    rows = StreamingDataset(local=str(options.export / "mds"), shuffle=True, batch_size=options.micro_batch)
    loader = DataLoader(rows, batch_size=options.micro_batch, collate_fn=collate)

    def micro_batches() -> Any:
        while True:
            for batch in loader:
                yield {name: values.to(device) for name, values in batch.items()}

    stream = micro_batches()
    for step in range(1, options.steps + 1):
        print(f"step {step}  loss {train_step(model, optimizer, list(islice(stream, options.accumulate))):.4f}")
    model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
