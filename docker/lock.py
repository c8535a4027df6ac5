#!/usr/bin/env python3
"""Write docker/locks/*.txt: what each image installs, pinned by version and by the hash of every file.

The versions are those of requirements.lock, with which the tests run; the hashes come from the package index. Needs
`uv` (`pip install uv`). The locks name no index, so that an image builds from any mirror, or from a folder of wheels.

    python docker/lock.py
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Set
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "docker" / "locks"
TRACING = ["opentelemetry-exporter-otlp-proto-http"]
INIT = ["dumb-init==1.2.5.post1"]  # process 1: it reaps what killed drivers leave behind
TOOLS = ["setuptools", "wheel", "cyclonedx-bom==7.5.0"]

CPU_TORCH = """\
# PyTorch's own build for CPUs, which has an index of its own: https://download.pytorch.org/whl/cpu
torch==2.13.0+cpu \\
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
"""

# What vLLM's image does not hold, or holds in a version that must equal that of the other machines of a run.
ALWAYS_OURS = {"ray", "pyarrow"}
VLLM = "vllm==0.32.0"


def compile_lock(
    requirements: list[str], extras: list[str], *, python: str = "3.11", within: list[str] | None = None
) -> dict[str, str]:
    """Resolve requirements within pins (those of requirements.lock); gives name -> `name==version` with its hashes."""
    with tempfile.TemporaryDirectory() as folder:
        source, pins, target = (Path(folder) / name for name in ("requirements.in", "pins.txt", "lock.txt"))
        source.write_text("".join(f"{line}\n" for line in requirements))
        pins.write_text("".join(f"{line}\n" for line in (tested_versions().values() if within is None else within)))
        command = [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--generate-hashes",
            "--no-header",
            "--no-annotate",
            "--no-config",
        ]
        command += [
            "--no-emit-index-url",
            "--python-version",
            python,
            "--python-platform",
            "x86_64-manylinux_2_28",
        ]
        command += ["--constraint", str(pins), "--output-file", str(target), str(source)]
        if extras:
            command += [str(ROOT / "pyproject.toml"), *(f"--extra={extra}" for extra in extras)]
        subprocess.run(command, check=True, cwd=ROOT)
        blocks = target.read_text().replace("\\\n    ", "\0").splitlines()
    return {line.split("==")[0].split("[")[0]: line.replace("\0", "\\\n    ") for line in blocks if "==" in line}


def tested_versions() -> dict[str, str]:
    """The lines of requirements.lock, by name."""
    lines = (ROOT / "requirements.lock").read_text().split()
    return {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line for line in lines}


def write(name: str, packages: dict[str, str], without: Set[str] = frozenset()) -> None:
    """Write one lock, in the order of names."""
    lines = [text for package, text in sorted(packages.items()) if package not in without]
    path = LOCKS / f"{name}.txt"
    path.write_text("# Written by docker/lock.py; not to be edited.\n" + "\n".join(lines) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


def main() -> None:
    """All locks."""
    if shutil.which("uv") is None:
        sys.exit("docker/lock.py needs uv; pip install uv")
    LOCKS.mkdir(exist_ok=True)
    write("tools", compile_lock(TOOLS, []))
    write("service", compile_lock(INIT + TRACING, ["service", "s3"]))
    worker = compile_lock(INIT + TRACING, ["transformers", "openai", "s3"])
    gpu_only = {name for name in worker if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    write("worker-cpu", worker, without={"torch", *gpu_only})
    (LOCKS / "torch-cpu.txt").write_text(CPU_TORCH)
    theirs = compile_lock([VLLM], [], python="3.12", within=[])
    pins = [line for name, line in tested_versions().items() if name not in theirs or name in ALWAYS_OURS]
    ours = compile_lock([*INIT, *TRACING, VLLM], ["vllm", "openai", "s3"], python="3.12", within=pins)
    write("worker-gpu", ours, without=set(theirs) - ALWAYS_OURS)


if __name__ == "__main__":
    main()
