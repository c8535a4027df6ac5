"""Low-rank adapters through peft, and folding them into the model so that any engine loads it.

Invariant: what is saved as a model is a plain one; nothing that loads a reference needs peft.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from curator.errors import TrainingError
from curator.training.reference.spec import LoraOptions


def add_adapter(model: Any, options: LoraOptions, seed: int) -> Any:
    """Freeze a model and put adapters beside its layers.

    Raises:
        TrainingError: peft is missing, or the model has no such layers, or ones that share their weights.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise TrainingError("method lora needs peft; install token-curator[train]") from error
    targets = options.target_modules
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType.CAUSAL_LM,
    )
    _check_untied(model, targets)
    set_seed(seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        linear = (nn.Linear, Conv1D)
        names = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, linear)})
        raise TrainingError(
            f"lora.target_modules: {targets!r} does not fit this base ({str(error).splitlines()[0]}); its linear "
            f"layers end in {', '.join(names)}"
        ) from error
    config.base_model_name_or_path = None  # with a name, peft asks the hub about it whenever a checkpoint is saved
    return adapted


def _check_untied(model: Any, targets: str | tuple[str, ...]) -> None:
    """Refuse an adapter on a head that is the embedding, too: folded in, it would change both."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(targets, str) or head is None or head.weight is not embedding.weight:
        return
    for name, part in model.named_modules():
        named = [target for target in targets if name == target or name.endswith(f".{target}")]
        if part in (head, embedding) and named:
            raise TrainingError(
                f"lora.target_modules: {named[0]!r} shares its weights with another layer in this base (its output "
                "head is its embedding), so an adapter cannot be merged into it alone; leave it out, or use method full"
            )


def is_adapted(model: Any) -> bool:
    """Whether `add_adapter` made this model."""
    return hasattr(model, "merge_and_unload")


def plain_copy(model: Any, saved_dtype: torch.dtype) -> Any:
    """A copy on the CPU without adapters, which are folded into its weights; training of `model` can go on.

    The device has no room for a second model. Weights get the type that they are saved in at once, but those beside
    adapters only after folding, which would otherwise round twice.
    """
    dtype = torch.float32 if is_adapted(model) else saved_dtype
    # What `deepcopy` finds in its memo it does not copy itself; a weight that two layers share stays shared.
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().to("cpu", dtype, copy=True), weight.requires_grad)
        for weight in model.parameters()
    }
    memo |= {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in model.buffers()}
    return merged(copy.deepcopy(model, memo))


def merged(model: Any) -> Any:
    """The model without adapters, in place, in its own precision."""
    return model.merge_and_unload() if is_adapted(model) else model


def save_adapter(model: Any, base: str, folder: Path) -> None:
    """Write the adapter by itself; `base` says in its config what it was made for."""
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own card is an empty form
