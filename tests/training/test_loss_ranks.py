"""Losses over real processes (gloo): selection over all ranks is that of one process with all the data."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from curator.training import weighted_cross_entropy

ROWS, LENGTH, SIZE, VOCABULARY = 6, 8, 5, 9
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def make_cases(world: int) -> list[dict[str, Any]]:
    uneven = [1, 5] if world == 2 else [1, 2, 3]
    without_any = [0, 6] if world == 2 else [4, 0, 2]
    even = [ROWS // world] * world
    cases = [(even, 0.5, None, False), (uneven, 0.3, None, False), (without_any, 0.6, None, False)]
    cases += [(uneven, 1.0, None, False), (uneven, 0.3, 37.0, False), (uneven, 0.4, None, True)]
    cases += [(even, 0.02, None, False)]  # one token in all: most ranks select none
    return [dict(zip(("split", "keep", "denominator", "ties"), case, strict=True)) for case in cases]


def make_data(world: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    reference = -torch.rand(ROWS, LENGTH, generator=generator, dtype=torch.float64) * 5
    reference[torch.rand(ROWS, LENGTH, generator=generator) < 0.3] = float("nan")
    return {
        "cases": make_cases(world), "hidden": normal(ROWS, LENGTH, SIZE), "weight": normal(VOCABULARY, SIZE),
        "input_ids": torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator), "reference": reference,
        "token_weights": torch.rand(ROWS, LENGTH, generator=generator, dtype=torch.float64), "llama": LLAMA,
    }  # fmt: skip


def expected_step(data: dict[str, Any], case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """One process with all rows; Python's stable sort breaks ties by rank and position, as rows lie in that order."""
    hidden, weight = (data[name].clone().requires_grad_() for name in ("hidden", "weight"))
    logprobs = ((hidden * (0 if case["ties"] else 1)) @ weight.T).log_softmax(-1)
    reference = torch.zeros_like(data["reference"]) if case["ties"] else data["reference"]
    scored = []
    for b in range(ROWS):
        for t in range(1, LENGTH):
            if reference[b, t].isfinite():
                loss = -logprobs[b, t - 1, data["input_ids"][b, t]]
                scored.append(((loss + reference[b, t]).item(), loss))
    scored.sort(key=lambda pair: -pair[0])
    count = round(case["keep"] * len(scored))
    total = torch.stack([loss for _, loss in scored[:count]]).sum() / (case["denominator"] or count)
    total.backward()
    return total.detach(), hidden.grad, weight.grad


def expected_ddp(data: dict[str, Any]) -> dict[str, Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).double()
    weighted_cross_entropy(
        model(input_ids=data["input_ids"]).logits, data["input_ids"], data["token_weights"]
    ).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def run_ranks(folder: Path, world: int) -> list[dict[Any, Any]]:
    script = str(Path(__file__).parent / "selective_ranks.py")
    ranks = [subprocess.Popen([sys.executable, script, str(folder), str(rank), str(world)]) for rank in range(world)]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_take_the_step_of_one_process(tmp_path: Path, world: int) -> None:
    data = make_data(world)
    torch.save(data, tmp_path / "data.pt")
    found = run_ranks(tmp_path, world)
    for number, case in enumerate(data["cases"]):
        expected = expected_step(data, case)
        for form in ("logits", "fused"):
            parts = zip(*(each[number, form] for each in found), strict=True)
            for name, part, wanted in zip(("loss", "hidden", "weight"), parts, expected, strict=True):
                message = f"{form}, {case}, {name}"
                torch.testing.assert_close(sum(part), wanted, rtol=1e-10, atol=1e-13, msg=message)
    if world == 2:
        for name, wanted in expected_ddp(data).items():
            for rank in found:
                torch.testing.assert_close(rank["ddp"][name], wanted, rtol=1e-9, atol=1e-12)
