"""The Slurm example's script, without Slurm."""

import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "curate.sbatch"


def test_the_script_is_clean() -> None:
    linter = Path(sys.executable).with_name("shellcheck")
    subprocess.run([linter, _SCRIPT], check=True)


def test_what_is_missing_is_said_before_anything_starts(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/bash", str(_SCRIPT), *arguments]
        return subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path, capture_output=True, text=True)

    nothing, elsewhere = run(), run("spec.yaml")
    assert nothing.returncode == 2 and "which spec?" in nothing.stderr
    assert elsewhere.returncode == 2 and "set PYTHON_ENV" in elsewhere.stderr
    assert not list(tmp_path.iterdir())
