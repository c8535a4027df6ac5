"""Do token weights help? Rho-1 in small, on real text (`make bench-efficacy`).

    python benchmarks/efficacy/run.py [--full] [--size 4m] [--seeds 3] [--processes 2]

A base is trained on a noisy mix; a reference is that base, tuned on the training set of a target (grade-school
mathematics). Then every arm goes on training the base on unseen documents of the mix, for
equally many positions, and is measured on the target's test set and on held-out mix. Everything is kept and found
again: the same command goes on where it was stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from arms import ARMS, dataset
from plots import draw
from prepare import prepare
from setting import ROOT, SIZES, Setting
from tables import as_markdown, rival_of, summarise

HERE = Path(__file__).parent
RESULTS = ROOT / "benchmarks" / "results"


def run_arm(setting: Setting, name: str, seed: int, threads: int) -> None:
    """One arm with one seed in a process of its own, unless it has been run."""
    found = setting.path("runs", f"{name}-{seed}.json")
    if found.exists():
        made_of = json.loads(found.read_text())["made_of"]
        if made_of != ARMS[name].describe():
            sys.exit(f"{found} is of an arm that was {made_of}; remove it")
        return
    command = [sys.executable, str(HERE / "one_run.py"), setting.size_name, str(setting.data), str(setting.folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    log = setting.path("logs", f"{name}-{seed}.log")
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        ended = subprocess.run([*command, name, str(seed)], env=environment, stdout=output, stderr=output, check=False)
    if ended.returncode:
        raise RuntimeError(f"{name}, seed {seed}, ended with {ended.returncode}; its log is {log}")
    print(f"{name}, seed {seed}: done", flush=True)


def main() -> None:
    """Prepare, run what has not been run, and write tables and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all arms")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="these alone")
    parser.add_argument("--size", choices=SIZES, default="4m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "efficacy")
    parser.add_argument("--processes", type=int, help="arms at once [default: one for each CPU core, one on a GPU]")
    options = parser.parse_args()
    setting = Setting(options.size, options.data.resolve(), options.folder.resolve() / options.size)
    on_cpu = setting.device.type == "cpu"
    cores = len(os.sched_getaffinity(0))
    processes = options.processes or (cores if on_cpu else 1)
    facts, began = prepare(setting), time.monotonic()
    chosen = [
        name for name, arm in ARMS.items() if options.full or (name in options.arms if options.arms else arm.default)
    ]
    chosen = list(dict.fromkeys(["all", *map(rival_of, chosen), *chosen]))  # what others are compared with comes first
    for name in chosen:
        dataset(setting, name)
    with ThreadPoolExecutor(processes) as pool:
        waiting = [
            pool.submit(run_arm, setting, name, seed, max(1, cores // processes))
            for seed in range(options.seeds)
            for name in chosen
        ]
        for done in waiting:
            done.result()
    summary = summarise(setting, facts, chosen, options.seeds)
    summary["minutes_of_this_run"] = round((time.monotonic() - began) / 60, 1)
    results = RESULTS / f"efficacy-{options.size}.json"
    results.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    draw(summary, ROOT / "docs" / f"efficacy-{options.size}.svg")
    print(as_markdown(summary), flush=True)


if __name__ == "__main__":
    main()
