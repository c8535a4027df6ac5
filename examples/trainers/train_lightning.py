"""Train on a curated dataset with Lightning, token weights included.

python examples/trainers/train_lightning.py DATASET MODEL OUTPUT [--sequence-length 1024] [--devices 8] ...
"""

import argparse

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import curator
from curator.training import Collator
from curator.training.lightning_module import WeightedModule


class CuratedModule(WeightedModule):
    """Opens the dataset in `train_dataloader`, where ranks are known: each reads its own rows."""

    def __init__(self, model: object, learning_rate: float, dataset: str, sequence_length: int, micro_batch: int):
        super().__init__(model, learning_rate)
        self.dataset, self.sequence_length, self.micro_batch = dataset, sequence_length, micro_batch

    def train_dataloader(self) -> DataLoader:
        """Packed sequences of this rank."""
        self.data = curator.load(
            self.dataset, self.sequence_length or None, rank=self.global_rank, world_size=self.trainer.world_size
        )
        self.data.set_epoch(self.current_epoch)  # a resumed epoch is opened before on_train_epoch_start
        return DataLoader(self.data, batch_size=self.micro_batch, collate_fn=Collator())

    def on_train_epoch_start(self) -> None:
        """Another order for every epoch; Lightning tells samplers only."""
        super().on_train_epoch_start()
        self.data.set_epoch(self.current_epoch)


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
    module = CuratedModule(model, options.learning_rate, options.dataset, options.sequence_length, options.micro_batch)
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
    trainer.fit(module)
    print(f"train_loss {float(trainer.callback_metrics['train_loss']):.4f}")
    if trainer.is_global_zero:
        model.save_pretrained(options.output)
        AutoTokenizer.from_pretrained(options.model).save_pretrained(options.output)


if __name__ == "__main__":
    main()
