"""The licences of everything that requirements.lock installs, held against [tool.licences] of pyproject.toml.

    python tests/upkeep/licences.py        prints what is not allowed, and exits 1 if there is anything

pip-licenses reads them from the packages' own metadata. Of `A OR B` one must be allowed, of `A AND B` and of several
classifiers all. A package without usable metadata, or under another licence, needs an exception that says why.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def read_policy(path: Path = ROOT / "pyproject.toml") -> dict[str, Any]:
    """`allow`: licences as packages spell them; `exceptions`: package to reason."""
    policy: dict[str, Any] = tomllib.loads(path.read_text())["tool"]["licences"]
    return policy


def read_licences() -> dict[str, str]:
    """What each installed package says of itself, by its normalised name."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--with-system"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {normalise(package["Name"]): package["License"] for package in found}


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


def find_problems(licences: Mapping[str, str], locked: Iterable[str], policy: Mapping[str, Any]) -> list[str]:
    """One line for each package that is not allowed, and for each exception that is not needed any more."""
    exceptions = {normalise(name): reason for name, reason in policy["exceptions"].items()}
    problems = [f"{name}: in requirements.lock and not installed; run make setup" for name in locked - licences.keys()]
    for name, licence in licences.items():
        allowed = is_allowed(licence, policy["allow"])
        if not allowed and name not in exceptions:
            first = licence.strip().splitlines()[0][:80] if licence.strip() else "no licence"
            problems.append(f"{name}: {first!r} is not among [tool.licences] allow; add an exception with its reason")
        if allowed and name in exceptions:
            problems.append(f"{name}: {licence!r} is allowed; remove its exception")
    problems += [f"{name}: has an exception, and is not installed" for name in exceptions.keys() - licences.keys()]
    return sorted(problems)


def main() -> None:
    """Print and judge."""
    licences, locked = read_licences(), locked_names()
    licences = {name: licence for name, licence in licences.items() if name != "token-curator"}
    problems = find_problems(licences, locked, read_policy())
    print("\n".join(problems) or f"licences: {len(licences)} packages, all allowed or excepted with a reason")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
