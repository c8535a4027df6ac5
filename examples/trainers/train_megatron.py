r"""Pre-train with Megatron-LM on a dataset exported by `curator export DIR --for megatron`, weights included.

`WeightedGPTDataset` is Megatron's `GPTDataset` with a `loss_mask` made of the stored weights. Run this file in place
of `pretrain_gpt.py`, with its arguments:

    PYTHONPATH=Megatron-LM torchrun --nproc_per_node=8 train_megatron.py --data-path EXPORT/curated \
        --calculate-per-token-loss --dataloader-inter-document-masking --split 100,0,0 ...

Megatron's loss is sum(loss * loss_mask), divided by int(sum(loss_mask)) over all micro-batches and ranks of the step
(`--calculate-per-token-loss`). The cast loses the fraction of a soft weight sum; `--weight-scale 256` multiplies all
weights, and so both sides, and makes what is lost 256 times smaller. Masks of 0 and 1 lose nothing.

The class is tested with megatron-core 0.16.1, and was read against Megatron-LM's main branch of August 2026.
"""

import argparse
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset


class WeightedGPTDataset(GPTDataset):
    """A `GPTDataset` that reads PREFIX_weights beside PREFIX and trains on each token by its weight."""

    weight_scale: float = 1.0

    def __init__(self, indexed_dataset: IndexedDataset, dataset_path: str, *others: Any, **named: Any) -> None:
        super().__init__(indexed_dataset, dataset_path, *others, **named)
        self.weights = IndexedDataset(f"{dataset_path}_weights", mmap=self.config.mmap_bin_files)
        if not np.array_equal(self.weights.sequence_lengths, indexed_dataset.sequence_lengths):
            raise ValueError(f"{dataset_path}_weights belongs to other documents than {dataset_path}; export both anew")

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(idx)  # idx None is a row that only fills a batch: its mask is 0
        weights = torch.from_numpy(self._read_weights(0 if idx is None else idx))
        length = self.config.sequence_length
        # Labels are the tokens one step later, and a token's weight sits at its own index. Behind the last one, which
        # only a window without the extra token has, nothing is predicted.
        targets = torch.zeros(length)
        shifted = weights[1 : length + 1]
        targets[: len(shifted)] = shifted
        sample["loss_mask"] = sample["loss_mask"] * targets * self.weight_scale
        return sample

    def _read_weights(self, idx: int) -> np.ndarray:
        """Weights of the tokens of a window, found by the same three indices as the tokens."""
        row = self.shuffle_index[idx]
        (first, begin), (last, end) = self.sample_index[row], self.sample_index[row + 1]
        parts = []
        for place in range(first, last + 1):
            start = int(begin) if place == first else 0
            stop = int(end) + int(self.config.add_extra_token_to_sequence) if place == last else None
            length = None if stop is None else stop - start
            parts.append(self.weights.get(int(self.document_index[place]), offset=start, length=length))
        return np.concatenate(parts)


def main() -> None:
    """Run `pretrain_gpt.py` of the Megatron-LM on PYTHONPATH with the dataset class above."""
    import pretrain_gpt
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser.add_argument("--weight-scale", type=float, default=1.0, help="multiply weights, for soft ones: 256")
        return parser

    arguments = parse_and_validate_args(extra_args_provider=add_arguments, args_defaults={})
    if not arguments.calculate_per_token_loss:
        raise SystemExit("--calculate-per-token-loss is missing: without it each micro-batch is averaged by itself")
    WeightedGPTDataset.weight_scale = arguments.weight_scale
    pretrain_gpt.GPTDataset = WeightedGPTDataset
    provider = pretrain_gpt.train_valid_test_datasets_provider
    provider.is_distributed = True
    pretrain(
        pretrain_cfg_container_from_args(arguments, gpt_config_from_args(arguments)),
        provider,
        ModelType.encoder_or_decoder,
        pretrain_gpt.forward_step,
        get_embedding_ranks=pretrain_gpt.get_embedding_ranks,
    )


if __name__ == "__main__":
    main()
