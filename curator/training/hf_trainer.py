"""The HF Trainer with per-token weights.

The Trainer alone cannot take them: `loss_weights` in the inputs are swallowed in silence, `compute_loss_func` does not
see the inputs, its denominator counts labels, and it drops the columns that the model does not take. So the loss is
replaced, what a whole optimiser step is divided by, and which columns are kept; evaluation gets labels where rows have
only weights, and DistributedDataParallel the options that the fused loss needs.

Invariant: a step's gradient is that of sum(w * CE) / sum(w) over all its micro-batches and all ranks together, however
it is split. This module imports transformers at its top; import it only to train.
"""

from dataclasses import replace
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer

from curator.errors import TrainingError
from curator.training.collator import Collator
from curator.training.curated_dataset import CuratedDataset
from curator.training.endless import Endless
from curator.training.objective import Objective

_COLLATOR_POSITION = 2  # in the Trainer's arguments, as in those of its subclasses


class WeightedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is an `Objective`: by default `weighted_cross_entropy` over `token_weights`.

    Its batches hold `input_ids`, `token_weights` and whatever the model takes; without a `data_collator` it uses
    `Collator`. Without `token_weights` every label that is not -100 weighs 1. In evaluation the loss is the weighted
    mean of each batch, and predictions are logits, with a fused objective too. The loss that a mixture of experts adds
    for its router is left out.

    What `curator.load` gives is split over the ranks here, whatever rank it was opened for, and trained on without end
    (`max_steps` says when to stop). So ranks never wait for each other, and a resumed run goes on with the rows that
    would have come next, after reading again what it had read.
    """

    def __init__(self, *args: Any, objective: Objective | None = None, **kwargs: Any) -> None:
        """Take what the Trainer takes, and what to minimise.

        Raises:
            TrainingError: label smoothing, which has no meaning beside weights.
        """
        self.objective = objective or Objective()
        if len(args) <= _COLLATOR_POSITION and kwargs.get("data_collator") is None:
            kwargs["data_collator"] = Collator()
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor:
            raise TrainingError(
                f"label_smoothing_factor={self.args.label_smoothing_factor} does not go with token weights; set it to 0"
            )
        self.model_accepts_loss_kwargs = True  # the loss is divided for the whole step here, not by the Trainer

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *args: Any, is_training: bool = False, **kwargs: Any
    ) -> Any:
        """A loader of a curated dataset that leaves its splitting alone; of anything else the Trainer's own.

        accelerate would read it on one rank, and join batches of different lengths there to send them to the others.
        """
        if not isinstance(dataset, CuratedDataset):
            return super()._get_dataloader(dataset, description, batch_size, *args, is_training=is_training, **kwargs)
        _check_parallelism(self.accelerator.parallelism_config)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        loader = DataLoader(
            Endless(dataset.split(rank, ranks)) if is_training else dataset.split(0, 1),
            batch_size=batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description=description),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        # In evaluation, which ends, every rank reads all rows and takes its share, so that all have equally many.
        share = {"num_processes": 1, "process_index": 0} if is_training else {}
        return prepare_data_loader(loader, self.accelerator.device, put_on_device=True, dispatch_batches=False, **share)

    def create_accelerator_and_postprocess(self) -> None:
        """Keep DistributedDataParallel from looking for unused parameters, which the fused loss does not go with."""
        if self.objective.fused and self.args.ddp_find_unused_parameters is None:
            self.args.ddp_find_unused_parameters = False
        super().create_accelerator_and_postprocess()

    def _set_signature_columns_if_needed(self) -> None:
        """Count our columns among those that are used, so that `remove_unused_columns` leaves them."""
        super()._set_signature_columns_if_needed()
        known: list[str] = self._signature_columns
        missing = {"position_ids", "labels", *self.objective.columns} - set(known)
        self._signature_columns: list[str] = [*known, *sorted(missing)]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Collect the micro-batches of one step, with their amount over all ranks in place of a label count."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        total = torch.stack([self.objective.amount(batch).to(device) for batch in batches]).sum()
        return batches, self.accelerator.reduce(total, "sum")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one micro-batch; `num_items_in_batch` is the amount of the whole step."""
        if not model.training:
            num_items_in_batch = None  # evaluation counts labels, and averages over batches itself
        loss, outputs = self.objective.loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over ranks afterwards
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Loss, logits and labels of one batch; without labels the Trainer would take a batch to have no loss."""
        if inputs.get("labels") is None and not inputs.keys().isdisjoint(self.objective.columns):
            inputs = {**inputs, "labels": self.objective.labels(inputs)}
        objective = self.objective
        if not prediction_loss_only:
            self.objective = replace(objective, fused=False)  # its outputs have hidden states for logits
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self.objective = objective


def _check_parallelism(config: Any) -> None:
    size = config.non_data_parallel_size if config is not None else 1
    if size > 1:
        raise TrainingError(
            f"{size} ranks share a batch (tensor, context or sequence parallelism), and curator.load gives every rank "
            "its own; train on files written by `curator export --for hugging_face`"
        )
