"""`curator check-trainer`: the right verdict for every known fault, and when nothing can be said."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from curator.training.check import command as check_command
from curator.training.check.candidates import CORRECT, Candidate, Row, make_candidates
from curator.training.check.verdict import Verdict, check_trainer, judge

OPTIMIZERS = {"sgd": (torch.optim.SGD, {"lr": 0.1}), "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.0})}


@pytest.fixture(scope="module")
def candidates(canary: Path) -> list[Candidate]:
    model = LlamaForCausalLM.from_pretrained(canary / "model", dtype=torch.float64)
    table = pq.read_table(canary / "data" / "curated" / "00000.parquet").to_pylist()
    rows = [Row(torch.tensor(r["input_ids"]), torch.tensor(r["token_weights"]).double()) for r in table]
    return make_candidates(model, rows, 1, 0)


def test_candidates_are_well_apart(candidates: list[Candidate]) -> None:
    """The closest of each kind to the right gradient: as vectors, and by signs."""
    correct = candidates[0].gradient_P
    closest: dict[str, tuple[float, float]] = {}
    for other in candidates[1:]:
        cosine = float(correct @ other.gradient_P / (correct.norm() * other.gradient_P.norm()))
        signs = float((correct.sign() * other.gradient_P.sign()).mean())
        before = closest.get(other.name, (-1.0, -1.0))
        closest[other.name] = (max(cosine, before[0]), max(signs, before[1]))
    print("\n".join(f"{cosine:8.5f} {signs:8.5f} {name}" for name, (cosine, signs) in closest.items()))
    assert closest.pop("weights in bf16")[0] < 1 - 1e-6
    assert closest.pop("label smoothing")[0] < 1 - 1e-8
    assert closest.pop("dropped tokens learned")[0] < 0.9998
    assert max(cosine for cosine, _ in closest.values()) < 0.9995
    assert max(signs for _, signs in closest.values()) < 0.99
    assert len(closest) == 15


# ------------------------------------------------------------------------------------------------ faults

Paired = tuple[Tensor, Tensor, Tensor]


def shifted(logits: Tensor, ids: Tensor, weights: Tensor) -> Paired:
    return logits[:, :-1], ids[:, 1:], weights[:, 1:]


def not_shifted(logits: Tensor, ids: Tensor, weights: Tensor) -> Paired:
    return logits, ids, weights


def shifted_twice(logits: Tensor, ids: Tensor, weights: Tensor) -> Paired:
    return logits[:, :-2], ids[:, 2:], weights[:, 2:]


def rolled(logits: Tensor, ids: Tensor, weights: Tensor) -> Paired:
    """Weights stay where they are, and the last token of a row learns its first."""
    return logits, ids.roll(-1, 1), weights


def one_too_late(logits: Tensor, ids: Tensor, weights: Tensor) -> Paired:
    return logits[:, :-1], ids[:, 1:], weights[:, :-1]


FAULTS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Paired], Callable[[Tensor], Tensor]]] = {
    CORRECT: (shifted, lambda w: w),
    "not shifted": (not_shifted, lambda w: w),
    "shifted twice": (shifted_twice, lambda w: w),
    "wrap-around": (rolled, lambda w: w),
    "weights not shifted": (one_too_late, lambda w: w),
    "weights ignored": (shifted, torch.ones_like),
    "hard instead of soft": (shifted, lambda w: (w > 0).float()),
    "weights cast to integers": (shifted, lambda w: w.int().float()),
    "dropped tokens learned": (shifted, lambda w: torch.where(w == 0, 0.1, w)),
    "normalised row by row": (shifted, lambda w: w / w[:, 1:].mean()),
    "weights inverted": (shifted, lambda w: (w == 0).float()),
}


def step_by_hand(
    canary: Path,
    output: Path,
    optimizer: str,
    fault: str = CORRECT,
    groups: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3, 4, 5),),
    autocast: bool = False,
    steps: int = 1,
    smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
    **changed: float,
) -> Path:
    """A trainer of a few lines, in float32, one row at a time, with a fault built in; groups have equal say."""
    model = LlamaForCausalLM.from_pretrained(canary / "model", dtype=dtype)
    kind, settings = OPTIMIZERS[optimizer]
    stepper = kind(model.parameters(), **(settings | changed))
    pair, weigh = FAULTS[fault]
    rows = pq.read_table(canary / "data" / "curated" / "00000.parquet").to_pylist()
    for _ in range(steps):
        stepper.zero_grad()
        for group in groups:
            losses, amounts = [], []
            for index in group:
                ids = torch.tensor([rows[index]["input_ids"]])
                weights = weigh(torch.tensor([rows[index]["token_weights"]]))
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    logits = model(input_ids=ids, use_cache=False).logits.float()
                logits, targets, weights = pair(logits, ids, weights)
                token_losses = cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
                )
                losses.append((token_losses * weights.flatten()).sum())
                amounts.append(weights.sum())
            (sum(losses) / sum(amounts)).backward()  # type: ignore[union-attr]
        stepper.step()
    output.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, output / "model.safetensors")
    return output


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_every_fault_is_named(canary: Path, tmp_path: Path, optimizer: str, fault: str) -> None:
    verdict = check_trainer(canary, step_by_hand(canary, tmp_path, optimizer, fault))
    assert verdict.fits[0].name == fault
    assert verdict.sound == (fault == CORRECT)
    assert fault == CORRECT or verdict.summary.startswith(f"this looks like: {fault}: ")


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "groups",
    [tuple((i,) for i in range(6)), ((0, 1), (2, 3), (4, 5)), ((3, 1), (0, 5), (4, 2)), ((5, 0, 2), (1, 3, 4))],
)
def test_means_of_micro_batches_are_found_in_any_order(
    canary: Path, tmp_path: Path, optimizer: str, groups: tuple[tuple[int, ...], ...]
) -> None:
    verdict = check_trainer(canary, step_by_hand(canary, tmp_path, optimizer, groups=groups))
    assert not verdict.sound
    assert verdict.summary.startswith(
        f"this looks like: per-micro-batch mean: {len(groups)} micro-batches were each divided by their own number of "
    )


def test_bfloat16_weights_show_with_sgd(canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, CORRECT, (shifted, lambda w: w.bfloat16().float()))
    verdict = check_trainer(canary, step_by_hand(canary, tmp_path, "sgd"))
    assert not verdict.sound and "weights in bf16" in verdict.summary


@pytest.mark.parametrize("fault", [CORRECT, "hard instead of soft", "not shifted", "weights not shifted"])
@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_mixed_precision_blurs_but_does_not_hide(canary: Path, tmp_path: Path, optimizer: str, fault: str) -> None:
    verdict = check_trainer(canary, step_by_hand(canary, tmp_path, optimizer, fault, autocast=True))
    assert verdict.fits[0].name in (fault, "weights in bf16")
    assert verdict.sound == (fault == CORRECT)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("smoothing", [0.1, 0.14])
def test_label_smoothing_is_told_apart(canary: Path, tmp_path: Path, optimizer: str, smoothing: float) -> None:
    verdict = check_trainer(canary, step_by_hand(canary, tmp_path, optimizer, smoothing=smoothing))
    assert not verdict.sound
    assert verdict.summary.startswith("this looks like: label smoothing: targets are smoothed by about 0.")
    if optimizer == "sgd":  # signs tell little of how much
        assert verdict.fits[0].says.endswith("0.1" if smoothing == 0.1 else "0.15")


def test_label_smoothing_that_does_not_show_is_not_excluded(canary: Path, tmp_path: Path) -> None:
    blurred = check_trainer(canary, step_by_hand(canary, tmp_path / "a", "sgd", autocast=True))
    notes = "\n".join(blurred.notes)
    assert blurred.sound and "label smoothing is not excluded: that targets are smoothed by about 0." in notes
    assert "0.5% of the update is not explained" in notes and "without mixed precision" in notes
    clear = check_trainer(canary, step_by_hand(canary, tmp_path / "b", "sgd"))
    assert clear.sound and clear.notes == ()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_is_only_nearly_explained_is_not_sound(
    canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Every weight a little larger: no known fault, and 4% of an SGD step."""
    monkeypatch.setitem(FAULTS, CORRECT, (shifted, lambda w: w + 0.1))
    verdict = check_trainer(canary, step_by_hand(canary, tmp_path, optimizer))
    assert not verdict.sound


