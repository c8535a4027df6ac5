"""Mixed precision as trainers do it: the forward under autocast, the loss outside of it, the product as ever."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from curator.training import Collator, Objective, WeightedTrainer


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Precision is a state of the whole process, which another test may have set."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=None, bos_token_id=None, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(300, (4, 40), generator=generator)
    weights = torch.rand(4, 40, generator=generator) * (torch.rand(4, 40, generator=generator) > 0.4)
    return [{"input_ids": i, "token_weights": w} for i, w in zip(ids, weights, strict=True)]


def rounded_product(model: Any, batch: dict[str, Tensor], weights: Tensor) -> float:
    """Float64 from what a head under autocast multiplies: both factors in bfloat16."""
    seen: list[Tensor] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    hook.remove()
    logits = seen[0][:, :-1].bfloat16().double() @ model.lm_head.weight.detach().bfloat16().double().T
    losses = -logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    return float((losses * weights[:, 1:]).sum() / weights[:, 1:].sum())


def test_the_product_is_rounded_as_under_autocast_though_the_loss_is_taken_outside() -> None:
    from accelerate import Accelerator

    model, batch = make_model(), Collator()(make_rows())
    expected = rounded_product(model, batch, batch["token_weights"].double())
    exact, _ = Objective().loss(model, batch)
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(copy.deepcopy(model))
    loss, _ = Objective(fused=True).loss(prepared, batch)
    assert loss.dtype == torch.float32 and loss.requires_grad
    assert abs(expected - float(exact.detach())) > 1e-4, "the rounding shows"
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        assert Objective(fused=True).loss(prepared, batch)[0].item() == pytest.approx(expected, rel=1e-6)


def trained(folder: Path, objective: Objective) -> dict[str, Tensor]:
    """The gradients of one step of the Trainer with bf16=True."""
    model = make_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1, use_cpu=True,
        bf16=True, max_grad_norm=0, report_to="none", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = WeightedTrainer(
        model=model, args=arguments, train_dataset=make_rows(), optimizers=(optimizer, schedule), objective=objective
    )
    trainer.train()
    return {name: before[name] - weight.detach() for name, weight in model.named_parameters()}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_step_of_the_trainer_in_bfloat16_is_one_under_autocast(tmp_path: Path) -> None:
    model, batch = make_model(), Collator()(make_rows())
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = Objective(fused=True).loss(model, batch)
    loss.backward()
    fused, plain = (trained(tmp_path / str(f), Objective(fused=f)) for f in (True, False))
    for name, weight in model.named_parameters():
        assert relative(fused[name], weight.grad) < 4e-3, f"{name}: other pairs of rows, no other rounding"
        assert relative(fused[name], plain[name]) < 0.02, f"{name}: plain logits are rounded, too"
