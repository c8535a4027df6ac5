"""The HF Trainer with our loss: a step's gradient is that of the definition, however the step is cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from curator.training import Collator, Objective, weighted_cross_entropy
from curator.training.hf_trainer import WeightedTrainer
from curator.training.packing import pack


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).double()


def rows(hard: bool) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (3, 9, 5, 12, 2, 7):
        ids = torch.randint(40, (length,), generator=generator)
        weights = torch.rand(length, generator=generator) * (torch.rand(length, generator=generator) > 0.5)
        weights[0] = 0
        row = {"input_ids": ids, "labels": torch.where(weights > 0, ids, -100)}
        made.append(row if hard else {**row, "token_weights": weights})
    return made


def expected_step(data: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One plain gradient step of size 1, document by document, without padding."""
    model = tiny_model()
    total, weight_sum = torch.zeros((), dtype=torch.float64), 0.0
    for row in data:
        logits = model(input_ids=row["input_ids"][None]).logits[0].log_softmax(-1)
        for t in range(1, len(row["input_ids"])):
            weight = float(row["token_weights"][t]) if "token_weights" in row else float(row["labels"][t] != -100)
            total = total - weight * logits[t - 1, row["input_ids"][t]]
            weight_sum += weight
    (total / weight_sum).backward()
    return {name: (p - p.grad).detach() for name, p in model.named_parameters()}


def trained_step(folder: Path, data: list[dict[str, Any]], batch: int, accumulate: int) -> dict[str, torch.Tensor]:
    """The parameters after one step of the Trainer, also of size 1."""
    model = tiny_model()
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
        max_steps=1, use_cpu=True, max_grad_norm=0, remove_unused_columns=False, report_to="none",
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = WeightedTrainer(
        model=model, args=arguments, train_dataset=data, data_collator=Collator(pad_to_multiple_of=4),
        optimizers=(optimizer, constant),
    )  # fmt: skip
    trainer.train()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    ("batch", "accumulate"),
    [(4, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((6, 1), (2, 3), (1, 6)))],
)
def test_one_step_takes_the_gradient_of_the_weighted_mean(
    tmp_path: Path, batch: int, accumulate: int, hard: bool
) -> None:
    trained = trained_step(tmp_path, rows(hard), batch, accumulate)
    for name, value in expected_step(rows(hard)).items():
        torch.testing.assert_close(trained[name], value, rtol=1e-6, atol=5e-8)


@pytest.mark.parametrize("sequence_length", [pytest.param(38, marks=pytest.mark.slow), 50])
def test_packed_documents_do_not_see_each_other(tmp_path: Path, sequence_length: int) -> None:
    documents = [{name: values.numpy() for name, values in row.items()} for row in rows(hard=False)]
    packed = [dict(sequence) for _, sequence in pack(enumerate(documents), sequence_length)]
    assert len(packed) == 1, "every document fits whole"
    trained = trained_step(tmp_path, packed, 1, 1)
    for name, value in expected_step(rows(hard=False)).items():
        torch.testing.assert_close(trained[name], value, rtol=1e-6, atol=5e-8)


# ------------------------------------------------------------------------------------------------ evaluation


def make_evaluator(folder: Path, objective: Objective) -> WeightedTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=6, use_cpu=True, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    return WeightedTrainer(model=tiny_model().eval(), args=arguments, objective=objective)


def without_labels() -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("input_ids", "token_weights")} for row in rows(hard=False)]


@pytest.mark.parametrize("fused", [False, True])
def test_rows_with_weights_and_no_labels_are_evaluated(tmp_path: Path, fused: bool) -> None:
    batch = Collator()(without_labels())
    with torch.no_grad():
        logits = tiny_model().eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = weighted_cross_entropy(logits, batch["input_ids"], batch["token_weights"])
    found = make_evaluator(tmp_path, Objective(fused=fused)).evaluate(without_labels())
    assert found["eval_loss"] == pytest.approx(float(expected), rel=1e-6)


def test_online_selection_is_evaluated_without_labels(tmp_path: Path) -> None:
    data = [{"input_ids": row["input_ids"], "logprobs_reference": -row["token_weights"]} for row in without_labels()]
    assert make_evaluator(tmp_path, Objective(keep=0.5)).evaluate(data)["eval_loss"] > 0


@pytest.mark.parametrize("fused", [False, True])
def test_predictions_are_logits(tmp_path: Path, fused: bool) -> None:
    trainer = make_evaluator(tmp_path, Objective(fused=fused))
    found = trainer.predict(without_labels())
    batch = Collator()(without_labels())
    with torch.no_grad():
        logits = tiny_model().eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(torch.from_numpy(found.predictions), logits, rtol=1e-6, atol=1e-8)
    wanted = torch.where(batch["token_weights"] > 0, batch["input_ids"], -100)
    assert torch.equal(torch.from_numpy(found.label_ids), wanted)
    assert trainer.objective.fused == fused


def test_rows_of_ids_alone_are_predicted(tmp_path: Path) -> None:
    data = [{"input_ids": row["input_ids"]} for row in without_labels()]
    for objective in (Objective(), Objective(keep=0.5, fused=True)):
        found = make_evaluator(tmp_path, objective).predict(data)
        assert found.predictions.shape == (6, 12, 40) and found.label_ids is None
