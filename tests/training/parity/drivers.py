"""The gradients that each real trainer hands to its optimiser in its first step, and the data it gets.

Loaded by conftest.py, and run as a script by every rank of a data-parallel test:

    python drivers.py ADAPTER OUTPUT.pt LAYOUT/FORM ...      (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are set)

FORM is `logits` or `fused`; one training after the other, as starting the processes takes far longer than a step.
"""

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from curator.training.collator import Collator
from curator.training.objective import Objective
from curator.training.packing import pack

VOCABULARY = 64
TRUNCATED, PACKED, SPLIT = 9, 48, 22  # SPLIT fills 6 rows: 3 micro-batches on 2 ranks
Gradients = dict[str, torch.Tensor]
Rows = list[dict[str, Any]]


def make_model() -> LlamaForCausalLM:
    """The same random float32 model in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.05, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_documents(hard: bool = False) -> Rows:
    """Twelve documents of 2 to 24 tokens. Index 0 has a weight here, which must not count: it has no context."""
    random = np.random.default_rng(3)
    documents = []
    for length in (3, 24, 7, 12, 2, 17, 5, 9, 20, 4, 11, 8):
        ids = random.integers(1, VOCABULARY, length)
        weights = (random.uniform(0.05, 3, length) * (random.random(length) < 0.6)).astype(np.float32)
        weights[[0, -1]] = 1.7, 0.9
        if hard:
            weights = (weights > 0).astype(np.float32)
        labels = np.where(weights > 0, ids, -100)
        reference = -random.exponential(4.0, length).astype(np.float32)
        reference[0] = np.nan
        documents.append(
            {"input_ids": ids, "labels": labels, "token_weights": weights, "logprobs_reference": reference}
        )
    return documents


def lay_out(documents: Rows, layout: str) -> Rows:
    """What the trainer gets: whole rows (padded in batches), cut rows, or packed rows of whole or split documents."""
    if layout == "padded":
        return documents
    if layout == "truncated":
        return [{name: values[:TRUNCATED] for name, values in row.items()} for row in documents]
    if layout == "split":
        return [dict(row) for _, row in pack(enumerate(documents), SPLIT)]
    groups = [documents[start : start + 4] for start in range(0, 12, 4)]
    return [dict(row) for group in groups for _, row in pack(enumerate(group), PACKED)]


class Recorder(torch.optim.SGD):
    """Keeps the gradients of the first step, as the optimiser sees them."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.parameters(), lr=1.0)
        self.model, self.gradients = model, {}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        if not self.gradients:
            self.gradients.update({n: p.grad.detach().clone() for n, p in self.model.named_parameters()})
        return loss


@dataclass(frozen=True)
class Task:
    """One optimiser step over all rows."""

    rows: Rows
    accumulate: int = 1
    objective: Objective = Objective()  # noqa: RUF009
    collator: Any = Collator(pad_to_multiple_of=4)  # noqa: RUF009
    drop_columns: bool = False

    @property
    def micro_batch(self) -> int:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        assert len(self.rows) % (self.accumulate * world) == 0
        return len(self.rows) // (self.accumulate * world)


def _arguments(task: Task, folder: str, kind: type = TrainingArguments, **more: Any) -> Any:
    if "WORLD_SIZE" in os.environ:
        more["ddp_backend"] = "gloo"
    return kind(
        output_dir=folder, per_device_train_batch_size=task.micro_batch, gradient_accumulation_steps=task.accumulate,
        max_steps=1, use_cpu=True, max_grad_norm=0, report_to="none", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, logging_strategy="no", **more,
    )  # fmt: skip


def _optimizers(model: Any) -> tuple[Recorder, Any]:
    recorder = Recorder(model)
    return recorder, torch.optim.lr_scheduler.LambdaLR(recorder, lambda _: 1.0)


def train_hf(task: Task) -> Gradients:
    from datasets import Dataset

    from curator.training.hf_trainer import WeightedTrainer

    class Mutant(WeightedTrainer):
        """Forgets that the Trainer removes the columns that the model does not take."""

        def _set_signature_columns_if_needed(self) -> None:
            super(WeightedTrainer, self)._set_signature_columns_if_needed()

    trainer_class = Mutant if task.drop_columns else WeightedTrainer
    model = make_model()
    recorder, schedule = _optimizers(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model, args=_arguments(task, folder), train_dataset=Dataset.from_list(task.rows),
            data_collator=task.collator, optimizers=(recorder, schedule), objective=task.objective,
        )  # fmt: skip
        trainer.train()
    return recorder.gradients


