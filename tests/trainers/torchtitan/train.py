"""torchtitan: the example's dataloader and torchtitan's own loss, normalised as its trainer does.

Its `Trainer` and its models (flex attention) train on accelerators alone. So the step is written here: the loss summed
over the labels of each batch, divided by the number of labels of the whole step (`trainer.py`), for a small recurrent
model, which like an unmasked Llama sees the whole window.
"""

import itertools

import oracle
import torch
from torchtitan.components.loss import IGNORE_INDEX, cross_entropy_loss

example = oracle.load_example("train_torchtitan")

ROWS = 3


class Recurrent(torch.nn.Module):
    """Logits (B, T, V) for ids (B, T), each from the ids up to its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(oracle.VOCABULARY, 32)
        self.layers = torch.nn.GRU(32, 32, batch_first=True)
        self.head = torch.nn.Linear(32, oracle.VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Run over the whole window."""
        return self.head(self.layers(self.embedding(ids))[0])


def main() -> None:
    """One step over all rows of an epoch, in batches of three."""
    folder = oracle.canary_folder()
    windows = oracle.windows(oracle.read_documents(folder, "hard"), oracle.SEQUENCE_LENGTH)
    loader = example.CuratedDataLoader(
        example.CuratedDataLoader.Config(dataset_path=str(folder / "exports" / "torchtitan-hard")),
        dp_world_size=1,
        dp_rank=0,
        seq_len=oracle.SEQUENCE_LENGTH,
        local_batch_size=ROWS,
    )
    batches = list(itertools.islice(loader, len(windows) // ROWS))
    model = Recurrent()
    valid_tokens = sum(int((labels != IGNORE_INDEX).sum()) for _, labels in batches)
    for inputs, labels in batches:
        (cross_entropy_loss(model(inputs["input"]), labels) / valid_tokens).backward()
    oracle.check("torchtitan, masks", model, oracle.gradients(model), windows, lambda model, ids: model(ids))


if __name__ == "__main__":
    main()
