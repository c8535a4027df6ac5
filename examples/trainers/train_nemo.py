"""Fine-tune with NeMo's Megatron-Bridge on a dataset exported by `curator export DIR --for nemo --sequence-length N`.

    torchrun --nproc_per_node=1 train_nemo.py EXPORT --sequence-length N --checkpoint CONVERTED_LLAMA_3_2_1B

The recipe is Megatron-Bridge's for Llama 3.2 1B on one GPU; only its dataset, and how the loss is averaged, change.
Written against Megatron-Bridge's main branch of August 2026, which needs a GPU; not run by our tests.
"""

import argparse
from pathlib import Path

from megatron.bridge.data.builders.gpt_sft import GPTSFTDatasetConfig
from megatron.bridge.data.packing.config import PackedSequenceSpecs
from megatron.bridge.recipes.llama.h100.llama3 import llama32_1b_sft_1gpu_h100_bf16_config
from megatron.bridge.training.config import ConfigContainer
from megatron.bridge.training.finetune import finetune
from megatron.bridge.training.gpt_step import forward_step


def use_curated(config: ConfigContainer, export: Path, sequence_length: int) -> ConfigContainer:
    """Put a curated dataset into any fine-tuning recipe."""
    config.dataset = GPTSFTDatasetConfig(
        seq_length=sequence_length,
        dataset_root=export,
        enable_offline_packing=True,
        offline_packing_specs=PackedSequenceSpecs(
            packed_sequence_size=sequence_length,
            packed_train_data_path=export / "curated.idx.parquet",
        ),
        do_validation=False,
        do_test=False,
    )
    config.model.seq_length = sequence_length
    config.train.micro_batch_size = 1  # packed data needs it
    # One mean over the kept tokens of the whole step; else each packed sequence would be averaged by itself.
    config.model.calculate_per_token_loss = True
    config.ddp.average_in_collective = False
    return config


def main() -> None:
    """Read the command line and fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--checkpoint", required=True, help="the model, converted by Megatron-Bridge")
    arguments = parser.parse_args()
    config = use_curated(llama32_1b_sft_1gpu_h100_bf16_config(), arguments.export, arguments.sequence_length)
    config.checkpoint.pretrained_checkpoint = arguments.checkpoint
    finetune(config, forward_step)


if __name__ == "__main__":
    main()
