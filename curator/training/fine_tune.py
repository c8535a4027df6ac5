"""Fine-tuning on the HF Trainer, within steps or minutes, and the model directory that comes out.

Weights and optimiser are float32 and only matrix products run in bfloat16, so that small updates are not rounded away.
This module imports torch and transformers; import it only to train.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from curator.data import IntArray
from curator.errors import TrainingError
from curator.tokens.sources import find_tokenizer
from curator.training.clock import Clock, Report
from curator.training.collator import Collator
from curator.training.documents import cut_rows, hold_out, make_batches
from curator.training.hf_trainer import WeightedTrainer
from curator.training.losses import weighted_cross_entropy

if TYPE_CHECKING:
    from curator.training.spec import Say, TrainSpec


class Outcome(NamedTuple):
    """What a fine-tuning did; see `TrainResult`."""

    steps: int
    trained_tokens: int
    seconds: float
    loss_before: float | None
    loss_after: float | None


class Base(NamedTuple):
    """A model to start from, in float32, and the type that its result is saved in."""

    model: Any
    saved_dtype: torch.dtype


def load_base(spec: "TrainSpec") -> Base:
    """Load a causal language model; never runs code that lies beside the weights, never unpickles."""
    source = _locate(spec)
    weights: dict[str, Any] = {"use_safetensors": True}
    if "gguf_file" in source:
        weights = {"quantization_config": GgufConfig(dequantize=True)}
    try:
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(**source, **weights, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"base {spec.base!r} cannot be loaded ({reason}); name a hub model, a directory with config.json and "
            "safetensors, or a .gguf file"
        ) from error
    return Base(model, config.dtype or _choose_dtype(spec.dtype))


def _locate(spec: "TrainSpec") -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where the base is."""
    path = Path(spec.base).expanduser()
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.exists():
        return {"pretrained_model_name_or_path": str(path)}
    return {"pretrained_model_name_or_path": spec.base, "revision": spec.revision}


def _choose_dtype(wanted: str) -> torch.dtype:
    """The type of matrix products; `auto` is bfloat16 only where the hardware multiplies it."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if torch.accelerator.is_available():
        return torch.float32
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def fine_tune(model: Any, spec: "TrainSpec", documents: Sequence[IntArray], scratch: Path, say: "Say") -> Outcome:
    """Train `model` in place.

    Args:
        model: a causal language model in float32.
        spec: how to train.
        documents: token ids, each of shape (T,) with T >= 2.
        scratch: folder that the Trainer may write to.
        say: takes progress lines.

    Raises:
        TrainingError: the rows are longer than the model's context, or nothing is left to hold out.
    """
    _check_context(model, spec.sequence_length)
    train, held = hold_out(documents, spec.eval_fraction, spec.seed)
    if spec.eval_fraction > 0 and not held:
        raise TrainingError("one document cannot be trained on and held out; set eval_fraction: 0 or add documents")
    batches = make_batches(cut_rows(train, spec.sequence_length), spec.micro_batch_tokens, spec.seed)
    accumulate = max(1, round(spec.batch_tokens * len(batches) / sum(_count_padded(batch) for batch in batches)))
    planned = math.ceil(spec.epochs * math.ceil(len(batches) / accumulate))
    clock = Clock(min(planned, spec.max_steps or planned), 60 * spec.max_minutes if spec.max_minutes else math.inf)
    trainer = _make_trainer(model, spec, batches, accumulate, clock, scratch)
    held_batches = make_batches(cut_rows(held, spec.sequence_length), spec.micro_batch_tokens, spec.seed)
    loss_before = _measure(trainer, held_batches)
    _say_plan(spec, clock, sum(map(len, train)), loss_before, say)
    report = Report(clock, say)
    trainer.add_callback(report)
    trainer.train()
    loss_after = _measure(trainer, held_batches)
    if loss_after is not None:
        say(f"held-out loss {loss_before:.4f} -> {loss_after:.4f} nats")
    return Outcome(clock.step, report.tokens, clock.elapsed_s, loss_before, loss_after)


def save_model(base: Base, spec: "TrainSpec", folder: Path) -> None:
    """Write weights (safetensors), config and the base's own tokenizer files."""
    base.model.to("cpu", base.saved_dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**_locate(spec), trust_remote_code=False).save_pretrained(folder)
    # The library may write an equal but not identical definition; ours is the base's own, character by character.
    found = find_tokenizer(spec.base, spec.revision)
    (folder / "tokenizer.json").write_text(found.definition_json, encoding="utf-8")


def _check_context(model: Any, sequence_length: int) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and sequence_length > context:
        raise TrainingError(f"sequence_length={sequence_length} exceeds the base's context of {context}; lower it")


def _count_padded(batch: Sequence[IntArray]) -> int:
    return len(batch) * max(map(len, batch))


def _collate(items: Sequence[Sequence[IntArray]]) -> dict[str, torch.Tensor]:
    """Micro-batches are made beforehand, so the Trainer's batch is a list of one."""
    rows = [{"input_ids": ids, "token_weights": np.ones(len(ids), np.float32)} for item in items for ids in item]
    return Collator()(rows)


def _make_trainer(
    model: Any,
    spec: "TrainSpec",
    batches: list[list[IntArray]],
    accumulate: int,
    clock: Clock,
    scratch: Path,
) -> WeightedTrainer:
    on_cpu = not torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulate,
        max_steps=clock.total_steps,
        bf16=_choose_dtype(spec.dtype) == torch.bfloat16,
        use_cpu=on_cpu,
        seed=spec.seed,
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=not on_cpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs need one process each; the Trainer would split each row list instead
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: clock.learning_rate_factor())
    trainer = WeightedTrainer(
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=_collate,
        optimizers=(optimizer, schedule),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _measure(trainer: WeightedTrainer, batches: Sequence[Sequence[IntArray]]) -> float | None:
    """Mean loss per predicted token in nats; None without batches."""
    if not batches:
        return None
    model, device = trainer.model.eval(), trainer.args.device
    total = tokens = 0.0
    for batch in batches:
        inputs = {name: values.to(device) for name, values in _collate([batch]).items()}
        weights = inputs.pop("token_weights")
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=trainer.args.bf16):
            logits = model(**inputs, use_cache=False).logits
        total += weighted_cross_entropy(logits, inputs["input_ids"], weights, denominator=1.0).item()
        tokens += weights[:, 1:].sum().item()
    return total / tokens


def _say_plan(spec: "TrainSpec", clock: Clock, tokens: int, loss_before: float | None, say: "Say") -> None:
    limit = f" or {clock.limit_s:,.0f} s" if clock.limit_s < math.inf else ""
    held = "" if loss_before is None else f"; held-out loss of the base {loss_before:.4f} nats"
    dtype = str(_choose_dtype(spec.dtype)).removeprefix("torch.")
    say(f"training on {tokens:,} tokens in {dtype}: at most {clock.total_steps:,} steps{limit}{held}")
