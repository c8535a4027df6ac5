"""Tinker: one Datum a line, with target tokens and weights of the same length.

Read from tinker 0.38.0 and tinker-cookbook 0.6.1: `model_input` holds all tokens but the last, `target_tokens` all but
the first, and `weights` concern the targets (`supervised/common.py`). The service's `cross_entropy` sums weight times
negative log-prob, so any denominator is the caller's.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from curator.exports.columns import write_json_lines
from curator.exports.form import Facts, Form, Item, targets


class TinkerForm(Form):
    """JSON lines of Datum: `model_input` and `loss_fn_inputs` with `target_tokens` and `weights`."""

    kind: Literal["tinker"] = "tinker"
    soft: ClassVar[bool] = True
    packing: ClassVar[Literal["never", "optional", "always"]] = "never"
    guide: ClassVar[str] = """\
```python
def read_datum(line: str) -> tinker.Datum:
    record = json.loads(line)
    tensors = {name: tinker.TensorData(**tensor) for name, tensor in record["loss_fn_inputs"].items()}
    return tinker.Datum(model_input=tinker.ModelInput(**record["model_input"]), loss_fn_inputs=tensors)

training_client.forward_backward(batch, "cross_entropy")
```

* Everything is shifted: the weight at t concerns the target at t, which is the token behind the input at t. Do not
  pass the records through `datum_from_model_input_weights`, which shifts again.
* `cross_entropy` is the sum of weight times negative log-prob. Divide the weights of a step by their sum before you
  send them, as `examples/trainers/train_tinker.py` of token-curator does, and the loss is the weighted mean however
  long the documents are. A mean per document would weigh tokens of short documents more.
* Export with `--sequence-length` at most the model's context: longer documents are cut into pieces that overlap by one
  token. Documents are not packed: the service batches them.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `train.jsonl`; see the base class."""
        write_json_lines((_datum(item) for item in items), folder / "train.jsonl")


def _datum(item: Item) -> Mapping[str, Any]:
    shifted, length = targets(item), len(item["input_ids"]) - 1
    inputs = {"tokens": item["input_ids"][:-1].tolist(), "type": "encoded_text"}
    return {
        "model_input": {"chunks": [inputs]},
        "loss_fn_inputs": {
            "target_tokens": {
                "data": shifted.target_tokens_T[:length].tolist(),
                "dtype": "int64",
                "shape": [length],
            },
            "weights": {"data": shifted.weights_T[:length].tolist(), "dtype": "float32", "shape": [length]},
        },
    }
