"""Train on a curated dataset with the Hugging Face Trainer, token weights included.

python examples/trainers/train_hf.py DATASET MODEL OUTPUT [--sequence-length 1024] [--steps 100] ...
torchrun --nproc_per_node 8 examples/trainers/train_hf.py ...
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import curator
from curator.training import Collator, WeightedTrainer
from curator.training.objective import Objective


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train on a curated dataset with the HF Trainer.")
    parser.add_argument("dataset", help="folder of a curated dataset")
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("output", help="folder for the trained model")
    parser.add_argument("--sequence-length", type=int, default=1024, help="pack to this many tokens; 0 = whole rows")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--fused", action="store_true", help="never hold full logits")
    parser.add_argument("--keep", type=float, help="select this share online instead of the stored weights")
    parser.add_argument("--reference", default="reference", help="with --keep: the model to compare with")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()

    rows = "scored" if options.keep else "kept"  # online selection ranks tokens whatever their stored weights
    data = curator.load(options.dataset, options.sequence_length or None, rows=rows)
    arguments = TrainingArguments(
        output_dir=options.output,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.accumulate,
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        use_cpu=options.cpu,
        dataloader_pin_memory=not options.cpu,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    trainer = WeightedTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model),
        args=arguments,
        train_dataset=data,
        data_collator=Collator(),
        objective=Objective(keep=options.keep, reference=options.reference, fused=options.fused),
    )
    trainer.train()
    trainer.save_model(options.output)
    if trainer.is_world_process_zero():
        AutoTokenizer.from_pretrained(options.model).save_pretrained(options.output)


if __name__ == "__main__":
    main()
