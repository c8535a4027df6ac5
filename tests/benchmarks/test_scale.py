"""Scale: the driver's costs grow by the shard and no faster, and the capacity page says what its model says.

The straight lines and the model are held against points of `results/` that they were not taken from.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def model(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(BENCHMARKS / "capacity.py")


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_holds_the_tables_that_the_model_makes(model: ModuleType) -> None:
    page = model.PAGE.read_text("utf-8")
    assert model.fill(page, model.measured()) == page, "run python benchmarks/capacity.py --write"


def test_a_page_with_a_changed_figure_is_not_what_the_model_makes(model: ModuleType) -> None:
    page = model.PAGE.read_text("utf-8")
    cell = re.search(r"table: cost -->(?:\n.*){2}\n\| 135M \| ([0-9,]+) ", page)
    assert cell is not None
    changed = page.replace(cell[1], "123,456")
    assert changed != page and model.fill(changed, model.measured()) == page
    with pytest.raises(SystemExit, match="0 places for table 'hours'"):
        model.fill(page.replace("table: hours", "table: hour"), model.measured())


def test_the_driver_takes_less_than_a_hundredth_of_the_scoring_time(model: ModuleType) -> None:
    """From the file alone: 100,000 shards of 4 million tokens, a 1B model on an H100."""
    scale = read("scale")
    shards = 100_000
    plan, publish, merge = (scale[name][str(shards)] for name in ("plan", "publish", "merge"))
    handed = scale["hand_out"]["1000 workers"]["driver_s"] / 20_000
    driver_s = sum(plan[key] for key in ("cut_s", "write_s", "read_s")) + publish["publish_s"] + publish["scan_s"]
    driver_s += 2 * merge["merge_s"] + 5 * shards * handed
    flops = 2 * 1.236e9 + 2 * 16 * 2048 * 2048
    gpu_s = shards * 4e6 * flops / 989e12  # at its very peak, which no GPU reaches: the share can only be smaller
    assert driver_s / gpu_s < 0.01
    assert model.driver_share(model.MODELS[1], model.measured()) < 0.01


# ------------------------------------------------------------------------------------------------ measured points


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_the_equation_of_scoring_meets_lengths_and_a_model_that_it_was_not_taken_from(engine: str) -> None:
    lengths = {int(length): rate for length, rate in read("scoring")["sections"]["growth"]["length"][engine].items()}
    attention_s = (1 / lengths[8192] - 1 / lengths[128]) / (8192 - 128)
    linear_s = 1 / lengths[128] - 128 * attention_s
    for length in (512, 2048):
        assert 1 / (linear_s + attention_s * length) == pytest.approx(lengths[length], rel=0.1)
    small, large = 268_959_744, read("scoring")["sections"]["random"]["limit"]["flops_per_token"]
    attention_ratio = (24 * 14 * 64) / (30 * 9 * 64)  # layers, heads, head size
    predicted = 1 / (linear_s * large / small + attention_s * attention_ratio * 512)
    assert predicted == pytest.approx(read("scoring")["sections"]["random"]["engines"][engine], rel=0.1)


def test_the_stages_add_up_to_a_whole_run(model: ModuleType) -> None:
    run, core = read("scoring")["sections"]["end_to_end"], model.measured()
    beside_s = core.text_bytes / core.tokenize_bytes_per_s + 1 / core.select_tokens_per_s
    predicted = 1 / (1 / run["bare_tokens_per_s"] + beside_s)
    assert predicted == pytest.approx(run["all_stages_tokens_per_s"], rel=0.1)


@pytest.mark.parametrize(
    ("section", "key"),
    [("plan", "cut_s"), ("plan", "write_s"), ("plan", "plan_bytes"), ("merge", "merge_s"), ("publish", "scan_s"),
     ("publish", "publish_s"), ("publish", "manifest_bytes")],
)  # fmt: skip
def test_costs_grow_no_faster_than_shards(section: str, key: str) -> None:
    """A straight line through 10 and 1,000 shards holds at 10,000 and 100,000; a square would be 100 times above."""
    found = {int(shards): values[key] for shards, values in read("scale")[section].items()}
    assert {10, 1_000, 100_000} <= set(found)
    per_shard = (found[1_000] - found[10]) / 990
    for shards in (n for n in found if n > 1_000):
        assert found[shards] < 3 * (found[10] + per_shard * shards), f"{key} at {shards:,} shards"


def test_a_thousand_workers_cost_the_driver_what_ten_do() -> None:
    found = read("scale")["hand_out"]
    per_shard = {
        int(name.split()[0]): one["driver_s"] / max(20 * int(name.split()[0]), 2_000) for name, one in found.items()
    }
    assert per_shard[1_000] < 1.5 * max(per_shard[10], per_shard[100])


def test_what_grows_with_the_shards_fits_a_usual_machine() -> None:
    scale = read("scale")
    assert scale["publish"]["100000"]["peak_memory_bytes"] < 2e9
    assert scale["plan"]["100000"]["plan_bytes"] < 50e6
    assert scale["publish"]["100000"]["report_bytes"] < 2 * scale["publish"]["10"]["report_bytes"]
    assert scale["events"]["100000"]["largest_event_bytes"] < 1_500
    assert scale["events"]["100000"]["events"] < 2 * scale["events"]["10"]["events"]
