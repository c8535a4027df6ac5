"""ms-swift: one SGD step of its real `sft` on the cached dataset and template of the export: hard, soft, whole, cut."""

import sys
import tempfile
from pathlib import Path

import oracle
from safetensors.torch import load_file


def main() -> None:
    """Train on all documents in one step, in batches of three."""
    folder = oracle.canary_folder()
    sys.modules["torchvision"] = (
        None  # one that does not fit the build of torch, as on CPU machines, breaks transformers
    )
    for name, length in (("hard", None), ("soft", None), ("soft", oracle.SEQUENCE_LENGTH)):
        documents = oracle.read_documents(folder, name)
        if length is not None:
            documents = oracle.cut(documents, length)
        with tempfile.TemporaryDirectory() as output:
            export = folder / "exports" / f"ms_swift-{name}{f'-{length}' if length else ''}"
            after = train(folder / "model", export, len(documents), output)
        model, update = oracle.updated(folder / "model", after, oracle.LEARNING_RATE)
        # Its loss is divided by the number of labels, not by the sum of weights: equal for masks.
        labels = sum(int((document.token_weights[1:] != 0).sum()) for document in documents)
        factor = labels / sum(float(document.token_weights[1:].sum()) for document in documents)
        update = {parameter: value * factor for parameter, value in update.items()}
        title = f"ms-swift, {name}{', cut' if length else ''}"
        oracle.check(title, model, update, documents, oracle.causal_logits)


def train(model: Path, export: Path, rows: int, output: str) -> dict[str, object]:
    """Run `swift sft` and read the parameters that it saved."""
    from swift import sft_main

    batch = next(size for size in (3, 2, 1) if rows % size == 0)
    options = {
        "model": model,
        "model_type": "llama",
        "external_plugins": export / "template.py",
        "template": "curated",
        "cached_dataset": export / "train",
        "split_dataset_ratio": 0,
        "is_binary_loss_scale": "false",
        "max_length": 256,
        "strict": "true",
        "tuner_type": "full",
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows // batch,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": oracle.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "max_grad_norm": 1e9,
        "weight_decay": 0,
        "use_cpu": "true",
        "gradient_checkpointing": "false",
        "add_version": "false",
        "output_dir": output,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "use_hf": "true",
    }
    sft_main([text for key, value in options.items() for text in (f"--{key}", str(value))])
    (saved,) = Path(output).rglob("model.safetensors")
    return load_file(saved)


if __name__ == "__main__":
    main()
