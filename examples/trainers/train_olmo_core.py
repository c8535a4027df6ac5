"""Train with OLMo-core on a dataset exported by `curator export DIR --for olmo_core --sequence-length N`.

`dataset_config` is all there is to it: OLMo-core reads the masks by itself, shifts them with the labels and divides by
the number of labels of the whole step. The rest is a small model and the stock trainer; in a training script of your
own, take that function and keep everything else.

    pip install ai2-olmo-core
    python train_olmo_core.py EXPORT --sequence-length N --vocab-size 50304 --eos-id 0 --output runs/olmo

Tested with ai2-olmo-core 3.0.0.
"""

import argparse
from pathlib import Path

import torch
from olmo_core.data import NumpyDataLoaderConfig, NumpyDatasetDType, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig, OptimConfig
from olmo_core.train import (
    Duration,
    Trainer,
    TrainerConfig,
    prepare_training_environment,
    teardown_training_environment,
)
from olmo_core.train.train_module import TransformerTrainModule


def dataset_config(
    export: Path, sequence_length: int, tokenizer: TokenizerConfig, documents_apart: bool
) -> NumpyFSLDatasetConfig:
    """Windows of tokens with their label masks; `documents_apart` needs an attention backend that can do it."""
    (tokens,) = export.glob("tokens_*.npy")
    return NumpyFSLDatasetConfig(
        paths=[str(tokens)],
        label_mask_paths=[str(export / "label_mask.npy")],
        dtype=NumpyDatasetDType(tokens.stem.removeprefix("tokens_")),
        sequence_length=sequence_length,
        tokenizer=tokenizer,
        generate_doc_lengths=documents_apart,
    )


def build_trainer(
    dataset: NumpyFSLDatasetConfig,
    model: TransformerConfig,
    optimizer: OptimConfig,
    output: Path,
    *,
    rows: int,
    rows_per_micro_batch: int,
    steps: int,
) -> Trainer:
    """Put together OLMo-core's own parts: `rows` windows per step, in micro-batches."""
    dataset.work_dir = str(output / "index")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = TransformerTrainModule(
        model=model.build(init_device=str(device)),
        optim=optimizer,
        rank_microbatch_size=rows_per_micro_batch * dataset.sequence_length,
        max_sequence_length=dataset.sequence_length,
        device=device,
    )
    loader = NumpyDataLoaderConfig(global_batch_size=rows * dataset.sequence_length, seed=0).build(dataset.build())
    return TrainerConfig(save_folder=str(output), max_duration=Duration.steps(steps)).build(module, loader)


def main() -> None:
    """Train a small OLMo2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--eos-id", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    prepare_training_environment(backend=None if torch.cuda.is_available() else "gloo")
    tokenizer = TokenizerConfig(arguments.vocab_size, eos_token_id=arguments.eos_id, pad_token_id=arguments.eos_id)
    # Attention within documents needs flash-attention, which needs a GPU.
    dataset = dataset_config(arguments.export, arguments.sequence_length, tokenizer, torch.cuda.is_available())
    model = TransformerConfig.olmo2_190M(vocab_size=arguments.vocab_size)
    build_trainer(
        dataset, model, AdamWConfig(lr=3e-4), arguments.output, rows=8, rows_per_micro_batch=2, steps=arguments.steps
    ).fit()
    teardown_training_environment()


if __name__ == "__main__":
    main()
