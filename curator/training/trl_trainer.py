"""TRL's SFTTrainer with per-token weights.

SFTTrainer takes hard masks by itself, as `labels`; soft weights it drops three times: when it truncates and packs (it
rewrites `input_ids` and `labels` alone), when it removes columns, and in its collator. It also computes its loss from a
head that it has fused into the model. Here all of that is passed by: rows arrive as they were curated, and the loss is
that of `WeightedTrainer`. PEFT, quantisation, chat templates of the saved model and callbacks stay TRL's.

This module imports trl at its top; import it only to train.
"""

import logging
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from trl import SFTConfig, SFTTrainer

from curator.errors import TrainingError
from curator.tables import LOGPROBS_PREFIX
from curator.training.collator import TAKEN
from curator.training.curated_dataset import CuratedDataset
from curator.training.hf_trainer import WeightedTrainer

_log = logging.getLogger("curator.training")


class WeightedSFTTrainer(WeightedTrainer, SFTTrainer):  # type: ignore[misc]
    """An SFTTrainer whose loss is `weighted_cross_entropy` over `token_weights` (see `WeightedTrainer`).

    Takes rows of `datasets.load_dataset` over the curated files, or what `curator.load` gives. Of the former, rows
    longer than `max_length` lose what is behind it, weights included, and rows without a token that the objective can
    use are left out, both with a warning in the log. To lose nothing, pack with `curator.load(directory,
    sequence_length=N)`, which no `max_length` cuts. TRL's own packing is refused. Entropy and token accuracy, which TRL
    takes from its fused head, are not logged.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        """Take what SFTTrainer takes, and `objective`.

        Raises:
            TrainingError: an option of SFTConfig that would change tokens or loss, or a dataset without a token to
                train on.
        """
        if isinstance(args, SFTConfig):
            _check(args)
        self._curated = train_dataset if isinstance(train_dataset, CuratedDataset) else None
        # SFTTrainer takes no such thing: it looks at a row of this, then gets what is trained on.
        self._in_its_place = Dataset.from_list([{"input_ids": [0]}]).to_iterable_dataset()
        if self._curated is not None:
            train_dataset = self._in_its_place
        elif train_dataset is not None:
            _find_first(train_dataset, "train")
        super().__init__(
            model=model, args=args, data_collator=data_collator, train_dataset=train_dataset,
            eval_dataset=eval_dataset, **kwargs,
        )  # fmt: skip

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """Leave curated rows as they are but for `max_length`, which cuts all their columns alike."""
        if dataset is self._in_its_place:
            return self._curated
        if not isinstance(dataset, Dataset | IterableDataset):
            return dataset  # curator.load: nothing to tokenise, its sequence_length is the length
        sample = _find_first(dataset, dataset_name)
        names = [name for name in sample if name in TAKEN or name.startswith(LOGPROBS_PREFIX)]
        if "input_ids" not in names:
            raise TrainingError(
                f"the {dataset_name} dataset has columns {sorted(sample)} and no input_ids: WeightedSFTTrainer trains "
                "on curated rows; for raw text use SFTTrainer"
            )
        dataset = dataset.select_columns(names)
        length, given = args.max_length, dataset
        if length is not None:
            dataset = dataset.map(lambda row: {name: row[name][:length] for name in names})
        dataset = dataset.filter(self.objective.has_target)
        _find_first(dataset, dataset_name)
        if isinstance(dataset, Dataset) and args.process_index == 0:
            _tell_losses(given, len(given) - len(dataset), length, dataset_name)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def _set_signature_columns_if_needed(self) -> None:
        """TRL names the columns it knows; ours come on top."""
        WeightedTrainer._set_signature_columns_if_needed(self)


def _check(config: SFTConfig) -> None:
    refused = {
        "packing": (config.packing, "pack with curator.load(directory, sequence_length=N)"),
        "padding_free": (config.padding_free, "pack with curator.load(directory, sequence_length=N)"),
        "assistant_only_loss": (config.assistant_only_loss, "the curated weights say what is learned"),
        "completion_only_loss": (config.completion_only_loss, "the curated weights say what is learned"),
        "loss_type": (config.loss_type != "nll" and config.loss_type, "the loss is that of the token weights"),
    }
    for name, (value, remedy) in refused.items():
        if value:
            raise TrainingError(f"SFTConfig({name}={value!r}) does not go with token weights: leave it out; {remedy}")


def _tell_losses(given: Dataset, left_out: int, max_length: int | None, name: str) -> None:
    """Log what of a dataset is not trained on."""
    cut = lost = 0
    for table in given.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=10_000):
        beyond = pc.list_value_length(table["input_ids"]).to_numpy() - (max_length or np.inf)
        cut, lost = cut + int((beyond > 0).sum()), lost + int(beyond.clip(min=0).sum())
    if cut:
        _log.warning(
            "%s dataset: %d of %d rows are longer than max_length=%d, and the %d tokens behind it are not used; raise "
            "max_length, or pack with curator.load(directory, sequence_length=N), which loses none",
            name, cut, len(given), max_length, lost,
        )  # fmt: skip
    if left_out:
        _log.warning("%s dataset: %d of %d rows have no token to train on and are left out", name, left_out, len(given))


def _find_first(dataset: Any, name: str) -> dict[str, Any]:
    row: dict[str, Any] | None = next(iter(dataset), None)
    if row is None:
        raise TrainingError(
            f"the {name} dataset has no row with a token to train on: none is kept, or scored for online selection, "
            "within max_length; look at its report, and choose another policy"
        )
    return row
