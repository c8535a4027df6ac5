"""Peak memory and speed of the losses at large vocabularies: full logits, our loss over logits, our fused loss.

    python benchmarks/losses.py                 # all cases, about twenty minutes on two cores
    python benchmarks/losses.py --loss selective      # one of the losses; the other's results stay as they are
    python benchmarks/losses.py --quick         # small sizes, to see that it works

One case is a forward and a backward from hidden states (B, T, H) and a head (V, H) to the gradients of both, in a
process of its own. Memory is the process's peak resident size above its size before the first loss,
which holds torch, hidden states and head; the gradient of the head is part of it. Time is the median of the rounds
after a first one. The forms of a case run one after the other, and ratios are taken within a case.

    naive    logits of all positions, upcast to float32, torch's cross_entropy(reduction="none") times the weights, or
             of those positions that topk finds to have the highest excess loss
    logits   `weighted_cross_entropy` or `selective_loss` over logits from a plain linear head
    fused    `fused_weighted_cross_entropy` or `fused_selective_loss`

The other fused losses that people use, liger-kernel and cut-cross-entropy, are Triton kernels and need a GPU.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Forms = dict[str, Callable[[], "Tensor"]]
LOSSES = ("weighted", "selective")
FORMS = ("naive", "logits", "fused")
DTYPES = ("float32", "bfloat16")
RESULTS = Path(__file__).parent / "results" / "losses.json"
FULL = {"vocabularies": (32_768, 131_072), "hidden": 768, "tokens": 2048, "rounds": 3}
QUICK = {"vocabularies": (8192, 32_768), "hidden": 256, "tokens": 512, "rounds": 2}
KEEPS = (1.0, 0.6, 0.1)


def measure(case: dict[str, Any]) -> dict[str, float]:
    """One case, in this process."""
    import psutil
    import torch

    torch.manual_seed(0)
    dtype = getattr(torch, case["dtype"])
    batch, length = 2, case["tokens"] // 2
    # In place: what is made and freed before must not hide what the loss needs.
    weight = torch.empty(case["vocabulary"], case["hidden"], dtype=dtype).normal_(0, 0.02).requires_grad_()
    hidden = torch.empty(batch, length, case["hidden"], dtype=dtype).normal_().requires_grad_()
    input_ids = torch.randint(case["vocabulary"], (batch, length))
    forms = _selective_forms if case["loss"] == "selective" else _weighted_forms
    form = forms(hidden, weight, input_ids, case["keep"])[case["form"]]
    (torch.ones(64, 64, dtype=dtype) @ torch.ones(64, 64, dtype=dtype)).sum()  # the libraries' own buffers
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(case["rounds"] + 1):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        loss = form()
        loss.backward()
        seconds.append(time.perf_counter() - start)
    return {
        "peak_bytes": peak_bytes() - before,
        "seconds": statistics.median(seconds[1:] or seconds),
        "loss": loss.item(),
    }


def _naive_losses(hidden: "Tensor", weight: "Tensor", input_ids: "Tensor") -> "Tensor":
    import torch

    logits = torch.nn.functional.linear(hidden, weight)[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")


def _weighted_forms(hidden: "Tensor", weight: "Tensor", input_ids: "Tensor", keep: float) -> Forms:
    import torch

    from curator.scorers.head import Head
    from curator.training import fused_weighted_cross_entropy, weighted_cross_entropy

    weights = (torch.rand(input_ids.shape) < keep).float()

    def naive() -> torch.Tensor:
        kept = weights[:, 1:].flatten()
        return (_naive_losses(hidden, weight, input_ids) * kept).sum() / kept.sum()

    return {
        "naive": naive,
        "logits": lambda: weighted_cross_entropy(torch.nn.functional.linear(hidden, weight), input_ids, weights),
        "fused": lambda: fused_weighted_cross_entropy(hidden, Head(weight), input_ids, weights),
    }


def _selective_forms(hidden: "Tensor", weight: "Tensor", input_ids: "Tensor", keep: float) -> Forms:
    import torch

    from curator.scorers.head import Head
    from curator.training import fused_selective_loss, selective_loss

    reference = torch.empty(input_ids.shape).normal_(-12, 2)

    def naive() -> torch.Tensor:
        losses = _naive_losses(hidden, weight, input_ids)
        excess = losses.detach() + reference[:, 1:].flatten()
        return losses[excess.topk(round(keep * len(excess))).indices].mean()

    return {
        "naive": naive,
        "logits": lambda: selective_loss(torch.nn.functional.linear(hidden, weight), input_ids, reference, keep),
        "fused": lambda: fused_selective_loss(hidden, Head(weight), input_ids, reference, keep),
    }


def peak_bytes() -> int:
    """Largest resident size of this program; getrusage would count its parent's too, from before it was this one."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def run(case: dict[str, Any]) -> dict[str, float]:
    """One case, in a fresh process."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(answer.splitlines()[-1])
    return result


def compare(losses: Sequence[str], sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """All cases; each row has the three forms of one case and their ratios to the naive one."""
    rows = []
    for loss, vocabulary, dtype, keep in itertools.product(losses, sizes["vocabularies"], DTYPES, KEEPS):
        if (loss, keep) == ("selective", 1.0):
            continue  # nothing to select
        shared = {"loss": loss, "vocabulary": vocabulary, "dtype": dtype, "keep": keep}
        case = shared | {name: sizes[name] for name in ("hidden", "tokens", "rounds")}
        forms = {form: run(case | {"form": form}) for form in FORMS}
        ratios = {
            form: {name: forms[form][name] / forms["naive"][name] for name in ("peak_bytes", "seconds")}
            for form in FORMS[1:]
        }
        rows.append(shared | {"forms": forms, "ratio_to_naive": ratios})
        print(format_row(rows[-1]), flush=True)
    return rows


HEADER = (
    "| loss | vocabulary | type | keep | naive, MiB | logits | fused | fused / naive "
    "| naive, s | logits | fused | fused / naive |\n"
    "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def format_row(row: dict[str, Any]) -> str:
    memory = [f"{row['forms'][form]['peak_bytes'] / 2**20:,.0f}" for form in FORMS]
    seconds = [f"{row['forms'][form]['seconds']:.2f}" for form in FORMS]
    ratio = row["ratio_to_naive"]["fused"]
    cells = [row["loss"], f"{row['vocabulary']:,}", row["dtype"], f"{row['keep']:g}"]
    cells += [*memory, f"{ratio['peak_bytes']:.2f}", *seconds, f"{ratio['seconds']:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes no results")
    parser.add_argument("--loss", choices=LOSSES, help="this one alone")
    parser.add_argument("--tokens", type=int, help="tokens of a batch")
    parser.add_argument("--hidden", type=int, help="hidden size")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    sizes = dict(QUICK if arguments.quick else FULL)
    sizes |= {name: value for name in ("tokens", "hidden") if (value := getattr(arguments, name))}
    print(HEADER)
    losses = [arguments.loss] if arguments.loss else LOSSES
    rows = compare(losses, sizes)
    if arguments.quick:
        return
    import torch

    if arguments.loss:
        before = json.loads(RESULTS.read_text())
        if before["sizes"] != sizes:
            sys.exit(f"{RESULTS} has other sizes, {before['sizes']}; run all losses")
        rows += [row for row in before["rows"] if row["loss"] != arguments.loss]
        rows.sort(key=lambda row: LOSSES.index(row["loss"]))
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.processor()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"sizes": sizes, "machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
