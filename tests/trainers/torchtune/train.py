"""torchtune: one SGD step of its real recipe `full_finetune_single_device`, with accumulation over padded batches."""

import runpy
import sys
import tempfile
from pathlib import Path

import oracle
import torch
import torchtune
from omegaconf import OmegaConf


class Tokens:
    """What the recipe asks of a tokenizer when rows are tokenised: the padding id."""

    pad_id = oracle.END_OF_TEXT
    max_seq_len = 4096


def main() -> None:
    """Train on all documents in one step, in batches of three documents."""
    folder = oracle.canary_folder()
    documents = oracle.read_documents(folder, "hard")
    sys.path.insert(0, str(folder / "exports" / "torchtune-hard"))  # for its curated.py
    # The recipes are installed as a folder of scripts; importing it as a package is refused.
    script = Path(torchtune.__file__).parents[1] / "recipes" / "full_finetune_single_device.py"
    recipe_class = runpy.run_path(str(script))["FullFinetuneRecipeSingleDevice"]
    for packed in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            config = recipe_config(folder, scratch, packed, len(documents))
            recipe = recipe_class(cfg=config)
            recipe.setup(cfg=config)
            before = {name: value.detach().clone() for name, value in recipe._model.named_parameters()}
            recipe.train()
            update = {n: (before[n] - v.detach()) / oracle.LEARNING_RATE for n, v in recipe._model.named_parameters()}
            recipe._model.load_state_dict(before, strict=False)
            title = f"torchtune, {'packed' if packed else 'padded'}"
            oracle.check(title, recipe._model, update, documents, logits)


def recipe_config(folder: Path, scratch: str, packed: bool, documents: int) -> OmegaConf:
    """The recipe's own fields, for the canary's Llama."""
    rows = 3
    return OmegaConf.create(
        {
            "device": "cpu",
            "dtype": "fp32",
            "seed": 0,
            "output_dir": scratch,
            "resume_from_checkpoint": False,
            "epochs": 1,
            "max_steps_per_epoch": None,
            "gradient_accumulation_steps": 1 if packed else documents // rows,
            "batch_size": 1 if packed else rows,
            "optimizer_in_bwd": False,
            "shuffle": False,
            "compile": False,
            "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": scratch},
            "checkpointer": {
                "_component_": "torchtune.training.FullModelHFCheckpointer",
                "checkpoint_dir": str(folder / "model"),
                "checkpoint_files": ["model.safetensors"],
                "output_dir": f"{scratch}/out",
                "model_type": "LLAMA3",
            },
            "model": {
                "_component_": "torchtune.models.llama3.llama3",
                "vocab_size": oracle.VOCABULARY,
                "num_layers": 2,
                "num_heads": 2,
                "num_kv_heads": 2,
                "embed_dim": 32,
                "intermediate_dim": 64,
                "max_seq_len": 4096,
                "norm_eps": 1e-6,
            },
            "tokenizer": {"_component_": "train.Tokens"},
            "optimizer": {"_component_": "torch.optim.SGD", "lr": oracle.LEARNING_RATE},
            "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
            "dataset": {
                "_component_": "curated.dataset",
                "packed": packed,
            },
        }
    )


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one document; the recipe has set the model to give them in chunks."""
    output = model(ids)
    return torch.cat(output, dim=1) if isinstance(output, list) else output


if __name__ == "__main__":
    main()
