"""The audit of what images hold beside requirements.lock: every lock is read, and nothing unknown is passed."""

import hashlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LoadScript = Callable[[Path], ModuleType]


@pytest.fixture
def audit(load_script: LoadScript) -> ModuleType:
    return load_script(HERE / "audit.py")


@pytest.fixture
def licences(load_script: LoadScript) -> ModuleType:
    return load_script(HERE / "licences.py")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A project with locks."""
    (tmp_path / "docker" / "locks").mkdir(parents=True)
    (tmp_path / "requirements.lock").write_text("a==1.0\nB.c==2.0\ntorch==2.13.0 ; python_version > '3'\n")
    return tmp_path


def pinned(text: str) -> set[tuple[str, str]]:
    """Names as PEP 503 compares them, and public versions."""
    found = re.findall(r"^([\w.-]+)==([^ +;\\\n]+)", text, re.MULTILINE)
    return {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found}


def test_advisories_are_asked_for_every_locked_package(audit: ModuleType, tmp_path: Path) -> None:
    locks = [ROOT / "requirements.lock", *(ROOT / "docker" / "locks").glob("*.txt")]
    assert len(locks) >= 6
    wanted = set().union(*(pinned(path.read_text()) for path in locks))
    asked = [package for path in audit.write_locks(tmp_path) for package in pinned(path.read_text())]
    assert set(asked) == wanted and len(asked) == len(wanted)
    assert ("dumb-init", "1.2.5.post1") in asked and "cyclonedx-bom" in {name for name, _ in asked}


def test_only_what_the_tests_do_not_install_is_looked_at_by_itself(licences: ModuleType, house: Path) -> None:
    locks = house / "docker" / "locks"
    (locks / "one.txt").write_text(
        "# Words\na==1.0 \\\n    --hash=sha256:00\nb-c[d,e]==2.1 \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\n"
    )
    (locks / "two.txt").write_text("torch==2.13.0+cpu \\\n    --hash=sha256:03\nNew_One==3 \\\n    --hash=sha256:04\n")
    found = licences.image_pins(house)
    assert set(found) == {("b-c", "2.1"), ("new-one", "3")}
    assert found["b-c", "2.1"].split() == ["b-c[d,e]==2.1", "\\", "--hash=sha256:01", "\\", "--hash=sha256:02"]


def make_wheel(folder: Path, name: str, licence: str) -> str:
    """A package of nothing but its metadata; gives its line of a lock."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{licence}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of the package index."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def test_licences_are_read_from_the_files_that_the_hashes_name(
    licences: ModuleType, shelf: Path, tmp_path: Path
) -> None:
    lines = [
        make_wheel(shelf, "yonder_good", "License-Expression: MIT\n"),
        make_wheel(shelf, "yonder_bad", "License-Expression: GPL-3.0-only\n"),
    ]
    licences.fetch(lines, tmp_path)
    found = licences.read_licences(tmp_path / "packages")
    assert found == {"yonder-good": "MIT", "yonder-bad": "GPL-3.0-only"}  # and nothing of what is installed
    (problem,) = licences.find_problems(found, set(found), {"allow": ["MIT"], "exceptions": {"x": "why"}}, {"x"})
    assert problem.startswith("yonder-bad: 'GPL-3.0-only' is not among")


def test_another_file_than_the_locked_one_is_refused(licences: ModuleType, shelf: Path, tmp_path: Path) -> None:
    line = make_wheel(shelf, "yonder", "License-Expression: MIT\n")
    make_wheel(shelf, "yonder", "License-Expression: GPL-3.0-only\n")
    with pytest.raises(OSError, match=r"(?i)hash|do not match"):
        licences.fetch([line], tmp_path)


def test_images_whose_packages_cannot_be_fetched_are_not_passed(audit: ModuleType, shelf: Path) -> None:
    answer = audit.ask_image_licences()
    assert not answer.passed and answer.text.startswith("NOT AUDITED, nothing is known of the licences of 1")
    assert "No matching distribution" in answer.text


def test_every_part_is_asked(audit: ModuleType) -> None:
    assert list(audit.PARTS) == ["vulnerabilities", "code", "workflows", "licences", "licences of images"]
