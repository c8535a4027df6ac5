"""The audit of the supply chain: it finds what it should find, and never passes what it could not look at."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
LoadScript = Callable[[Path], ModuleType]


@pytest.fixture(scope="module")
def audit(load_script: LoadScript) -> ModuleType:
    return load_script(HERE / "audit.py")


@pytest.fixture(scope="module")
def licences(load_script: LoadScript) -> ModuleType:
    return load_script(HERE / "licences.py")


def test_nothing_dangerous_is_in_the_code(audit: ModuleType) -> None:
    answer = audit.ask_bandit()
    assert answer.passed, answer.text


def test_dangerous_code_would_be_found(audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("curator", "service"):
        (tmp_path / folder).mkdir()
    (tmp_path / "curator" / "bad.py").write_text("import pickle\npickle.loads(b'')\n")
    (tmp_path / "pyproject.toml").write_text((audit.ROOT / "pyproject.toml").read_text())
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    answer = audit.ask_bandit()
    assert not answer.passed and "curator/bad.py:2: B301" in answer.text


def test_every_excuse_names_its_finding_and_has_a_reason(audit: ModuleType) -> None:
    for folder in ("curator", "service"):
        for path in (audit.ROOT / folder).rglob("*.py"):
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                if "nosec" in line:
                    _, _, excuse = line.partition("# nosec ")
                    name, _, reason = excuse.partition("  # ")
                    assert name[:1] == "B" and name[1:].isdigit() and len(reason) > 5, f"{path}:{number}"


def test_workflows_are_sound_where_there_are_any(audit: ModuleType) -> None:
    answer = audit.ask_zizmor()
    assert answer.passed, answer.text


def package(name: str, *faults: str, skipped: bool = False) -> dict[str, Any]:
    if skipped:
        return {"name": name, "skip_reason": "Dependency not found on PyPI and could not be audited"}
    vulns = [{"id": fault, "fix_versions": ["2.0"], "aliases": [], "description": ""} for fault in faults]
    return {"name": name, "version": "1.0", "vulns": vulns}


@pytest.mark.parametrize(
    ("packages", "passed", "said"),
    [
        ([package("a"), package("b")], True, "2 packages, no known vulnerability"),
        ([package("a", "GHSA-1", "GHSA-2"), package("b")], False, "a 1.0: GHSA-1, fixed in 2.0\na 1.0: GHSA-2"),
        ([package("a"), package("b", skipped=True)], False, "NOT AUDITED: 1 of 2 packages: b"),
        ([package("a", skipped=True)], False, "NOT AUDITED, nothing is known"),
        ([], False, "NOT AUDITED, nothing is known"),
    ],
)
def test_advisories(audit: ModuleType, packages: list[dict[str, Any]], passed: bool, said: str) -> None:
    answer = audit.judge_advisories(0, json.dumps({"dependencies": packages, "fixes": []}), "")
    assert answer.passed is passed and said in answer.text


def test_an_advisory_service_that_cannot_be_reached_is_no_clean_bill(audit: ModuleType) -> None:
    answer = audit.judge_advisories(1, "", "Traceback\nConnectionError: Failed to resolve 'advisories.example'")
    assert not answer.passed and "NOT AUDITED" in answer.text and "Failed to resolve" in answer.text


def test_all_licences_are_allowed(audit: ModuleType) -> None:
    answer = audit.ask_licences()
    assert answer.passed, answer.text


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True), ("mit", True), ("MIT OR GPL-3.0-only", True), ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0", False), ("MIT; Apache", True), ("MIT; GPL", False), ("UNKNOWN", False), ("", False),
        ("LIMITED", False), ("Apache AND MIT OR GPL", True), ("GPL OR AGPL AND MIT", False),
    ],
)  # fmt: skip
def test_licence_expressions(licences: ModuleType, licence: str, allowed: bool) -> None:
    assert licences.is_allowed(licence, ["MIT", "Apache"]) is allowed


def test_what_is_not_allowed_not_installed_or_excepted_in_vain_is_named(licences: ModuleType) -> None:
    installed = {"good": "MIT", "odd": "Odd-1.0", "bad": "GPL-3.0", "fine": "MIT"}
    policy = {"allow": ["MIT"], "exceptions": {"odd": "why", "Fi.ne": "why", "gone": "why", "fine": "why"}}
    problems = licences.find_problems(installed, {"good", "missing"}, policy)
    assert [line.split(":")[0] for line in problems] == ["bad", "fi-ne", "fine", "gone", "missing"]


def test_the_lock_file_names_what_is_installed(licences: ModuleType, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("# words\nA.B_c==1.0\nd[x]==2 ; python_version > '3'\ne @ https://example.com/e.whl\n\n")
    assert licences.locked_names(lock) == {"a-b-c", "d", "e"}
