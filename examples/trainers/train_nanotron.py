"""Pre-train with nanotron on a dataset exported by `curator export DIR --for nanotron --sequence-length N`.

Nanotron's collators make `label_mask` from positions and would learn every token. Here a dataset reads the stored mask
(`curated.ds.loss`) and a collator multiplies it in. Run this file in place of `run_train.py`, with its arguments:

    PYTHONPATH=nanotron torchrun --nproc_per_node=8 train_nanotron.py --config-file config.yaml

In the config `data.dataset` is `dataset_folder: EXPORT`, and `tokens.sequence_length` is N - 1: nanotron reads windows
of one token more. Written against nanotron's main branch of April 2026, which needs GPUs; not run by our tests.
"""

from pathlib import Path
from typing import Any

import numpy as np
import run_train
from nanotron.data import tokenized_bytes
from nanotron.trainer import DistributedTrainer

Example = dict[str, Any]


class MaskedFolder(tokenized_bytes.TokenizedBytesFolderDataset):
    """Windows of token ids with their masks, and positions from the index where nanotron asks for them."""

    def __init__(self, folder_path: str, seq_len: int, *, return_positions: bool = False, **named: Any) -> None:
        # Positions are made here: nanotron's own reset at end-of-text tokens, which a dataset need not have.
        super().__init__(folder_path, seq_len, return_positions=False, **named)
        self._give_positions = return_positions
        path = Path(folder_path) / "curated.ds"
        self._mask = np.memmap(f"{path}.loss", np.bool_, "r").reshape(-1, seq_len + 1)
        self._ends = np.memmap(f"{path}.index", "<u8", "r")

    def __getitem__(self, item: int) -> Example:
        row = item % len(self._mask)
        example = {**super().__getitem__(row), "mask": self._mask[row]}
        if self._give_positions:
            example["positions"] = self._positions(row)
        return example

    def _positions(self, row: int) -> np.ndarray:
        """Places within documents: each window begins with one and ends with one."""
        length = self._mask.shape[1]
        first, last = np.searchsorted(self._ends, [row * length, (row + 1) * length], side="right")
        starts = np.concatenate([[0], self._ends[first : last - 1].astype(np.int64) - row * length])
        return np.arange(length) - np.repeat(starts, np.diff(np.append(starts, length)))


def masked(collator: type) -> type:
    """A collator whose `label_mask` is also False where the dataset's is."""

    class MaskedCollator(collator):  # type: ignore[misc]
        def __call__(self, examples: list[Example]) -> dict[str, Any]:
            batch = super().__call__(examples)
            if isinstance(batch["label_mask"], np.ndarray):  # else another pipeline rank has it
                targets = np.vstack([example["mask"] for example in examples])[:, 1:]
                ranks = self.parallel_context.context_parallel_size
                rank = self.parallel_context.cp_pg.rank()
                part = slice(rank * self.sequence_length // ranks, (rank + 1) * self.sequence_length // ranks)
                batch["label_mask"] &= targets[:, part]
            return batch

    return MaskedCollator


def main() -> None:
    """Run `run_train.py` of the nanotron on PYTHONPATH with the classes above."""
    tokenized_bytes.TokenizedBytesFolderDataset = MaskedFolder
    tokenized_bytes.DataCollatorForCLM = masked(tokenized_bytes.DataCollatorForCLM)
    tokenized_bytes.DataCollatorForCLMWithPositionIds = masked(tokenized_bytes.DataCollatorForCLMWithPositionIds)
    arguments = run_train.get_args()
    trainer = DistributedTrainer(arguments.config_file)
    trainer.train(run_train.get_dataloader(trainer, arguments.sanity_check_dataloader_interval))


if __name__ == "__main__":
    main()
