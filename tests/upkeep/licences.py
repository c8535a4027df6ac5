"""The licences of all locked packages, held against [tool.licences] of pyproject.toml.

    python tests/upkeep/licences.py            those that requirements.lock installs here
    python tests/upkeep/licences.py --images   those that docker/locks names beside them, fetched to read their metadata

Prints what is not allowed, and exits 1 if there is anything, or if a package could not be fetched.

pip-licenses reads them from the packages' own metadata. Of `A OR B` one must be allowed, of `A AND B` and of several
classifiers all. A package without usable metadata, or under another licence, needs an exception that says why.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def read_policy(path: Path = ROOT / "pyproject.toml") -> dict[str, Any]:
    """`allow`: licences as packages spell them; `exceptions`: package to reason."""
    policy: dict[str, Any] = tomllib.loads(path.read_text())["tool"]["licences"]
    return policy


def read_licences(folder: Path | None = None) -> dict[str, str]:
    """What each installed package says of itself, by its normalised name; of packages in a folder, those alone."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--with-system"]
    environment = os.environ | ({"PYTHONPATH": str(folder)} if folder else {})
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    found = {(normalise(package["Name"]), package["Version"]): package["License"] for package in json.loads(told)}
    if folder:
        there = {(normalise(each.name), each.version) for each in metadata.distributions(path=[str(folder)])}
        found = {package: licence for package, licence in found.items() if package in there}
    return {name: licence for (name, _), licence in found.items()}


def image_pins(root: Path | None = None) -> dict[tuple[str, str], str]:
    """What docker/locks names beside requirements.lock: (name, public version) to the lines with version and hashes.

    A build of its own (2.13.0+cpu) has the advisories and the licence of its public version.
    """
    root = root or ROOT
    tested = {
        (normalise(re.split(r"[=\[]", line)[0]), line.partition("==")[2].split(";")[0].strip())
        for line in (root / "requirements.lock").read_text().splitlines()
    }
    found = {}
    for path in sorted((root / "docker" / "locks").glob("*.txt")):
        for block in re.split(r"\n(?=\S)", path.read_text()):
            if pin := re.match(r"([\w.-]+)(?:\[[\w,-]*\])?==([^\s;+]+)", block):
                found[normalise(pin[1]), pin[2]] = block.strip()
    return {package: block for package, block in found.items() if package not in tested}


def fetch(blocks: Iterable[str], folder: Path) -> None:
    """Unpack packages into a folder: the files that their hashes name, and nothing that they need.

    Raises:
        OSError: pip could not have one of them; what it said.
    """
    needed = folder / "needed.txt"
    needed.write_text("\n".join(blocks) + "\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(folder / "packages"), "--requirement", str(needed)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise OSError(said[-1][:500])


def locked_names(path: Path = ROOT / "requirements.lock") -> set[str]:
    """The packages of the lock file."""
    lines = (line.split(" #")[0].split(";")[0].strip() for line in path.read_text().splitlines())
    return {normalise(re.split(r"[=\[ @]", line)[0]) for line in lines if line and not line.startswith("#")}


def normalise(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_allowed(licence: str, allow: Iterable[str]) -> bool:
    """Whether an SPDX expression without brackets, or a list of classifiers, is allowed."""
    known = {name.casefold() for name in allow}
    parts = licence.split(";") if ";" in licence else [licence]
    return all(
        any(all(one.strip().casefold() in known for one in choice.split(" AND ")) for choice in part.split(" OR "))
        for part in parts
    )


def find_problems(
    licences: Mapping[str, str], locked: Iterable[str], policy: Mapping[str, Any], elsewhere: Collection[str] = ()
) -> list[str]:
    """One line for each package that is not allowed, and for each exception that is not needed any more.

    Args:
        licences: what packages say of themselves.
        locked: packages that must be among them.
        policy: what is allowed.
        elsewhere: packages that are looked at by themselves, whose exceptions are not in vain.
    """
    exceptions = {normalise(name): reason for name, reason in policy["exceptions"].items()}
    problems = [f"{name}: is locked and not installed; run make setup" for name in locked - licences.keys()]
    for name, licence in licences.items():
        allowed = is_allowed(licence, policy["allow"])
        if not allowed and name not in exceptions:
            first = licence.strip().splitlines()[0][:80] if licence.strip() else "no licence"
            problems.append(f"{name}: {first!r} is not among [tool.licences] allow; add an exception with its reason")
        if allowed and name in exceptions:
            problems.append(f"{name}: {licence!r} is allowed; remove its exception")
    problems += [
        f"{name}: has an exception, and is not installed"
        for name in exceptions.keys() - licences.keys() - set(elsewhere)
    ]
    return sorted(problems)


def main() -> None:
    """Print and judge."""
    policy, pins = read_policy(), image_pins()
    if "--images" in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                fetch(pins.values(), Path(folder))
            except OSError as error:
                sys.exit(
                    f"NOT AUDITED, nothing is known of the licences of {len(pins)} packages of the images: {error}"
                )
            licences = read_licences(Path(folder) / "packages")
        problems = find_problems(licences, {name for name, _ in pins}, policy, policy["exceptions"])
    else:
        licences = {name: licence for name, licence in read_licences().items() if name != "token-curator"}
        problems = find_problems(licences, locked_names(), policy, {name for name, _ in pins})
    print("\n".join(problems) or f"licences: {len(licences)} packages, all allowed or excepted with a reason")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
