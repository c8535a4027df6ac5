"""Train with Tinker on a dataset exported by `curator export DIR --for tinker --sequence-length N`.

    pip install tinker; export TINKER_API_KEY=...
    python train_tinker.py curated_tinker --model meta-llama/Llama-3.2-1B --steps 100

Records are Datum already, targets and weights shifted. `cross_entropy` sums weight times negative log-prob, so the
weights of each step are divided by their sum over the whole step: the loss is then the weighted mean over its tokens.
Written for tinker 0.38.0.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tinker


def read_records(export: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Lines of the export, in a new order each epoch; lines are found by offset, so memory holds none of them."""
    with open(export / "train.jsonl", "rb") as file:
        offsets = [0]
        offsets.extend(file.tell() for _ in iter(file.readline, b""))
        places, order = offsets[:-1], random.Random(seed)
        while True:
            order.shuffle(places)
            for place in places:
                file.seek(place)
                yield json.loads(file.readline())


def make_batch(records: list[dict[str, Any]]) -> list[tinker.Datum]:
    """A step's Datum, whose weights add up to 1 over the whole step."""
    weights = [np.array(record["loss_fn_inputs"]["weights"]["data"], np.float32) for record in records]
    total = np.float32(sum(values.sum(dtype=np.float64) for values in weights))
    return [
        tinker.Datum(
            model_input=tinker.ModelInput(**record["model_input"]),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData(**record["loss_fn_inputs"]["target_tokens"]),
                "weights": tinker.TensorData.from_numpy(values / total),
            },
        )
        for record, values in zip(records, weights, strict=True)
    ]


def main() -> None:
    """Read the command line and train a LoRA on the service."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--model", required=True, help="base model whose tokenizer the dataset was made with")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--documents-per-step", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    client = tinker.ServiceClient().create_lora_training_client(base_model=options.model, rank=options.rank)
    records = read_records(options.export, options.seed)
    for step in range(1, options.steps + 1):
        batch = make_batch([next(records) for _ in range(options.documents_per_step)])
        forward_backward = client.forward_backward(batch, "cross_entropy")
        optimizer = client.optim_step(tinker.AdamParams(learning_rate=options.learning_rate))
        outputs = forward_backward.result().loss_fn_outputs
        optimizer.result()
        loss = -sum(
            float(np.dot(output["logprobs"].to_numpy(), datum.loss_fn_inputs["weights"].to_numpy()))
            for output, datum in zip(outputs, batch, strict=True)
        )
        print(f"step {step}  loss {loss:.4f}", flush=True)
    print(client.save_state("curated").result().path)


if __name__ == "__main__":
    main()
