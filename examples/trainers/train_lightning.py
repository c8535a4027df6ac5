"""Train on a curated dataset with Lightning, token weights included.

python examples/trainers/train_lightning.py DATASET MODEL OUTPUT [--sequence-length 1024] [--devices 8] ...
"""

import argparse

from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from curator.training import CuratedDataModule, WeightedModule


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train on a curated dataset with Lightning.")
    parser.add_argument("dataset", help="folder of a curated dataset")
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("output", help="folder for the trained model")
    parser.add_argument("--sequence-length", type=int, default=1024, help="pack to this many tokens; 0 = whole rows")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model)
    module = WeightedModule(model, options.learning_rate)
    rows = CuratedDataModule(options.dataset, options.sequence_length or None, options.micro_batch)
    trainer = Trainer(
        accelerator="cpu" if options.cpu else "auto",
        devices=options.devices,
        max_steps=options.steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=rows)
    print(f"train_loss {float(trainer.callback_metrics['train_loss']):.4f}")
    if trainer.is_global_zero:
        model.save_pretrained(options.output)
        AutoTokenizer.from_pretrained(options.model).save_pretrained(options.output)


if __name__ == "__main__":
    main()
