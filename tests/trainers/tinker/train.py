"""Tinker: real `Datum` objects by the example's own code, and the service's documented loss in their place.

The service cannot be run here. Its `cross_entropy` is sum over t of weights_t * -log p(target_tokens_t | inputs up to
t), with all three of one length; that is computed here from what the client would send.
"""

import sys
from itertools import islice

import oracle
import tinker
import torch
from transformers import AutoModelForCausalLM

example = oracle.load_example("train_tinker")


def main() -> None:
    """One step over all documents, hard and soft."""
    folder = oracle.canary_folder()
    for name in ("hard", "soft"):
        documents = oracle.read_documents(folder, name)
        records = islice(example.read_records(folder / "exports" / f"tinker-{name}", seed=0), len(documents))
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
        for datum in example.make_batch(list(records)):
            cross_entropy(model, datum).backward()
        seen = oracle.gradients(model)
        oracle.check(f"Tinker, {name}", model, seen, documents, oracle.causal_logits)


def cross_entropy(model: torch.nn.Module, datum: tinker.Datum) -> torch.Tensor:
    """The service's loss of one Datum."""
    inputs = torch.tensor(datum.model_input.to_ints())
    targets = torch.tensor(datum.loss_fn_inputs["target_tokens"].to_numpy())
    weights = torch.tensor(datum.loss_fn_inputs["weights"].to_numpy())
    if not len(inputs) == len(targets) == len(weights):
        sys.exit(f"a Datum of {len(inputs)} inputs, {len(targets)} targets and {len(weights)} weights")
    losses = torch.nn.functional.cross_entropy(model(inputs[None]).logits[0], targets, reduction="none")
    return losses @ weights


if __name__ == "__main__":
    main()
