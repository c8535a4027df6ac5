"""What the curves say: final losses, tokens saved, the share of the online gain, with confidence intervals over seeds.

"Tokens" are positions forwarded in training, kept or not. "Times fewer" compares those after which the rival, the same
data unselected, had the lowest loss of its whole curve with those after which an arm has that loss, too: a rival that
stops gaining half-way is not charged for the rest, and one that gains nothing is no goal. "With scoring" adds a third
of a position (a forward pass is a third of a training step's work) for each model that has to score a token: of what is
forwarded until then, and of the whole run. Where the rival gains nothing there is still the loss that it ends with, and
`positions_to_rivals_last` after which an arm has that: 0 if the rival ends above where both began. Tuning the
reference, which serves any number of models and corpora, is not in it. Intervals are over seeds, which change the order
of the data alone: base, reference and test documents are the same for all.
"""

import json
from typing import Any

import numpy as np
from arms import ARMS
from setting import Setting

_FORWARD = 1 / 3
_SURE_NATS = 0.002
"""What a rival has to gain at the least, beyond the interval over seeds, to be a goal."""

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t for 2, 3, ... 10 seeds; more are given the last, which is wider than theirs."""

Run = dict[str, Any]
Interval = list[float | None]
"""Mean, and half the width of its 95% confidence interval; null for a single seed."""


def summarise(setting: Setting, facts: dict[str, Any], names: list[str], seeds: int) -> dict[str, Any]:
    """All figures of the arms that were run; `names` has the rivals of all."""
    runs = {
        name: [json.loads(setting.path("runs", f"{name}-{seed}.json").read_text()) for seed in range(seeds)]
        for name in names
    }
    rows = {name: _row(found, runs["all"], runs[rival_of(name)]) for name, found in runs.items()}
    for name, row in rows.items():
        control = runs.get(control_of(name) or "")
        row["gain_over_random"] = None if control is None else _gain(control, runs[name])
        online = runs.get("online" + name.removeprefix("excess").removeprefix("rescored"))
        if name.startswith(("excess", "rescored")) and online is not None:
            row["share_of_online_gain"] = online_share(runs[name], online, runs["all"])
    return {
        "setting": setting.describe(), "prepared": facts, "seeds": seeds, "arms": rows,
        "dynamics": runs["all"][0]["dynamics"],
        "curves": {name: _mean_curves(found) for name, found in runs.items()},
    }  # fmt: skip


def rival_of(name: str) -> str:
    """The arm that trains on the same data without selection."""
    return "all_good" if ARMS[name].good_data else "all"


def control_of(name: str) -> str | None:
    """The arm that keeps the same share of the same data at random; None if there is none."""
    arm = ARMS[name]
    keep = arm.online or (arm.policy or {}).get("keep")
    found = [
        other
        for other, its in ARMS.items()
        if (its.policy or {}).get("kind") == "random" and its.policy["keep"] == keep and its.good_data == arm.good_data
    ]
    return found[0] if found and found[0] != name else None


def final(run: Run, part: str = "target") -> float:
    """Loss at the end of a run."""
    return float(run["curve"][max(run["curve"], key=int)][part])


def best(run: Run) -> tuple[float, int]:
    """The lowest target loss of a run, and the positions after which it was there first."""
    loss, step = min((looked["target"], int(step)) for step, looked in run["curve"].items())
    return float(loss), step * run["step_tokens"]


def tokens_to_reach(run: Run, goal: float) -> float | None:
    """Positions after which the target loss first is at the goal, between two looks on a straight line; None = never.

    Also None when it was there before the first step: then there is nothing to reach.
    """
    steps = sorted(map(int, run["curve"]))
    losses = [run["curve"][str(step)]["target"] for step in steps]
    if losses[0] <= goal:
        return None
    for index in range(1, len(steps)):
        before, loss = losses[index - 1 : index + 1]
        if loss <= goal:
            share = (before - goal) / (before - loss)
            return float(steps[index - 1] + share * (steps[index] - steps[index - 1])) * run["step_tokens"]
    return None


def interval(values: list[float]) -> Interval:
    """Mean and half width, by Student's t."""
    mean = round(float(np.mean(values)), 4)
    if len(values) < 2:
        return [mean, None]
    half = _STUDENT[min(len(values), len(_STUDENT) + 1) - 2] * np.std(values, ddof=1) / np.sqrt(len(values))
    return [mean, round(float(half), 4)]


def online_share(runs: list[Run], online: list[Run], everything: list[Run]) -> Interval | None:
    """Gain over all tokens as a share of the online gain, seed by seed; None unless online gains with every seed."""
    gains = [final(all_) - final(run) for all_, run in zip(everything, online, strict=True)]
    if min(gains) <= 0:
        return None
    own = [final(all_) - final(run) for all_, run in zip(everything, runs, strict=True)]
    return interval([gain / most for gain, most in zip(own, gains, strict=True)])


