"""One arm with one seed, in a process of its own: `python one_run.py SIZE DATA FOLDER ARM SEED`."""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import ARMS, sequences
from learning import Batch, Plan, batched, load_model, measure, token_losses, train
from prepare import looked_at, score
from setting import Setting

_LOOKS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


def run(setting: Setting, name: str, seed: int) -> dict[str, Any]:
    """Train one arm; the curve has the mean losses on target and retain set by step."""
    torch.manual_seed(seed)
    arm, size = ARMS[name], setting.size
    model = load_model(setting.path("base"), setting)
    documents = looked_at(setting)
    documents["retain"] = documents["retain"][: size.guard_documents]
    curve: dict[int, dict[str, float]] = {}
    history: dict[int, np.ndarray] = {}
    plan_looks = frozenset(max(1, round(size.steps * share)) for share in _LOOKS)
    tally = {"positions": 0, "weight": 0.0, "good_weight": 0.0, "kept": 0}
    rows = size.step_tokens // size.sequence_length
    scoring = 0.0

    def look(step: int) -> None:
        curve[step] = {part: measure(model, found, setting) for part, found in documents.items()}
        if name == "all" and (step == 0 or step >= size.steps * 0.1):
            history[step] = token_losses(model, documents["retain"], setting)
        print(f"{name}/{seed}: step {step}, target {curve[step]['target']:.4f}", flush=True)

    def stream(scored: str, skipped: int = 0) -> Iterator[Batch]:
        for batch in itertools.islice(batched(sequences(setting, name, seed, scored), rows), skipped, None):
            weights = batch["token_weights"].double()
            tally["positions"] += weights.numel()
            tally["kept"] += int((weights > 0).sum())
            tally["weight"] += float(weights.sum())
            tally["good_weight"] += float(weights[batch["from_good"]].sum())
            yield batch

    def score_again() -> Iterator[Batch]:
        nonlocal scoring
        asked = time.perf_counter()
        scored = _score_again(setting, model, name, seed)
        scoring = time.perf_counter() - asked
        return stream(scored, size.steps // 2)  # on with the documents that come next

    plan = Plan(
        size.steps, size.rate, warmup=10, look=look, look_at=plan_looks,
        halfway=score_again if arm.rescored else None,
    )  # fmt: skip
    training = train(model, stream("scored"), plan, setting, arm.loss())
    return {
        "arm": name, "made_of": arm.describe(), "setting": setting.describe(), "seed": seed,
        "step_tokens": size.step_tokens, "curve": curve, "training_seconds": training, "scoring_seconds": scoring,
        "kept_share": arm.online or tally["kept"] / tally["positions"],
        "good_share": tally["good_weight"] / tally["weight"],
        "dynamics": dynamics(history) if history else None,
    }  # fmt: skip


def _score_again(setting: Setting, model: Any, name: str, seed: int) -> str:
    output = f"rescored-{name}-{seed}"
    middle = setting.path(f"middle-{name}-{seed}")
    model.save_pretrained(middle)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (middle / file).write_bytes(setting.path("base", file).read_bytes())
    score(setting, middle.name, output)
    return output


def dynamics(history: dict[int, np.ndarray]) -> dict[str, float]:
    """Shares of tokens by how their loss goes over training (Rho-1, app. B.1): a line through each, |change| > 0.2."""
    losses = np.stack(list(history.values()))
    times = np.array(list(history), float)
    times = (times - times.mean()) / (times.max() - times.min())
    change = (times @ losses) / (times @ times)
    high = losses[-1] > losses[-1].mean()
    shares = {"high_to_low": change < -0.2, "low_to_high": change > 0.2}
    level = ~(shares["high_to_low"] | shares["low_to_high"])
    shares |= {"high_to_high": level & high, "low_to_low": level & ~high}
    return {name: round(float(members.mean()), 4) for name, members in shares.items()}


def main() -> None:
    """Run one, and write what came out only when it is complete."""
    size, data, folder, name, seed = sys.argv[1:]
    setting = Setting(size, Path(data), Path(folder))
    result = run(setting, name, int(seed))
    target = setting.path("runs", f"{name}-{seed}.json")
    target.parent.mkdir(exist_ok=True)
    staged = target.with_suffix(".part")
    staged.write_text(json.dumps(result))
    staged.rename(target)


if __name__ == "__main__":
    main()
