"""The Slurm example's script, without Slurm."""

import subprocess
import sys
from pathlib import Path

import pytest

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


_STEP = """#!/bin/bash
if [[ ${@: -1} == *"rm -rf"* ]]; then exit 0; fi
echo $$ > "$PIDS"; echo "raylet 1 ran out of memory"; exec sleep 60
"""
_CURATOR = """#!/bin/bash
until [[ -s $PIDS ]]; do sleep 0.05; done
exit "$(cat code)"
"""
_COMMANDS = {"srun": _STEP, "scancel": '#!/bin/bash\nkill -KILL "$(cat "$PIDS")"\n', "curator": _CURATOR}


@pytest.mark.parametrize("code", [0, 1, 2, 3, 137])
def test_what_ray_said_is_kept_when_a_run_fails(tmp_path: Path, code: int) -> None:
    """With stand-ins of Slurm's commands and of `curator`; test_slurm.py has the real ones."""
    (tmp_path / "bin").mkdir()
    for name, text in {**_COMMANDS, "python": "#!/bin/bash\necho 1\n"}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "code").write_text(str(code))
    environment = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PIDS": str(tmp_path / "pids"), "SLURM_JOB_ID": "77",
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NUM_NODES": "1", "CURATE_HEAD_IP": "127.0.0.1",
    }  # fmt: skip
    command = ["/bin/bash", str(_SCRIPT), "spec.yaml"]
    kept = tmp_path / "curate-77-ray.log"
    for attempt in (1, 2):  # the same job again: the first one's words stay
        (tmp_path / "pids").unlink(missing_ok=True)
        ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ran.returncode == code, ran.stdout + ran.stderr
        failed = code not in (0, 3)
        assert (kept.read_text() if kept.exists() else "") == "raylet 1 ran out of memory\n" * attempt * failed
        assert (f"Ray's own output is in {kept}" in ran.stdout) == failed
    assert not (tmp_path / ".curate-77").exists()
