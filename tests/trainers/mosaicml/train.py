"""MosaicML Streaming: MDS shards through its real `StreamingDataset` into the example's own step, packed."""

import sys
import tempfile
from pathlib import Path
from types import ModuleType

import oracle
import torch
from torch.utils.data import DataLoader


def main() -> None:
    """One SGD step over the shuffled rows of one epoch, in micro-batches of four."""
    folder = oracle.canary_folder()
    # Image readers need a torchvision that fits the build of torch, which a machine without a GPU may lack.
    sys.modules["torchvision"] = None
    sys.modules["streaming.vision"] = ModuleType("streaming.vision")
    from transformers import AutoModelForCausalLM

    example = oracle.load_example("train_mosaicml")
    for name in ("hard", "soft"):
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
        with tempfile.TemporaryDirectory() as cache:
            train(example, model, folder / "exports" / f"mosaicml-{name}" / "mds", cache)
        pieces = list(oracle.pieces(oracle.read_documents(folder, name), oracle.SEQUENCE_LENGTH))
        after = dict(model.named_parameters())
        model, update = oracle.updated(folder / "model", after, oracle.LEARNING_RATE)
        oracle.check(f"MosaicML Streaming, {name}, packed", model, update, pieces, oracle.causal_logits)


def train(example: ModuleType, model: torch.nn.Module, export: Path, cache: str) -> None:
    """One step over all rows."""
    from streaming import StreamingDataset

    rows = StreamingDataset(remote=str(export), local=cache, shuffle=True, batch_size=4)
    batches = list(DataLoader(rows, batch_size=4, collate_fn=example.collate))
    example.train_step(model, torch.optim.SGD(model.parameters(), lr=oracle.LEARNING_RATE), batches)


if __name__ == "__main__":
    main()
