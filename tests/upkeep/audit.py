"""What `make audit` asks: known vulnerabilities, dangerous code, workflows, licences. Exits 1 if any part failed.

A part that could not be asked has failed: nothing is known then, and that is said in so many words.
"""

import json
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LICENCES = Path(__file__).with_name("licences.py")


class Answer(NamedTuple):
    """Of one part."""

    passed: bool
    text: str


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A tool of this environment, in the project's folder."""
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def judge_advisories(status: int, output: str, errors: str) -> Answer:
    """What pip-audit said; it exits 0 also when it knows nothing of a package, or of any."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or [f"exit status {status}"])[-1]
        return Answer(False, f"NOT AUDITED, nothing is known of vulnerabilities: {last[:300]}")
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or '-'}"
        for package in packages
        for fault in package.get("vulns", [])
    ]
    if len(unknown) == len(packages):
        lines.append(
            f"NOT AUDITED, nothing is known of vulnerabilities: the package index gave advisories for none of "
            f"{len(packages)} packages; run this where the advisory service can be reached"
        )
    elif unknown:
        lines.append(f"NOT AUDITED: {len(unknown)} of {len(packages)} packages: {', '.join(unknown)}")
    return Answer(not lines, "\n".join(lines) or f"{len(packages)} packages, no known vulnerability")


def ask_advisories() -> Answer:
    """pip-audit over every lock file, those of the images too; packages are looked up, not installed."""
    with tempfile.TemporaryDirectory() as folder:
        locks = [option for path in write_locks(Path(folder)) for option in ("-r", str(path))]
        done = run("pip-audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json", *locks)
    return judge_advisories(done.returncode, done.stdout, done.stderr)


def write_locks(folder: Path) -> list[Path]:
    """Files that name each locked package once: requirements.lock, and what docker/locks adds to it, without hashes."""
    pins = runpy.run_path(str(LICENCES))["image_pins"](ROOT)
    files = [ROOT / "requirements.lock"]
    for number, (name, version) in enumerate(sorted(pins)):  # one each: two versions of a package may be locked
        files.append(folder / f"{number}.txt")
        files[-1].write_text(f"{name}=={version}\n")
    return files


def ask_bandit() -> Answer:
    """Dangerous code in what is shipped."""
    done = run("bandit", "-c", "pyproject.toml", "-r", "curator", "service", "-f", "json")
    report = json.loads(done.stdout[done.stdout.index("{") :])  # after a progress bar
    lines = [f"{at['filename']}:{at['line_number']}: {at['test_id']} {at['issue_text']}" for at in report["results"]]
    lines += [f"{fault['filename']}: {fault['reason']}" for fault in report["errors"]]
    files = len(report["metrics"]) - 1
    passed = not lines and files > 0 and done.returncode == 0
    return Answer(passed, "\n".join(lines) or f"{files} files, no finding")


def ask_zizmor() -> Answer:
    """Workflows of a forge, where there are any."""
    if not (ROOT / ".github" / "workflows").is_dir():
        return Answer(True, "there are no workflows; .ci/run is what CI calls")
    done = run("zizmor", "--offline", "--no-progress", ".github/workflows")
    return Answer(done.returncode == 0, done.stdout + done.stderr)


def ask_licences() -> Answer:
    """What is installed, against pyproject.toml."""
    return _ask_licences()


def ask_image_licences() -> Answer:
    """What the images hold beside it."""
    return _ask_licences("--images")


def _ask_licences(*options: str) -> Answer:
    done = subprocess.run([sys.executable, str(LICENCES), *options], capture_output=True, text=True)
    return Answer(done.returncode == 0, done.stdout.strip() or done.stderr.strip())


PARTS: dict[str, Callable[[], Answer]] = {
    "vulnerabilities": ask_advisories,
    "code": ask_bandit,
    "workflows": ask_zizmor,
    "licences": ask_licences,
    "licences of images": ask_image_licences,
}


def main() -> None:
    """Ask every part, whatever the others said."""
    failed = []
    for name, ask in PARTS.items():
        answer = ask()
        print(f"{name}: {'passed' if answer.passed else 'FAILED'}\n  " + answer.text.replace("\n", "\n  "), flush=True)
        failed += [] if answer.passed else [name]
    sys.exit(f"audit failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
