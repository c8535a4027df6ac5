"""Train on a curated dataset with TRL: soft weights with WeightedSFTTrainer, hard masks with TRL's own SFTTrainer.

    python examples/trainers/train_trl.py DATASET MODEL OUTPUT [--hard] [--max-length 1024] [--lora] ...

A hard mask needs nothing of ours: SFTTrainer uses a `labels` column as it is. It would do the same, in silence, with
the labels of soft weights, so `--hard` refuses those.
"""

import argparse
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from curator.training.trl_trainer import WeightedSFTTrainer


def load_rows(dataset: str, hard: bool) -> Dataset:
    """The curated rows, or, once their weights are seen to be 0 and 1, what TRL's own trainer takes of them."""
    rows = load_dataset("parquet", data_files=str(Path(dataset) / "curated" / "*.parquet"), split="train")
    if not hard:
        return rows
    for weights in rows["token_weights"]:
        if any(weight not in (0, 1) for weight in weights):
            raise SystemExit("the weights are soft: labels alone would drop them; leave out --hard")
    return rows.select_columns(["input_ids", "labels"])


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train on a curated dataset with TRL.")
    parser.add_argument("dataset", help="local folder of a curated dataset")
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("output", help="folder for the trained model")
    parser.add_argument("--hard", action="store_true", help="TRL's own SFTTrainer, with labels alone")
    parser.add_argument("--lora", action="store_true", help="train an adapter")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a row behind this are lost")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()

    config = SFTConfig(
        output_dir=options.output,
        max_length=options.max_length,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.accumulate,
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        use_cpu=options.cpu,
        bf16=not options.cpu,
        dataloader_pin_memory=not options.cpu,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    peft_config = None
    if options.lora:
        from peft import LoraConfig

        peft_config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    trainer_class = SFTTrainer if options.hard else WeightedSFTTrainer
    trainer = trainer_class(
        model=options.model,
        args=config,
        train_dataset=load_rows(options.dataset, options.hard),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(options.output)


if __name__ == "__main__":
    main()
