"""What the driver costs, from 10 to 100,000 shards: planning, handing out, merging, publishing, resuming.

    python benchmarks/scale.py [--shards 10,100,1000] [--sections plan,merge,...] [--keep FOLDER]

`make bench-scale`. The driver's own code runs over jobs of which all files are there but were never computed (see
`scale_job`), and over workers that only wait (`scale_cluster`). Each measurement has a process of its own, for its
memory. Costs are CPU time of that process with all its threads, as wall time says little on a busy machine. Results are
written after every one; numbers of shards that a run leaves out keep what an earlier one measured.
"""

import argparse
import json
import os
import pickle
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import scale_job

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "scale.json"
SHARDS = (10, 100, 1_000, 10_000)  # 100,000 take 25 minutes more, and 3 GB of disk
WORKERS = (10, 100, 1_000)
LIMIT_S = 1_500.0


@dataclass(frozen=True)
class Case:
    """One measurement: the template's folder, a folder of its own, and how many shards there are."""

    template: Path
    folder: Path
    shards: int
    workers: int = 0


def plan(case: Case) -> dict[str, float]:
    """Cut shards, freeze the plan, read it back."""
    from curator.frozen import write_plan
    from curator.plan import read_plan
    from curator.spec import digest

    template, _ = scale_job.open_template(case.template)
    cut, (sources, shards) = cpu(lambda: scale_job.cut(template.plan, case.shards))
    made = template.plan.model_copy(update={"sources": tuple(sources), "shards": tuple(shards)})
    keyed, _ = cpu(lambda: digest([part.model_dump(mode="json") for part in (*sources, *shards)]))
    written, _ = cpu(lambda: write_plan(str(case.folder), made))
    read, back = cpu(lambda: read_plan(str(case.folder)))
    assert back == made, "the plan changed on its way to the disk and back"
    packed = pickle.dumps(made)
    opened, _ = cpu(lambda: pickle.loads(packed))
    return {
        "cut_s": cut + keyed, "write_s": written, "read_s": read, "open_in_worker_s": opened,
        "plan_bytes": (case.folder / "plan.json").stat().st_size,
    }  # fmt: skip


def merge(case: Case) -> dict[str, float]:
    """Both passes of calibrating, as the driver sees them: real counts arrive, unpickled one by one."""
    from curator.progress import Silent
    from curator.stages.calibrate import calibrate
    from curator.stages.pieces import ShardFiles

    template, _ = scale_job.open_template(case.template)
    packed = [pickle.dumps(one) for one in pickle.loads((case.template / "counted.pickle").read_bytes())]

    class Answers:
        def map(self, stage: Any, tasks: Sequence[Any], on_result: Callable[[Any], None], **_: Any) -> list[Any]:
            for _ in tasks:
                on_result(pickle.loads(packed[stage.boundaries is not None]))
            return []

    _, shards = scale_job.cut(template.plan, case.shards)
    files = ShardFiles(template.tokens, {})
    spent, _ = cpu(lambda: calibrate(Answers(), files, template.spec.policy, shards, Silent()))  # type: ignore[arg-type]
    return {"merge_s": spent, "answer_bytes": float(sum(map(len, packed)))}


def hand_out(case: Case) -> dict[str, float]:
    """Every shard to one of many workers, and its receipt back."""
    from scale_cluster import hand_out as measure

    template, _ = scale_job.open_template(case.template)
    _, shards = scale_job.cut(template.plan, case.shards)
    return measure(shards, case.workers, case.workers / 200, scale_job.score_receipt(template))


def publish(case: Case) -> dict[str, float]:
    """Make the job, if that was not done before; see what a resumed run sees; then make it a dataset."""
    from curator.pipeline import _shards
    from curator.plan import Plan, read_plan
    from curator.publish import publish_dataset

    template, calibration = scale_job.open_template(case.template)
    job = scale_job.open_or_make_job(case.folder, template, case.shards)

    def scan() -> int:
        frozen = read_plan(str(case.folder))
        assert isinstance(frozen, Plan)
        folders = [job.tokens, *(job.scores(name) for name in job.plan.models), job.curated]
        return sum(
            len(_shards(s)) for f in folders for done in [f.published()] for s in job.shards() if s.number in done
        )

    scanned, found = cpu(scan)
    assert found == 4 * case.shards, f"{found} shards found"
    started_s = time.monotonic()
    spent, manifest = cpu(lambda: publish_dataset(job, calibration))
    assert manifest.totals.tokens == case.shards * scale_job.score_receipt(template).tokens, "tokens were lost"
    return {
        "scan_s": scanned, "publish_s": spent, "publish_wall_s": time.monotonic() - started_s,
        "rows": float(manifest.totals.rows), "manifest_bytes": (case.folder / "manifest.json").stat().st_size,
        "report_bytes": (case.folder / "report.html").stat().st_size,
    }  # fmt: skip


