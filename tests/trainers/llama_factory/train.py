"""LLaMA-Factory: one SGD step of its real SFT workflow on the tokenised dataset, accumulated, plain and packed."""

import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import oracle
from safetensors.torch import load_file


def main() -> None:
    """Train on all documents in one step, in batches of three rows; then packed, one row at a time."""
    folder = oracle.canary_folder()
    documents = oracle.read_documents(folder, "hard")
    # Readers of images and sound need builds that fit that of torch, which a machine without a GPU may lack.
    sys.modules["torchvision"] = None
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
    train(folder, "llama_factory-hard", documents, rows=len(documents), batch=3, neat_packing=False)
    pieces = list(oracle.pieces(documents, oracle.SEQUENCE_LENGTH))
    rows = len(oracle.windows(documents, oracle.SEQUENCE_LENGTH))
    train(folder, "llama_factory-hard-64", pieces, rows=rows, batch=1, neat_packing=True)


def train(
    folder: Path, export: str, documents: list[oracle.Document], *, rows: int, batch: int, neat_packing: bool
) -> None:
    """One step over all rows, and its check."""
    from llamafactory.train.tuner import run_exp

    with tempfile.TemporaryDirectory() as output:
        run_exp(
            {
                "model_name_or_path": str(folder / "model"),
                "stage": "sft",
                "do_train": True,
                "finetuning_type": "full",
                "template": "empty",
                "dataset": "curated",  # never looked up: tokenized_path is there
                "tokenized_path": str(folder / "exports" / export / "tokenized"),
                "neat_packing": neat_packing,
                "output_dir": output,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": rows // batch,
                "max_steps": 1,
                "optim": "sgd",
                "learning_rate": oracle.LEARNING_RATE,
                "lr_scheduler_type": "constant",
                "max_grad_norm": 1e9,
                "use_cpu": True,
                "flash_attn": "sdpa",
                "report_to": "none",
            }
        )
        after = load_file(f"{output}/model.safetensors")
    model, update = oracle.updated(folder / "model", after, oracle.LEARNING_RATE)
    title = f"LLaMA-Factory, masks, {'packed' if neat_packing else 'padded'}"
    oracle.check(title, model, update, documents, oracle.causal_logits)


if __name__ == "__main__":
    main()
