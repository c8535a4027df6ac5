"""Store today's form of every record: `python tests/upkeep/store_forms.py tests/upkeep/stored/N`.

Run it once for a release in which some record's `schema_version` was raised, N being one more than the last folder's.
A real job, a real export and a real training write the files; only places and host names are replaced. Folders of
earlier releases are never written again: they are what the tests hold later versions against.
"""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROWS = [
    {"id": "a", "source": "news", "text": "The library keeps a list of every file that was ever written by it."},
    {"id": "b", "source": "news", "text": "A list of files is kept, and every file of the list is read again."},
    {"id": "c", "source": "notes", "text": "Zebras queue quietly; jackdaws love my big sphinx of quartz."},
    {"id": "d", "source": "notes", "text": ""},
    {
        "id": "e",
        "source": "notes",
        "text": "Returns a list of strings, one for each argument that it was given.",
    },
    {
        "id": "f",
        "source": "news",
        "text": "True if the string ends with the given suffix, false otherwise.",
    },
]
SPEC = {
    "name": "stored form",
    "corpus": {"kind": "jsonl", "uri": "corpus.jsonl", "id_field": "id"},
    "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
    "policy": {"kind": "excess_loss", "keep": 0.5},
    "output": {"uri": "out"},
    "shard_tokens": 100,
    "run": {"workers": 1},
}
TRAINING = {
    "base": "canary/model",
    "corpus": {"kind": "jsonl", "uri": "corpus.jsonl", "id_field": "id"},
    "output": "reference",
    "epochs": 1,
    "sequence_length": 64,
    "eval_every": 1,
}
JOB = "job_0000000000000000000000000a"


def main(target: Path) -> None:
    """Write all forms into a new folder."""
    if target.exists():
        sys.exit(f"{target} exists; the form of a release is never written again")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        make(folder)
        target.mkdir(parents=True)
        shutil.copytree(folder / "out", target / "dataset", ignore=shutil.ignore_patterns("report.html", "README.md"))
        (job,) = (folder / "data" / "jobs").iterdir()
        for source, kept in {
            job / "job.json": "job.json",
            job / "events.jsonl": "events.jsonl",
            folder / "export" / "export.json": "export.json",
            folder / "reference" / "training.json": "training.json",
            folder / "state.json": "state.json",
        }.items():
            shutil.copy(source, target / kept)
        for file in [*target.rglob("*.json"), *target.rglob("*.jsonl")]:
            text = file.read_text().replace(str(folder), "/data").replace(platform.node(), "host")
            file.write_text(text.replace(job.name, JOB).replace(sys.prefix, "/venv").replace(str(Path.cwd()), "/src"))


def make(folder: Path) -> None:
    """Run everything that writes a record."""
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    (folder / "training.yaml").write_text(yaml.safe_dump(TRAINING))
    curator = str(Path(sys.executable).with_name("curator"))
    for arguments, status in (
        (["run", "spec.yaml", "--data-dir", "data"], 3),
        (["export", "out", "--for", "trl", "--output", "export"], 0),
        (["check-trainer", "write", "canary"], 0),
        (["train-reference", "training.yaml"], 3),
    ):
        done = subprocess.run([curator, *arguments], cwd=folder)
        assert done.returncode == status, (arguments, done.returncode)
    import curator as library
    from curator.partial import write_partial_manifest

    data = library.load(str(folder / "out"), sequence_length=16, seed=1)
    next(iter(data))
    (folder / "state.json").write_text(json.dumps(data.state_dict()))
    (folder / "out" / "manifest.json").rename(folder / "aside.json")
    write_partial_manifest(str(folder / "out"))
    (folder / "aside.json").rename(folder / "out" / "manifest.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
