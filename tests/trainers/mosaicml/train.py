"""MosaicML Streaming: MDS shards through its real `StreamingDataset` into a plain PyTorch step, packed."""

import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import oracle
import torch
from torch.utils.data import DataLoader

Batch = dict[str, torch.Tensor]


def main() -> None:
    """Accumulate over the shuffled rows of one epoch, in micro-batches of four."""
    folder = oracle.canary_folder()
    # Image readers need a torchvision that fits the build of torch, which a machine without a GPU may lack.
    sys.modules["torchvision"] = None
    sys.modules["streaming.vision"] = ModuleType("streaming.vision")
    from transformers import AutoModelForCausalLM

    for name in ("hard", "soft"):
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
        with tempfile.TemporaryDirectory() as cache:
            train(model, folder / "exports" / f"mosaicml-{name}" / "mds", cache)
        pieces = list(oracle.pieces(oracle.read_documents(folder, name), oracle.SEQUENCE_LENGTH))
        seen = oracle.gradients(model)
        oracle.check(f"MosaicML Streaming, {name}, packed", model, seen, pieces, oracle.causal_logits)


def train(model: torch.nn.Module, export: Path, cache: str) -> None:
    """One step over all rows."""
    from streaming import StreamingDataset

    rows = StreamingDataset(remote=str(export), local=cache, shuffle=True, batch_size=4)
    batches: list[Batch] = list(DataLoader(rows, batch_size=4, collate_fn=collate))
    total = sum(batch["token_weights"][:, 1:].sum() for batch in batches)
    for batch in batches:
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none"
        )
        (losses @ batch["token_weights"][:, 1:].flatten() / total).backward()


def collate(items: list[dict[str, np.ndarray]]) -> Batch:
    """Rows of one length as tensors; integers as torch wants them."""
    columns = {name: np.stack([item[name] for item in items]) for name in items[0]}
    return {
        name: torch.from_numpy(v.astype(np.int64 if v.dtype.kind == "i" else v.dtype)) for name, v in columns.items()
    }


if __name__ == "__main__":
    main()
