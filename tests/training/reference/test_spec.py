"""What a training spec may say, and what is said of one that contradicts itself."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from curator.cli import app
from curator.errors import SpecError
from curator.spec import read_mapping, validate
from curator.training import TrainSpec

EXAMPLES = Path(__file__).parents[3] / "examples"
Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "/curated"}, "both corpus and dataset are given"),
        ({"corpus": None}, "neither corpus nor dataset is given"),
        ({"corpus": None, "dataset": "/curated", "tokens": {"eos": True}}, "a dataset has its own tokens"),
        ({"method": "lora", "lora": {"rank": 0}}, "lora.rank"),
        ({"method": "lora", "lora": {"dropout": 1.0}}, "lora.dropout"),
        ({"method": "lora", "lora": {"target_modules": []}}, "names no layer"),
        ({"method": "lora", "lora": {"target_modules": ["(q|k)+_proj"]}}, "lora.target_modules"),
        ({"lora": {"rank": 8}}, "set method: lora"),
        ({"method": "qlora"}, "method"),
        ({"patience": 2}, "set eval_every, too"),
        ({"micro_batch_tokens": 257}, "micro_batch_tokens: 257 exceeds batch_tokens: 256"),
        *(
            ({name: value}, f"{name}: ")
            for name in ("epochs", "learning_rate", "max_minutes", "eval_fraction")
            for value in (math.inf, math.nan)
        ),
        ({"method": "lora", "lora": {"alpha": math.inf}}, "lora.alpha"),
        ({"keep_checkpoints": [math.nan]}, "keep_checkpoints.0"),
        ({"run": {"checkpoint_minutes": math.inf}}, "run.checkpoint_minutes"),
        ({"eval_every": 5, "patience": 2, "eval_fraction": 0.0}, "eval_fraction is 0"),
        ({"keep_checkpoints": [0.5, 1.0]}, "keep_checkpoints.1"),
        ({"keep_every": 0}, "keep_every"),
        ({"seed": 1 << 32}, "seed: "),
        ({"run": {"workers": 0}}, "run.workers"),
        ({"run": {"gpus_per_worker": 2}}, "run.gpus_per_worker"),
        ({"early_stopping": True}, "early_stopping"),
    ],
)
def test_a_contradiction_is_named_with_its_remedy(train_spec: Make, changes: dict[str, Any], message: str) -> None:
    validate(TypeAdapter(TrainSpec), train_spec(), "spec")
    with pytest.raises(SpecError) as caught:
        validate(TypeAdapter(TrainSpec), train_spec(**changes), "spec")
    assert message in str(caught.value)


def test_a_spec_of_before_means_what_it_meant(train_spec: Make) -> None:
    spec = TrainSpec.model_validate(train_spec())
    assert (spec.method, spec.adapter, spec.eval_every, spec.keep_checkpoints, spec.run.workers) == (
        "full", None, None, (), 1,
    )  # fmt: skip


def test_who_works_and_where_it_goes_does_not_decide_what_comes_out(train_spec: Make) -> None:
    one = TrainSpec.model_validate(train_spec())
    other = TrainSpec.model_validate(train_spec(output="/elsewhere", run={"workers": 4, "checkpoint_minutes": 1}))
    assert one.decisive() == other.decisive()
    assert one.decisive() != TrainSpec.model_validate(train_spec(seed=1)).decisive()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("train-reference*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_sound(path: Path) -> None:
    assert validate(TypeAdapter(TrainSpec), read_mapping(str(path)), path.name).output


def test_there_is_an_example_for_each_use() -> None:
    assert len(list(EXAMPLES.glob("train-reference*.yaml"))) >= 3


def test_the_command_prints_every_setting() -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["schema", "--kind", "train_reference"])
    assert shown.exit_code == 0 and json.loads(shown.output)["properties"].keys() == TrainSpec.model_fields.keys()
    refused = runner.invoke(app, ["schema", "--kind", "nothing"])
    assert refused.exit_code == 2 and "train_reference" in refused.output