def _row(runs: list[Run], everything: list[Run], rivals: list[Run]) -> dict[str, Any]:
    arm = ARMS[runs[0]["arm"]]
    return {
        "label": arm.label, "target": interval([final(run) for run in runs]),
        "retain": interval([final(run, "retain") for run in runs]),
        "gain_over_start": interval([run["curve"]["0"]["target"] - final(run) for run in runs]),
        "gain_over_all": _gain(everything, runs), "gain_over_unselected": _gain(rivals, runs),
        "positions_to_rivals_last": [_positions_to(run, final(rival)) for run, rival in zip(runs, rivals, strict=True)],
        **_times_fewer(runs, rivals),
        "kept_share": round(float(np.mean([run["kept_share"] for run in runs])), 4),
        "good_share": round(float(np.mean([run["good_share"] for run in runs])), 4),
        "training_minutes": round(float(np.mean([run["training_seconds"] for run in runs])) / 60, 2),
        "scoring_minutes": round(float(np.mean([run["scoring_seconds"] for run in runs])) / 60, 2),
        "scored_models": arm.scored_models,
    }  # fmt: skip


def _gain(others: list[Run], runs: list[Run]) -> Interval:
    return interval([final(other) - final(run) for other, run in zip(others, runs, strict=True)])


def _positions_to(run: Run, goal: float) -> int | None:
    reached = 0.0 if run["curve"]["0"]["target"] <= goal else tokens_to_reach(run, goal)
    return None if reached is None else round(reached)


def _times_fewer(runs: list[Run], rivals: list[Run]) -> dict[str, list[float]]:
    """Factors of the seeds in which the arm reaches the goal; none at all unless the rivals surely gain something."""
    arm = ARMS[runs[0]["arm"]]
    found: dict[str, list[float]] = {"times_fewer_tokens": [], "times_fewer_scoring_until_then": [],
                                     "times_fewer_scoring_all": []}  # fmt: skip
    mean, half = interval([run["curve"]["0"]["target"] - best(run)[0] for run in rivals])
    if mean is None or mean - (half or 0.0) < _SURE_NATS:
        return found
    for run, (goal, needed) in zip(runs, map(best, rivals), strict=True):
        reached = tokens_to_reach(run, goal)
        if reached is None:
            continue
        scoring = arm.scored_models * _FORWARD / (arm.documents or 1.0)
        whole = max(map(int, run["curve"])) * run["step_tokens"]
        found["times_fewer_tokens"].append(round(needed / reached, 2))
        found["times_fewer_scoring_until_then"].append(round(needed / (reached * (1 + scoring)), 2))
        found["times_fewer_scoring_all"].append(round(needed / (reached + whole * scoring), 2))
    return found


def _mean_curves(runs: list[Run]) -> dict[str, Any]:
    steps = sorted(map(int, runs[0]["curve"]))
    curves: dict[str, Any] = {"tokens": [step * runs[0]["step_tokens"] for step in steps]}
    for part in ("target", "retain"):
        curves[part] = [round(float(np.mean([run["curve"][str(step)][part] for run in runs])), 4) for step in steps]
    return curves


def as_markdown(summary: dict[str, Any]) -> str:
    """The table of arms."""
    lines = [
        "| arm | target loss | gain over all tokens | over the same data unselected | over a random mask "
        "| times fewer tokens | scoring what is used until then; the whole run | of the online gain "
        "| good data in the loss | held-out mix |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in summary["arms"].values():
        times = [
            _show_times(row[f"times_fewer_{what}"], summary["seeds"])
            for what in ("tokens", "scoring_until_then", "scoring_all")
        ]
        cells = (
            row["label"], _show(row["target"], 4), _show(row["gain_over_all"], 4),
            _show(row["gain_over_unselected"], 4), _show(row["gain_over_random"], 4), times[0],
            "-" if times[1] == "-" else "; ".join(times[1:]), _show(row.get("share_of_online_gain"), 2),
            f"{row['good_share']:.0%}", _show(row["retain"], 3),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in (summary["dynamics"] or {}).items())
    return "\n".join([*lines, "", f"Tokens of held-out mix while training on all tokens: {shares}."])


def _show_times(found: list[float], seeds: int) -> str:
    """Mean and interval if the arm got there with every seed, else each value that there is."""
    if len(found) == seeds:
        return _show(interval(found), 1)
    return f"{', '.join(f'{value:.1f}' for value in found)} ({len(found)} of {seeds} seeds)" if found else "-"


def _show(pair: Interval | None, digits: int) -> str:
    if pair is None or pair[0] is None:
        return "-"
    return f"{pair[0]:.{digits}f}" + ("" if pair[1] is None else f" ± {pair[1]:.{digits}f}")
