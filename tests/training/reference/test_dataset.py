"""A reference from a curated dataset: its tokens, its weights, and nobody else's tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from curator.errors import OutputError, TrainingError
from curator.tokens.tokenizer import TokensConfig, load_tokenizer
from curator.training import TrainSpec, train_reference

Make = Callable[..., dict[str, Any]]
Rows = list[tuple[list[int], list[float]]]


def some_rows(count: int = 12) -> Rows:
    """Soft weights, hard ones, none at all; of unlike lengths."""
    random = np.random.default_rng(4)
    rows: Rows = []
    for number in range(count):
        length = int(random.integers(3, 30))
        weights = random.random(length) * (random.random(length) < 0.6) if number % 4 else np.zeros(length)
        rows.append((random.integers(0, 200, length).tolist(), weights.tolist()))
    return rows


@pytest.fixture
def fingerprint(tiny_llama: Path) -> str:
    return load_tokenizer(str(tiny_llama), None, TokensConfig()).fingerprint


def loss_by_hand(model: Any, rows: Rows) -> torch.Tensor:
    """Sum of weight times cross-entropy over the sum of weights, one token after the other."""
    total, weight_sum = torch.zeros(()), 0.0
    for ids, weights in rows:
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for t in range(1, len(ids)):
            total = total - weights[t] * logprobs[t - 1, ids[t]]
            weight_sum += weights[t]
    return total / weight_sum


def test_one_step_is_that_of_the_weighted_loss(
    train_spec: Make, write_dataset: Callable[..., Path], fingerprint: str, tiny_llama: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(some_rows(), fingerprint)
    spec = train_spec(corpus=None, dataset=str(dataset), eval_fraction=0.0, batch_tokens=100_000, max_steps=1)
    result = train_reference(TrainSpec.model_validate(spec), lambda line: None)
    assert (result.documents, result.unweighted_rows, result.bad_rows) == (9, 3, {})
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    loss_by_hand(model, some_rows()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    large = {name: p.grad.abs() > 1e-5 for name, p in model.named_parameters()}  # Adam makes much of rounding in others
    optimizer.step()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "reference").state_dict()
    assert sum(int(mask.sum()) for mask in large.values()) > 5_000
    for name, mask in large.items():
        moved, expected = (state[name][mask] - before[name][mask] for state in (trained, model.state_dict()))
        torch.testing.assert_close(moved, expected, rtol=0.02, atol=1e-5)


def test_held_out_loss_is_weighted_too(
    train_spec: Make, write_dataset: Callable[..., Path], fingerprint: str, tiny_llama: Path
) -> None:
    alike = [([7, 11, 19, 23, 5, last], [0.0, 0.5, 0.0, 2.0, 0.0, 0.0]) for last in range(80, 88)]  # of one loss
    spec = train_spec(corpus=None, dataset=str(write_dataset(alike, fingerprint)), max_steps=1)
    result = train_reference(TrainSpec.model_validate(spec), lambda line: None)
    with torch.no_grad():
        expected = loss_by_hand(AutoModelForCausalLM.from_pretrained(tiny_llama), alike).item()
    assert result.loss_before == pytest.approx(expected, rel=1e-5)


def test_weights_are_part_of_the_datas_identity(
    train_spec: Make, write_dataset: Callable[..., Path], fingerprint: str
) -> None:
    rows = some_rows()
    spec = train_spec(corpus=None, dataset=str(write_dataset(rows, fingerprint)), max_steps=1)
    train_reference(TrainSpec.model_validate(spec), lambda line: None)
    doubled = [(ids, [2 * weight for weight in weights]) for ids, weights in rows]
    moved = write_dataset(doubled, fingerprint)
    Path(spec["dataset"]).rename(moved.with_name("old"))
    moved.rename(spec["dataset"])
    with pytest.raises(OutputError, match="other tokens"):
        train_reference(TrainSpec.model_validate(spec), lambda line: None)


def test_a_dataset_that_cannot_serve_is_refused(
    train_spec: Make, write_dataset: Callable[..., Path], fingerprint: str, tmp_path: Path
) -> None:
    def attempt(folder: Path) -> None:
        spec = TrainSpec.model_validate(train_spec(corpus=None, dataset=str(folder)))
        train_reference(spec, lambda line: None)

    with pytest.raises(TrainingError, match=r"tokens of 'somewhere'.*fingerprints differ"):
        attempt(write_dataset(some_rows(), "f" * 64))
    with pytest.raises(OutputError, match="holds weights without tokens"):
        attempt(write_dataset(some_rows(), fingerprint, "weights"))
    with pytest.raises(OutputError, match="no finished dataset"):
        attempt(tmp_path)
    leading_out = write_dataset(some_rows(), fingerprint)
    manifest = leading_out / "manifest.json"
    manifest.write_text(manifest.read_text().replace("curated/00000.parquet", "../elsewhere.parquet"))
    with pytest.raises(OutputError, match=r"'\.\./elsewhere\.parquet' as a shard"):
        attempt(leading_out)
    with pytest.raises(TrainingError, match="keeps no token at all"):
        attempt(write_dataset([([1, 2, 3], [0.0, 0.0, 0.0])], fingerprint))
    assert not list(tmp_path.glob(".reference*")) and not (tmp_path / "reference").exists()


@pytest.mark.slow
def test_what_curate_publishes_trains_a_reference(
    train_spec: Make, make_spec: Make, tmp_path: Path, ray_cluster: None
) -> None:
    """Curate real rows with the bigram model, whose tokenizer the tiny base has; then train on what was kept."""
    from curator import curate
    from curator.spec import parse_spec

    policy = {"kind": "loss", "keep": 0.5}
    curate(parse_spec(make_spec(rows=60, models={"reference": {"engine": "bigram"}}, policy=policy)))
    spec = train_spec(
        corpus=None, dataset=str(tmp_path / "out"), batch_tokens=2048, micro_batch_tokens=1024, max_steps=20
    )
    result = train_reference(TrainSpec.model_validate(spec), lambda line: None)
    assert result.loss_after is not None and result.loss_before is not None
    assert result.loss_after < result.loss_before - 0.5
