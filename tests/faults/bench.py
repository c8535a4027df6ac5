"""A small job, and how to ask `laboratory.py` what becomes of it under faults of files; loaded by `conftest.py`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STATE_BYTES = 560
ROWS, TEXT_CHARACTERS = 12, 400

Outcome = dict[str, Any]


def compile_faults(folder: Path) -> Path:
    """The library that stands between a job and its files."""
    library = folder / "filefaults.so"
    command = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, HERE / "filefaults.c", "-ldl"]
    subprocess.run([*map(str, command), "-lpthread"], check=True)
    return library


@dataclass(frozen=True)
class Bench:
    """A job of a few shards under a folder, one of whose rows is bad."""

    folder: Path
    library: Path

    @property
    def out(self) -> Path:
        return self.folder / "disk" / "made" / "out"

    @property
    def kept(self) -> Path:
        """A copy of what the undisturbed job has written: `out` is what the latest job left."""
        return self.folder / "kept"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def prepare(self, rows: list[dict[str, str]]) -> None:
        """Write corpus and spec; `disk` is what the faults watch."""
        (self.folder / "disk").mkdir(parents=True)
        corpus = self.folder / "disk" / "corpus.jsonl"
        lines = [json.dumps(row | {"text": row["text"][:TEXT_CHARACTERS]}).encode() for row in rows[:ROWS]]
        corpus.write_bytes(b"\n".join([*lines, b'{"text": "\xff"}']) + b"\n")
        spec = {
            "name": "laboratory",
            "corpus": {"kind": "jsonl", "uri": str(corpus), "id_field": "id"},
            "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
            "policy": {"kind": "excess_loss", "keep": 0.6},
            "output": {"uri": str(self.out)},
            "shard_tokens": 2000,
            "run": {"retries": 0},
        }
        (self.folder / "spec.json").write_text(json.dumps(spec))
        (self.folder / "state").write_bytes(bytes(STATE_BYTES))

    def environment(self, *, record: bool = False) -> dict[str, str]:
        """What makes a process and its children pass through the faults."""
        watched = {
            "LD_PRELOAD": str(self.library),
            "FILEFAULTS_ROOT": str(self.folder / "disk"),
            "FILEFAULTS_STATE": str(self.folder / "state"),
        }
        return os.environ | watched | ({"FILEFAULTS_LOG": str(self.log)} if record else {}) | {"OMP_NUM_THREADS": "1"}

    def ask(self, tasks: Iterable[dict[str, Any]], *, record: bool = False) -> list[Outcome]:
        """What became of each task."""
        asked = "".join(json.dumps(task) + "\n" for task in tasks)
        done = subprocess.run(
            [sys.executable, str(HERE / "laboratory.py"), str(self.folder)], input=asked, text=True,
            capture_output=True, env=self.environment(record=record),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    @cached_property
    def undisturbed(self) -> Outcome:
        """The outcome without a fault: the oracle of all others; its operations are recorded."""
        (outcome,) = self.ask([{"fault": "none", "at": 0}], record=True)
        assert outcome["first"]["ended"] == "done" and outcome["left"]["problems"] == [], outcome
        assert outcome["left"] == outcome["found"]
        shutil.copytree(self.out, self.kept)
        return outcome

    def complaints(self, outcome: Outcome) -> list[str]:
        """What is wrong with how a disturbed job ended, and with what the next run made of it."""
        found = [] if "first" not in outcome else self._judge_first(outcome)
        then, expected = outcome["then"], self.undisturbed["found"]
        if then["ended"] != "done":
            return [*found, f"the next run did not end well: {then}"]
        return found + differences(outcome["found"], expected, "after the next run")

    def _judge_first(self, outcome: Outcome) -> list[str]:
        first, fault = outcome["first"], outcome["fault"]
        if not outcome["seen"]["injected"]:
            return []
        if fault in ("kill", "torn"):
            return [] if first["ended"] == "killed" else [f"it should be dead: {first}"]
        if first["ended"] == "done":
            found = differences(outcome["left"], self.undisturbed["left"], "said to be done")
            return [line for line in found if "folders ['_staging']" not in line]  # empty: the next run removes it
        if first["ended"] != "refused":
            return [f"no clear error: {first}"]
        error = first["error"]
        lacks = [word for word in self._words(fault) if word not in error]
        return [f"the error does not say {lacks}: {error}"] if lacks else []

    def _words(self, fault: str) -> list[str]:
        """The place, why, and what to do; EIO has no remedy of ours but the disk's."""
        place = str(self.folder / "disk")
        return [place, "disk is full", "free some space"] if fault == "full" else [place, "Input/output error"]


def differences(found: dict[str, Any], expected: dict[str, Any], when: str) -> list[str]:
    """Files, folders and problems that are not as in the undisturbed run."""
    lines = [f"{when}: verify says {found['problems']}"] if found["problems"] else []
    files, wanted = found["files"], expected["files"]
    lines += [f"{when}: {name} is left over" for name in sorted(files.keys() - wanted.keys())]
    lines += [f"{when}: {name} is missing" for name in sorted(wanted.keys() - files.keys())]
    lines += [f"{when}: {name} differs" for name in sorted(wanted.keys() & files.keys()) if files[name] != wanted[name]]
    folders = sorted(set(found["folders"]) ^ set(expected["folders"]))
    return lines + ([f"{when}: folders {folders}"] if folders else [])
