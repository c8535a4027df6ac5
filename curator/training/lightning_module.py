"""Lightning with per-token weights.

Lightning hands over one micro-batch at a time, divides each loss by `accumulate_grad_batches` (at the end of an epoch
too, where fewer are left) and averages over ranks, so what a step must be divided by is known only after its last
micro-batch. The gradient is linear: here each micro-batch adds the gradient of its sum, and right before the optimiser
steps, and before clipping, the gradients are divided once by what all ranks have added.

Invariant: a step's gradient is that of sum(w * CE) / sum(w) over all its micro-batches and all ranks together.
This module imports lightning at its top; import it only to train.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from curator.training.lightning_data import check_ranks
from curator.training.objective import Objective


class WeightedModule(LightningModule):  # type: ignore[misc]
    """A LightningModule that trains a transformers causal language model on curated batches (see `Collator`).

    For automatic optimisation with one optimiser, under any strategy whose gradients are those of the parameters (one
    device, DDP, FSDP; not DeepSpeed). Train it on a `CuratedDataModule`: a loader of curated rows that were opened for
    another rank is refused, and on several ranks one that ends. Override `configure_optimizers` for another optimiser
    or a schedule; a subclass that overrides another hook of this class calls that too.
    """

    def __init__(self, model: Any, learning_rate: float = 1e-4, objective: Objective | None = None) -> None:
        """Hold the model and what to minimise."""
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate
        self.objective = objective or Objective()
        self._amounts: list[Tensor] = []
        self._validated = torch.zeros(2, dtype=torch.float64)

    def on_train_start(self) -> None:
        """Forget what a training that was interrupted within a step had added up, and look at what will be read."""
        self._amounts.clear()
        check_ranks(self.trainer, self.trainer.train_dataloader, training=True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The micro-batch's summed loss; `on_before_optimizer_step` turns sums into means."""
        amount = self.objective.amount(batch)
        self._amounts.append(amount)
        loss, _ = self.objective.loss(self.model, batch, denominator=1.0)
        self.log("train_loss", loss.detach() / amount.clamp(min=1e-12), prog_bar=True, batch_size=1)
        accumulated: Tensor = loss * self.trainer.accumulate_grad_batches  # Lightning divides by it
        return accumulated

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Divide the gradients by the step's amount over all ranks."""
        total = torch.stack(self._amounts).sum()
        self._amounts.clear()
        total = self.trainer.strategy.reduce(total, reduce_op="sum")
        world = self.trainer.world_size  # gradients were averaged over ranks
        scale = torch.where(total > 0, world / total.clamp(min=1e-12), torch.zeros_like(total))
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale.to(parameter.grad.device))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add up the loss of the validation set."""
        loss, _ = self.objective.loss(self.model, batch, denominator=1.0)
        self._validated += torch.stack([loss.detach().double().cpu(), self.objective.amount(batch).double().cpu()])

    def on_validation_epoch_start(self) -> None:
        """Begin to add up."""
        check_ranks(self.trainer, self.trainer.val_dataloaders, training=False)
        self._validated = torch.zeros(2, dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """Log `val_loss`, the weighted mean over the whole validation set and all ranks."""
        total = self.trainer.strategy.reduce(self._validated.float().to(self.device), reduce_op="sum")
        self.log("val_loss", total[0] / total[1].clamp(min=1e-12), prog_bar=True, rank_zero_only=False)

    def configure_optimizers(self) -> Any:
        """AdamW at a constant rate."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