def make_tokenizer() -> PreTrainedTokenizerFast:
    """TRL wants one, though rows come as ids."""
    from tokenizers import Tokenizer, models

    names = {f"t{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(names)), pad_token="t0", eos_token="t0")


def train_trl(task: Task) -> Gradients:
    from datasets import Dataset
    from trl import SFTConfig

    from curator.training.trl_trainer import WeightedSFTTrainer

    class Mutant(WeightedSFTTrainer):
        """Keeps the columns that TRL names, and no other."""

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = ["input_ids", "labels", "seq_lengths"]

    trainer_class = Mutant if task.drop_columns else WeightedSFTTrainer
    model = make_model()
    with tempfile.TemporaryDirectory() as folder:
        config = _arguments(task, folder, SFTConfig, bf16=False, gradient_checkpointing=False)
        recorder, schedule = _optimizers(model)
        trainer = trainer_class(
            model=model, args=config, train_dataset=Dataset.from_list(task.rows), data_collator=task.collator,
            processing_class=make_tokenizer(), optimizers=(recorder, schedule), objective=task.objective,
        )  # fmt: skip
        trainer.train()
    return recorder.gradients


def train_plain_sft(task: Task, **options: Any) -> Gradients:
    """TRL's own SFTTrainer on hard masks, which takes `labels` as they are."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = make_model()
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in task.rows]
    with tempfile.TemporaryDirectory() as folder:
        config = _arguments(task, folder, SFTConfig, bf16=False, gradient_checkpointing=False, **options)
        recorder, schedule = _optimizers(model)
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=make_tokenizer(), optimizers=(recorder, schedule),
        )  # fmt: skip
        trainer.train()
    return recorder.gradients


def train_lightning(task: Task) -> Gradients:
    import lightning.pytorch as lightning

    from curator.training.lightning_module import WeightedModule

    class Module(WeightedModule):
        def configure_optimizers(self) -> Recorder:
            self.recorder = Recorder(self.model)
            return self.recorder

    module = Module(make_model(), objective=task.objective)
    loader = torch.utils.data.DataLoader(task.rows, batch_size=task.micro_batch, collate_fn=_loader_collator(task))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_steps=1, logger=False,
        accumulate_grad_batches=task.accumulate, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=None,
    )  # fmt: skip
    trainer.fit(module, loader)
    return module.recorder.gradients


def train_accelerate(task: Task) -> Gradients:
    import importlib.util
    from pathlib import Path

    from accelerate import Accelerator

    path = Path(__file__).parents[3] / "examples" / "trainers" / "train_accelerate.py"
    spec = importlib.util.spec_from_file_location("accelerate_example", path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    accelerator = Accelerator(cpu=True)
    model = make_model()
    recorder = Recorder(model)
    loader = torch.utils.data.DataLoader(task.rows, batch_size=task.micro_batch, collate_fn=_loader_collator(task))
    model, optimizer, loader = accelerator.prepare(model, recorder, loader)
    example.train_step(accelerator, model, optimizer, list(loader), task.objective)
    return {name.removeprefix("module."): gradient for name, gradient in recorder.gradients.items()}


def _loader_collator(task: Task) -> Any:
    """A loader drops nothing; the mutant's collator knows only what the model takes."""
    if not task.drop_columns:
        return task.collator
    return lambda rows: {n: v for n, v in task.collator(rows).items() if n in ("input_ids", "labels", "attention_mask")}


ADAPTERS: dict[str, Callable[..., Gradients]] = {
    "hf_trainer": train_hf,
    "trl_sft": train_trl,
    "plain_sft": train_plain_sft,
    "lightning": train_lightning,
    "accelerate": train_accelerate,
}


def record(adapter: str, task: Task, **options: Any) -> Gradients:
    """Train quietly; a library's deprecation warnings are not what is tested here."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return ADAPTERS[adapter](task, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, output, *cases = sys.argv[1:]
    taken = {}
    for case in cases:
        layout, _, form = case.partition("/")
        taken[case] = record(name, Task(lay_out(make_documents(), layout), 3, Objective(fused=form == "fused")))
    if os.environ["RANK"] == "0":
        torch.save(taken, output)
    if torch.distributed.is_initialized():  # else its threads may abort the interpreter's end
        torch.distributed.destroy_process_group()