def events(case: Case) -> dict[str, float]:
    """What one progress event of a running job weighs; there is one a second, whatever the number of shards."""
    from curator.event_reporter import EventReporter
    from curator.progress import Silent

    written: list[int] = []
    reporter = EventReporter(lambda kind, data: written.append(len(json.dumps([kind, data])) + 120), Silent())
    for stage in ("tokenize", "score reference", "score base", "calibrate", "calibrate ties", "select"):
        reporter.start(stage, case.shards, case.shards * scale_job.SHARD_TOKENS)
        spent, _ = cpu(lambda: [reporter.update(i, i * scale_job.SHARD_TOKENS, 1000) for i in range(case.shards)])
        reporter.finish()
    return {"update_s": spent, "events": float(len(written)), "largest_event_bytes": float(max(written))}


def stages(case: Case) -> dict[str, float]:
    """What one core does of the stages beside scoring, and of planning's pass over the corpus."""
    from scale_stages import measure

    return measure(case.template, case.folder)


SECTIONS: dict[str, Callable[[Case], dict[str, float]]] = {
    "plan": plan, "merge": merge, "hand_out": hand_out, "publish": publish, "events": events, "stages": stages,
}  # fmt: skip


def cpu(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, all its threads, and what came out."""
    before = time.process_time()
    result = call()
    return time.process_time() - before, result


def measure_here(section: str, case: Case) -> None:
    """Measure in this process and print the result as a line of JSON."""
    before = peak_bytes()
    found = SECTIONS[section](case)
    print(json.dumps(found | {"memory_before_bytes": before, "peak_memory_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_apart(section: str, template: Path, shards: int, workers: int) -> dict[str, Any]:
    """Measure in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-", dir=template.parent) as folder:
        command = [sys.executable, __file__, "--measure", section, "--template", str(template), "--folder", folder]
        command += ["--shards", str(shards), "--workers", str(workers)]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_results(section: str, key: str, found: dict[str, Any], template: Path) -> None:
    """Put one measurement into the file, with where and when."""
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    job, _ = scale_job.open_template(template)
    receipt = scale_job.score_receipt(job)
    stored["about"] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "shard_tokens": receipt.tokens, "shard_rows": receipt.rows, "bytes": scale_job.sizes(job),
        "answer": "CPU seconds of the driver's process; bytes of memory are the process' peak",
    }  # fmt: skip
    now = datetime.now(UTC).isoformat(timespec="seconds")
    stored.setdefault(section, {})[key] = found | {"at": now, "load": round(os.getloadavg()[0], 1)}
    staged = RESULTS.with_suffix(".tmp")
    staged.write_text(json.dumps(stored, indent=1) + "\n")
    staged.rename(RESULTS)


def cases(sections: Sequence[str], shards: Sequence[int], workers: Sequence[int]) -> list[tuple[str, str, int, int]]:
    """Section, name of the result, shards and workers of every measurement."""
    listed = []
    for section in sections:
        if section == "hand_out":
            listed += [(section, f"{n} workers", max(20 * n, 2_000), n) for n in workers]
        elif section == "stages":
            listed.append((section, "one core", 1, 0))
        else:
            listed += [(section, str(n), n, 0) for n in shards]
    return listed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = [lambda text: tuple(map(int, text.split(","))), lambda text: tuple(text.split(","))]
    parser.add_argument("--shards", type=whole[0], default=SHARDS)
    parser.add_argument("--workers", type=whole[0], default=WORKERS, help="of hand_out")
    parser.add_argument("--sections", type=whole[1], default=tuple(SECTIONS), help=",".join(SECTIONS))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--template", type=Path, help="folder of the real shard; made, and kept, if it is not there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        case = Case(arguments.template, arguments.folder, arguments.shards[0], arguments.workers[0])
        measure_here(arguments.measure, case)
        return
    folder = arguments.template or Path(tempfile.mkdtemp(prefix="bench-scale-")) / "template"
    try:
        if not folder.exists():
            scale_job.make_template(folder, arguments.data)
        for section, key, shards, workers in cases(arguments.sections, arguments.shards, arguments.workers):
            found = measure_apart(section, folder, shards, workers)
            costs = {name: value / shards * 1e3 for name, value in found.items() if name.endswith("_s")}
            shown = ", ".join(f"{name} {value:.3f}" for name, value in costs.items())
            print(f"{section:<9} {key:>12}: {shown} ms a shard; {found['peak_memory_bytes'] / 1e6:.0f} MB", flush=True)
            write_results(section, key, found, folder)
    finally:
        if arguments.template is None:
            shutil.rmtree(folder.parent)


if __name__ == "__main__":
    main()
