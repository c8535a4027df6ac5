"""What the efficacy benchmark makes of its curves; the training itself is run by `make bench-efficacy`."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
arms, learning, one_run, plots, prepare, tables = (
    importlib.import_module(name) for name in ("arms", "learning", "one_run", "plots", "prepare", "tables")
)


def run_of(*losses: float, arm: str = "excess60") -> dict[str, Any]:
    curve = {str(10 * step): {"target": loss, "retain": 3.0 + step} for step, loss in enumerate(losses)}
    more = {"kept_share": 0.6, "good_share": 0.0, "training_seconds": 60.0, "scoring_seconds": 0.0}
    return {"arm": arm, "step_tokens": 100, "curve": curve, "dynamics": None, **more}


def summary_of(folder: Path, everything: dict[str, Any], selected: dict[str, Any]) -> dict[str, Any]:
    """What is said of one seed of "all" and of "excess60"."""
    setting = SimpleNamespace(path=folder.joinpath, describe=lambda: {"size": "smoke"})
    (folder / "runs").mkdir()
    for name, run in (("all", everything), ("excess60", selected)):
        (folder / "runs" / f"{name}-0.json").write_text(json.dumps(run))
    summary: dict[str, Any] = tables.summarise(setting, {}, ["all", "excess60"], seeds=1)
    return summary


def test_tokens_to_a_goal_lie_between_two_looks() -> None:
    run = run_of(5.0, 4.0, 3.0, 2.0)
    assert tables.tokens_to_reach(run, 3.5) == pytest.approx(1500)
    assert tables.tokens_to_reach(run, 2.0) == pytest.approx(3000)
    assert tables.tokens_to_reach(run, 1.9) is None


def test_a_goal_that_was_reached_before_training_says_nothing() -> None:
    assert tables.tokens_to_reach(run_of(5.0, 4.0), 5.0) is None


def test_a_rival_that_gets_worse_again_is_not_charged_for_it(tmp_path: Path) -> None:
    """Its best loss counts, 4.5 after 2,000 positions, though it ends at 4.8 after 4,000; the arm needs 500."""
    rival = run_of(5.0, 4.7, 4.5, 4.6, 4.8, arm="all")
    rows = summary_of(tmp_path, rival, run_of(5.0, 4.0, 3.5, 3.2, 3.0))["arms"]
    assert tables.best(rival) == (4.5, 2000)
    assert rows["excess60"]["times_fewer_tokens"] == [4.0]
    assert rows["excess60"]["gain_over_unselected"] == [1.8, None]
    assert rows["all"]["times_fewer_tokens"] == [1.0]


def test_times_of_some_seeds_are_listed_and_of_all_averaged() -> None:
    assert tables._show_times([2.0, 4.0], 2) == "3.0 ± 12.7"
    assert tables._show_times([2.0, 4.0], 3) == "2.0, 4.0 (2 of 3 seeds)"
    assert tables._show_times([], 3) == "-"


def test_a_rival_that_gains_nothing_is_no_goal(tmp_path: Path) -> None:
    rows = summary_of(tmp_path, run_of(5.0, 4.999, 5.1, arm="all"), run_of(5.0, 4.0, 3.5))["arms"]
    assert rows["excess60"]["times_fewer_tokens"] == []


def test_the_loss_that_a_rival_ends_with_is_met_before_the_start_on_the_way_or_never(tmp_path: Path) -> None:
    ends = {5.1: [0], 4.5: [500], 3.0: [None]}
    for number, (loss, positions) in enumerate(ends.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = summary_of(folder, run_of(5.0, 4.9, loss, arm="all"), run_of(5.0, 4.0, 3.5))["arms"]
        assert rows["excess60"]["positions_to_rivals_last"] == positions


def test_every_arm_is_compared_with_its_own_data() -> None:
    assert tables.rival_of("excess60_good") == tables.rival_of("random60_good") == "all_good"
    assert tables.rival_of("excess60") == tables.rival_of("online60") == "all"
    assert tables.control_of("excess10_good") == "random10_good"
    assert tables.control_of("online60") == tables.control_of("soft60") == "random60"
    assert tables.control_of("random60") is tables.control_of("all_good") is tables.control_of("excess80") is None


def test_the_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0]
    mean, half = tables.interval(values)
    assert mean == pytest.approx(7 / 3, abs=1e-4)
    assert half == pytest.approx(4.302652729911275 * np.std(values, ddof=1) / np.sqrt(3), abs=1e-3)
    assert tables.interval([1.5]) == [1.5, None]


def test_the_share_of_the_online_gain_is_paired_and_needs_a_gain() -> None:
    everything = [run_of(5.0, 4.0), run_of(5.0, 4.2)]
    online = [run_of(5.0, 3.0), run_of(5.0, 3.2)]
    own = [run_of(5.0, 3.1), run_of(5.0, 3.3)]
    assert tables.online_share(own, online, everything) == [0.9, 0.0]
    assert tables.online_share(own, everything, everything) is None


def test_scoring_two_models_costs_two_thirds_of_a_position(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, run_of(5.0, 4.5, 4.0, arm="all"), run_of(5.0, 4.0, 3.5))
    row = summary["arms"]["excess60"]
    assert row["times_fewer_tokens"] == [2.0]
    assert row["times_fewer_scoring_until_then"] == [1.2]
    assert row["times_fewer_scoring_all"] == [0.86]
    assert row["gain_over_all"] == [0.5, None]
    assert "| excess loss 60% | 3.5000 | 0.5000 | 0.5000 | - | 2.0 | 1.2; 0.9 |" in tables.as_markdown(summary)
    plots.draw(summary, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("<path") >= 6


def test_token_dynamics_follow_the_steps_at_which_was_looked() -> None:
    steps = np.array([0, 30, 80, 100])
    changes = np.array([-0.25, -0.19, 0.19, 0.25, 0.0])
    levels = np.array([2.0, 9.0, 9.0, 2.0, 1.0])
    history = {int(step): levels + changes * step / 100 for step in steps}
    assert one_run.dynamics(history) == {
        "high_to_low": 0.2, "low_to_high": 0.2, "high_to_high": 0.4, "low_to_low": 0.2,
    }  # fmt: skip


def test_the_learning_rate_rises_holds_and_falls_to_nothing() -> None:
    plan = learning.Plan(steps=100, rate=1.0, warmup=10, decay=0.5)
    factors = [plan.factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[49] == 1.0
    assert factors[75] == pytest.approx(0.5) and factors[100] == pytest.approx(0)
    assert learning.Plan(steps=100, rate=1.0, warmup=0).factor(99) == 1.0


def test_every_selecting_arm_has_its_controls() -> None:
    policies = {name: arm.policy for name, arm in arms.ARMS.items()}
    assert policies["random10_good"]["keep"] == policies["excess10_good"]["keep"]
    assert [arms.ARMS[name].scored_models for name in ("all", "random60", "online60", "excess60")] == [0, 0, 1, 2]


def test_a_folder_of_another_setting_is_refused(tmp_path: Path) -> None:
    record = tmp_path / "setting.json"
    prepare.check_same(record, {"steps": 300})
    prepare.check_same(record, {"steps": 300})
    with pytest.raises(SystemExit, match="another setting"):
        prepare.check_same(record, {"steps": 400})
