"""The HF Trainer with per-token weights.

The Trainer alone cannot take them: `loss_weights` in the inputs are swallowed in silence, `compute_loss_func` does not
see the inputs, and its denominator counts labels. So two methods are replaced: the loss, and what a whole optimiser
step is divided by.

Invariant: a step's gradient is that of sum(w * CE) / sum(w) over all its micro-batches and all ranks together, however
it is split. This module imports transformers at its top; import it only to train.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from curator.training.losses import weighted_cross_entropy


class WeightedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is `weighted_cross_entropy` over `token_weights`.

    Its batches hold `input_ids`, `token_weights` and whatever the model takes (see `Collator`). Without
    `token_weights` every label that is not -100 weighs 1. Set `remove_unused_columns=False` in its arguments, or the
    Trainer drops the weights before they arrive.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what the Trainer takes."""
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is divided for the whole step here, not by the Trainer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Collect the micro-batches of one step, with their weight sum over all ranks in place of a label count."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        total = torch.stack([_weights(batch)[:, 1:].sum().to(device, torch.float32) for batch in batches]).sum()
        return batches, self.accelerator.reduce(total, "sum")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted loss of one micro-batch; `num_items_in_batch` is the weight sum of the step."""
        ours = {"labels", "token_weights", "document_ids"}
        taken = {name: v for name, v in inputs.items() if name not in ours and not name.startswith("logprobs_")}
        outputs = model(**taken, use_cache=False)  # with a cache, transformers lets packed documents see each other
        weights = _weights(inputs)
        # No weight in the whole step: let the loss see it for itself and be 0.
        denominator = num_items_in_batch if num_items_in_batch is not None and num_items_in_batch > 0 else None
        loss = weighted_cross_entropy(outputs.logits, inputs["input_ids"], weights, denominator=denominator)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over ranks afterwards
        return (loss, outputs) if return_outputs else loss


def _weights(batch: dict[str, Any]) -> Tensor:
    weights = batch.get("token_weights")
    return weights if isinstance(weights, Tensor) else (batch["labels"] != -100).float()
