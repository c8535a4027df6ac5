"""One rank of the distributed loss tests: `python selective_ranks.py FOLDER RANK WORLD`.

Reads FOLDER/data.pt (hidden states, head, ids, log-probs, `split`: how many rows each rank holds), and writes to
FOLDER/RANK.pt this rank's losses and gradients of each case. A script of its own, as ranks are real processes.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from curator.scorers.head import Head
from curator.training import (
    fused_selective_loss,
    fused_weighted_cross_entropy,
    hidden_instead_of_logits,
    selective_loss,
)


def main(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    data = torch.load(folder / "data.pt")
    found = {}
    for number, case in enumerate(data["cases"]):
        first = sum(case["split"][:rank])
        mine = slice(first, first + case["split"][rank])
        for form in ("logits", "fused"):
            found[number, form] = take_step(form, data, mine, case)
    if world == 2:
        found["ddp"] = take_ddp_step(data, slice(rank, None, world), world)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def take_step(form: str, data: dict[str, Any], mine: slice, case: dict[str, Any]) -> tuple[Any, ...]:
    hidden, weight = (data[name].clone().requires_grad_() for name in ("hidden", "weight"))
    own, ids = hidden[mine], data["input_ids"][mine]
    settings = {"denominator": case["denominator"], "group": dist.group.WORLD}
    reference = (torch.zeros_like(data["reference"]) if case["ties"] else data["reference"])[mine]
    if case["ties"]:
        own = own * 0
    if form == "fused":
        loss = fused_selective_loss(own, Head(weight), ids, reference, case["keep"], **settings)
    else:
        loss = selective_loss(own @ weight.T, ids, reference, case["keep"], **settings)
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


def take_ddp_step(data: dict[str, Any], mine: slice, world: int) -> dict[str, torch.Tensor]:
    """Gradients that DistributedDataParallel averages, of the loss times the number of ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    inner = LlamaForCausalLM(LlamaConfig(**data["llama"])).double()
    model = torch.nn.parallel.DistributedDataParallel(inner)
    with hidden_instead_of_logits(model) as head:
        hidden = model(input_ids=data["input_ids"][mine]).logits
    total = data["token_weights"][:, 1:].sum()
    loss = fused_weighted_cross_entropy(
        hidden, head, data["input_ids"][mine], data["token_weights"][mine], denominator=total
    )
    (loss * world).backward()
    return {name: parameter.grad for name, parameter in inner.named_parameters()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
