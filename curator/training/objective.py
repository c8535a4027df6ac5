"""What a training step minimises, apart from any trainer: weighted cross-entropy, or online selection.

A step is cut into micro-batches and ranks, so its mean can only be exact if every part is divided by the same number.
`Objective.amount` says what one micro-batch adds to that number, before any forward; `Objective.loss` divides by the
sum that the trainer has made of them. The adapters of this folder do no more than collect the one and ask the other.

Invariant: the parts' losses add up to that of one big batch, however it is cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curator.errors import TrainingError
from curator.tables import IGNORED_LABEL, LOGPROBS_PREFIX
from curator.training.apart import attention_of, check_apart, check_mask, is_packed
from curator.training.collator import Collator
from curator.training.fused import fused_selective_loss, fused_weighted_cross_entropy, hidden_instead_of_logits
from curator.training.losses import selective_loss, weighted_cross_entropy

Batch = Mapping[str, Any]
"""What `Collator` makes: tensors of shape (B, T) by name."""

EXTRA_COLUMNS = ("token_weights", "document_ids")
"""Columns of a batch that models do not take, beside `labels` and every `logprobs_<model>`."""


@dataclass(frozen=True)
class Objective:
    """The loss of a training step over batches of a curated dataset.

    By default sum(w * CE) / sum(w) over `token_weights`; a batch without them weighs every label that is not -100 as 1.
    With `keep`, online selection (Rho-1) instead: in every micro-batch the `keep` share of the scored tokens with the
    highest excess loss over `logprobs_<reference>`, each weighing 1. That needs `curator.load(..., rows="scored")`: by
    default it leaves out rows of which the stored policy kept nothing.

    Attributes:
        keep: share of the tokens to select online, in (0, 1]; None = the stored weights.
        reference: name of the model in `logprobs_<reference>` that `keep` compares with.
        fused: take the loss from hidden states, a chunk of rows at a time; needs a plain linear output head.
    """

    keep: float | None = None
    reference: str = "reference"
    fused: bool = False

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if self.keep is not None and not (isinstance(self.keep, int | float) and 0 < self.keep <= 1):
            raise TrainingError(f"keep={self.keep!r} is not a share; use a value above 0 and at most 1, such as 0.6")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns besides the model's own that a batch must still have when it gets to the loss."""
        return EXTRA_COLUMNS if self.keep is None else (*EXTRA_COLUMNS, LOGPROBS_PREFIX + self.reference)

    def amount(self, batch: Batch) -> Tensor:
        """What this micro-batch adds to the step's denominator: its weights, or how many tokens it will select.

        Returns:
            A float32 scalar on the batch's device; sum it over micro-batches and ranks.
        """
        if self.keep is None:
            return _weights(batch)[:, 1:].sum(dtype=torch.float32)
        scored = int((~torch.isnan(self._reference(batch)[:, 1:])).sum())
        return torch.tensor(float(round(self.keep * scored)), device=batch["input_ids"].device)

    def loss(self, model: Any, batch: Batch, denominator: Tensor | float | None = None) -> tuple[Tensor, Any]:
        """Forward a micro-batch.

        Args:
            model: a transformers causal language model, wrapped or not.
            batch: what `Collator` made.
            denominator: sum of `amount` over the whole step, all ranks included; None = this micro-batch alone.

        Returns:
            This micro-batch's part of the loss, and the model's outputs (whose logits are hidden states if `fused`). A
            trainer that averages gradients over ranks multiplies the loss by their number, one that averages over
            micro-batches by theirs.

        Raises:
            TrainingError: the batch lacks a column, or is packed and its mask or the model does not keep its documents
                apart.
        """
        check_mask(batch)
        if is_packed(batch):
            check_apart(model, batch["input_ids"].device)
        amount = self.amount(batch)
        whole = amount if denominator is None else torch.as_tensor(denominator).to(amount)
        if not bool(whole > 0):
            whole = torch.ones_like(amount)  # nothing to learn in the whole step: a loss of 0, with its graph
        if self.fused:
            return self._fused_loss(model, batch, whole)
        outputs = _forward(model, batch)
        ids = batch["input_ids"]
        if self.keep is None:
            return weighted_cross_entropy(outputs.logits, ids, _weights(batch), denominator=whole), outputs
        return selective_loss(outputs.logits, ids, self._reference(batch), self.keep, denominator=whole), outputs

    def labels(self, batch: Batch) -> Tensor:
        """The ids of tokens that can count, -100 elsewhere: for a trainer that looks for labels beside the weights."""
        counts = _weights(batch) > 0 if self.keep is None else ~torch.isnan(self._reference(batch))
        return torch.where(counts, batch["input_ids"], IGNORED_LABEL)

    def has_target(self, row: Batch) -> bool:
        """Whether there is a token in one row of a dataset, of shape (T,), that can count."""
        return bool((self.labels(Collator()([row]))[:, 1:] != IGNORED_LABEL).any())

    def _fused_loss(self, model: Any, batch: Batch, whole: Tensor) -> tuple[Tensor, Any]:
        with hidden_instead_of_logits(model) as head:
            outputs = _forward(model, batch)
        hidden, ids = outputs.logits, batch["input_ids"]
        if self.keep is None:
            return fused_weighted_cross_entropy(hidden, head, ids, _weights(batch), denominator=whole), outputs
        reference = self._reference(batch)
        return fused_selective_loss(hidden, head, ids, reference, self.keep, denominator=whole), outputs

    def _reference(self, batch: Batch) -> Tensor:
        name = LOGPROBS_PREFIX + self.reference
        if name not in batch:
            found = sorted(other for other in batch if other.startswith(LOGPROBS_PREFIX))
            raise TrainingError(
                f"online selection needs {name!r} in the batch, which has {found or 'no log-probs'}; name one of the "
                "dataset's models as `reference`, and keep the trainer from dropping the column"
            )
        logprobs: Tensor = batch[name]
        return logprobs


def _forward(model: Any, batch: Batch) -> Any:
    ours = {"labels", *EXTRA_COLUMNS}
    taken = {name: value for name, value in batch.items() if name not in ours and not name.startswith(LOGPROBS_PREFIX)}
    shape = batch["input_ids"].shape
    joined = is_packed(batch) and shape[0] > 1 and "flash" in attention_of(model)
    if joined:  # FlashAttention finds documents by their positions in a batch of one row alone
        taken = {name: value.reshape(1, -1) if value.shape == shape else value for name, value in taken.items()}
    # With a cache, transformers lets the documents of a packed row see each other.
    outputs = model(**taken, use_cache=False)
    if joined:
        outputs.logits = outputs.logits.unflatten(1, shape).squeeze(0)
    return outputs


def _weights(batch: Batch) -> Tensor:
    weights = batch.get("token_weights")
    if isinstance(weights, Tensor):
        return weights
    if "labels" not in batch:
        raise TrainingError(
            f"a batch with {sorted(batch)} has neither token_weights nor labels; use curator.training.Collator, and "
            "keep the trainer from dropping columns"
        )
    labels: Tensor = batch["labels"]
    return (labels != IGNORED_LABEL).float()