def test_weight_decay_does_not_disturb(canary: Path, tmp_path: Path) -> None:
    assert check_trainer(canary, step_by_hand(canary, tmp_path / "a", "sgd", weight_decay=0.1)).sound
    wrong = check_trainer(canary, step_by_hand(canary, tmp_path / "b", "sgd", "shifted twice", weight_decay=0.1))
    assert wrong.summary.startswith("this looks like: shifted twice")


# ------------------------------------------------------------------------------------------------ honesty


def test_no_update_is_no_verdict_of_soundness(canary: Path) -> None:
    verdict = check_trainer(canary, canary / "model")
    assert not verdict.sound and not verdict.fits and verdict.summary.startswith("nothing was trained")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved", ["as it is", "in float32"])
def test_rounding_alone_is_no_training(canary: Path, tmp_path: Path, dtype: torch.dtype, saved: str) -> None:
    tensors = {name: w.to(dtype) for name, w in load_file(canary / "model" / "model.safetensors").items()}
    if saved == "in float32":
        tensors = {name: weight.float() for name, weight in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    verdict = check_trainer(canary, tmp_path)
    assert not verdict.sound and verdict.summary.startswith("nothing was trained")


def test_a_step_that_drowns_in_rounding_asks_for_a_larger_one(canary: Path, tmp_path: Path) -> None:
    """In float32 with SGD already, so neither can be the advice."""
    verdict = check_trainer(canary, step_by_hand(canary, tmp_path, "sgd", lr=1e-6))
    assert not verdict.sound and verdict.summary.startswith("cannot tell apart: correct or ")
    assert "raise the learning rate" in verdict.summary and "with SGD" not in verdict.summary


def test_noise_fits_nothing(candidates: list[Candidate]) -> None:
    noise = torch.randn(len(candidates[0].gradient_P), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    verdict = judge(noise, candidates)
    assert not verdict.sound and verdict.summary.startswith("nothing known explains the update")


def test_a_blurred_update_leaves_it_open(candidates: list[Candidate]) -> None:
    """Halfway between two candidates nobody can say which."""
    correct, other = (
        next(c for c in candidates if c.name == name).gradient_P for name in (CORRECT, "hard instead of soft")
    )
    verdict = judge(-(correct / correct.norm() + other / other.norm()), candidates)
    assert not verdict.sound


def test_not_a_number_is_said(canary: Path, tmp_path: Path) -> None:
    tensors = load_file(canary / "model" / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "broken.safetensors")
    verdict = check_trainer(canary, tmp_path / "broken.safetensors")
    assert not verdict.sound and "NaN" in verdict.summary


def test_prefixes_of_wrappers_are_taken_off(canary: Path, tmp_path: Path) -> None:
    trained = step_by_hand(canary, tmp_path, "sgd")
    tensors = load_file(trained / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert check_trainer(canary, tmp_path).sound


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    check_command.register(app)
    app.command("other")(lambda: None)
    run = CliRunner().invoke
    folder = tmp_path / "canary"
    written = run(app, ["check-trainer", "write", str(folder)])
    assert written.exit_code == 0, written.output
    good = step_by_hand(folder, tmp_path / "good", "adamw")
    said = run(app, ["check-trainer", "read", str(folder), str(good)])
    assert said.exit_code == 0 and said.output.startswith("the weights reach the loss\n")
    bad = step_by_hand(folder, tmp_path / "bad", "adamw", "shifted twice")
    said = run(app, ["check-trainer", "read", str(folder), str(bad)])
    assert said.exit_code == 1 and said.output.startswith("this looks like: shifted twice")
    assert isinstance(check_trainer(folder, bad), Verdict)
