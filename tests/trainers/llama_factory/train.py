"""LLaMA-Factory: one SGD step of its real SFT workflow on the tokenised dataset, with accumulation."""

import sys
import tempfile
from importlib.machinery import ModuleSpec
from types import ModuleType

import oracle
from safetensors.torch import load_file

LEARNING_RATE = 100.0
"""Large, so that rounding of the parameters does not hide the gradient in the update."""


def main() -> None:
    """Train on all documents in one step, in batches of three."""
    folder = oracle.canary_folder()
    documents = oracle.read_documents(folder, "hard")
    # Readers of images and sound need builds that fit that of torch, which a machine without a GPU may lack.
    sys.modules["torchvision"] = None
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
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
                "tokenized_path": str(folder / "exports" / "llama_factory-hard" / "tokenized"),
                "output_dir": output,
                "per_device_train_batch_size": 3,
                "gradient_accumulation_steps": len(documents) // 3,
                "max_steps": 1,
                "optim": "sgd",
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "constant",
                "max_grad_norm": 1e9,
                "use_cpu": True,
                "flash_attn": "sdpa",
                "report_to": "none",
            }
        )
        after = load_file(f"{output}/model.safetensors")
    model, update = oracle.updated(folder / "model", after, LEARNING_RATE)
    oracle.check("LLaMA-Factory, masks", model, update, documents, oracle.causal_logits)


if __name__ == "__main__":
    main()
