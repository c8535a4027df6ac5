"""Run one job in this process: start an engine, time workloads, record scores; write `result.json` as it goes.

    python benchmarks/engines/child.py FOLDER

FOLDER holds `job.json` and, named in it, the documents as token ids. Memory is this process's own: its peak while
starting, and the peak afterwards while scoring.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # `engines`, not its modules, which have the names of libraries

Documents = list[np.ndarray]
WARM_TOKENS = 256


def read_documents(folder: Path, name: str) -> Documents:
    """Token ids, int32, of one workload."""
    with np.load(folder / f"{name}.npz") as stored:
        return np.split(stored["ids"], stored["offsets"][1:-1])


def peak_bytes() -> int:
    """Largest resident size since the last `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    """Count the peak anew; where the system does not allow it, the peak is that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"peak memory includes the start: {error}", file=sys.stderr)


def time_workload(variants: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each repetition; the variants take turns, so that what else the machine does strikes them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def wait_for_others(folder: Path) -> None:
    """Say that this worker is ready, and start when all are."""
    (folder / "ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)


def record(variants: Callable[..., Any], documents: Documents, alone: bool) -> np.ndarray:
    """Log-probs of all documents end to end, by the engine's first variant; `alone` = one call a document."""
    groups = [[ids] for ids in documents] if alone else [documents]
    scores = [one for group in groups for one in next(iter(variants(group).values()))()]
    return np.concatenate(scores)


def main() -> None:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    start = importlib.import_module(f"engines.{job['engine']}").start
    result: dict[str, Any] = {"timings": {}, "tokens": {}, "recorded": {}}

    def save() -> None:
        staged = folder / "result.json.tmp"
        staged.write_text(json.dumps(result | {"scoring_peak_bytes": peak_bytes()}))
        staged.rename(folder / "result.json")

    variants = start(job)
    if variants is None:  # nothing that scores: what was measured lies in the job
        result["measured"] = job["measured"]
        save()
        return
    workloads = {name: read_documents(Path(job["documents"]), name) for name in [*job["time"], *job["record"]]}
    for run in variants([next(iter(workloads.values()))[0][:WARM_TOKENS]]).values():
        run()
    import torch

    result |= {"start_s": time.time() - job["launched"], "start_peak_bytes": peak_bytes()}
    result["threads"] = torch.get_num_threads()
    forget_peak()
    if job["wait"]:
        wait_for_others(folder)
    for name, repetitions in job["time"].items():
        result["tokens"][name] = sum(map(len, workloads[name]))
        result["timings"][name] = time_workload(variants(workloads[name]), repetitions)
        save()
    for name in job["record"]:
        np.save(folder / f"{name}.npy", record(variants, workloads[name], name in job["alone"]))
        result["recorded"][name] = str(folder / f"{name}.npy")
        save()


if __name__ == "__main__":
    main()
