"""CONTRIBUTING.md keeps its word: its five plug-ins, one file and one line each, in a copy of the package.

Every python block that names a file is written to it, every diff block is applied; then the house's own checks run over
the copy, and one job uses all five, against a calculation of its own.
"""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.alone]

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COPIED = ("curator", "service", "tests", "examples", "pyproject.toml")
ROWS, CHARACTERS = 60, 4000  # of these none has more than 8,192 tokens, so that none is scored in windows
RATIO, TARGET, KEEP = 0.995, 6.5, 0.4


def apply_diff(root: Path, block: str) -> None:
    """Each hunk's lines before must be there once, one after the other, and become its lines after."""
    name, _, body = block.partition("\n")
    text = (root / name).read_text()
    for hunk in body.split("@@\n"):
        lines = hunk.splitlines()
        before = "\n".join(line[1:] for line in lines if line[:1] in " -")
        after = "\n".join(line[1:] for line in lines if line[:1] in " +")
        assert text.count(before) == 1, f"{name}: {before!r} is there {text.count(before)} times"
        text = text.replace(before, after)
    (root / name).write_text(text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the worked examples in it."""
    root = tmp_path_factory.mktemp("contributed")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "stored"))
        else:
            shutil.copy(ROOT / name, root / name)
    added = []
    for language, block in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        if language == "diff":
            apply_diff(root, block)
        elif language == "python":
            header, _, code = block.partition("\n")
            path = root / header.removeprefix("# ")
            assert not path.exists() and path.suffix == ".py", header
            path.write_text(code)
            added.append(path.relative_to(root).as_posix())
    plugins = [name for name in added if name.startswith("curator/")]
    assert [name.split("/")[1] for name in plugins] == ["corpora", "scorers", "policies", "outputs", "exports"]
    return root


def call(root: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a module of this Python on the copy."""
    data = os.environ.get("CURATOR_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CURATOR_TEST_DATA": data}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, env=environment, capture_output=True, text=True, timeout=400
    )
    if check:
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def curator(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return call(root, "curator", *arguments, check=check)


@pytest.fixture(scope="module", autouse=True)
def command(copy: Path) -> None:
    """`python -m curator`, as the installed command belongs to the package that is tested otherwise."""
    (copy / "curator" / "__main__.py").write_text('"""The command."""\n\nfrom curator.cli import main\n\nmain()\n')


def test_the_examples_are_in_style(copy: Path) -> None:
    call(copy, "ruff", "check", "--no-cache", "curator", "tests/exports/test_token_lines.py")
    call(copy, "ruff", "format", "--no-cache", "--check", "curator", "tests/exports/test_token_lines.py")


def test_the_house_rules_and_the_contracts_hold(copy: Path) -> None:
    chosen = "csv or nearby or MiddleLoss or every_kind or token_lines or TokenLines or test_architecture or every_form"
    chosen += " or test_parquet_output"
    done = call(
        copy, "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", chosen, "tests/test_architecture.py",
        "tests/corpora/test_corpus_contract.py", "tests/scorers/test_contract.py", "tests/outputs",
        "tests/policies/test_policy_contract.py", "tests/exports/test_contract.py", "-rA",
    )  # fmt: skip
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED")]
    for word in ("csv", "nearby", "MiddleLoss", "token_lines", "test_architecture", "test_parquet_output"):
        assert sum(word in line for line in passed) >= 5, word


def test_validation_and_schema_know_them(copy: Path) -> None:
    schema = json.loads(curator(copy, "schema").stdout)
    text = json.dumps(schema)
    for kind in ("csv", "nearby", "middle_loss", "tokens_only"):
        assert f'"const": "{kind}"' in text
    assert "nearest to a target" in text
    (copy / "bad.yaml").write_text("name: x\ncorpus: {kind: tsv}\npolicy: {kind: middle}\noutput: {kind: nothing}\n")
    done = curator(copy, "plan", "bad.yaml", check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    for name in ("'csv'", "'middle_loss'", "'tokens_only'"):
        assert name in said
    assert "'token_lines'" in curator(copy, "export", "x", "--for", "nothing", "--output", "y", check=False).stderr


@pytest.fixture(scope="module")
def texts(mix_rows: list[dict[str, str]], copy: Path) -> dict[str, str]:
    chosen = [row for row in mix_rows if len(row["text"]) < CHARACTERS][:ROWS]
    with (copy / "corpus.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([row["id"], row["text"]] for row in chosen)
    return {row["id"]: row["text"] for row in chosen}


def test_what_named_no_kind_of_output_is_parquet_as_before(copy: Path, texts: dict[str, str]) -> None:
    """Although the union of outputs has got its discriminator."""
    models = "models: {reference: {engine: bigram}}\npolicy: {kind: loss}\n"
    (copy / "plain.yaml").write_text(
        f"name: x\ncorpus: {{kind: csv, uri: corpus.csv}}\n{models}output: {{uri: plain}}\n"
    )
    assert "shards" in curator(copy, "plan", "plain.yaml").stdout


def test_one_job_uses_all_five(copy: Path, texts: dict[str, str]) -> None:
    model = ROOT / "curator" / "scorers" / "bigram_model" / "tokenizer.json"
    spec: dict[str, Any] = {
        "name": "contributed",
        "corpus": {"kind": "csv", "uri": "corpus.csv", "id_field": "id"},
        "models": {"reference": {"engine": "nearby", "model": str(model), "ratio": RATIO}},
        "policy": {"kind": "middle_loss", "keep": KEEP, "target": TARGET},
        "output": {"kind": "tokens_only", "uri": "out"},
        "shard_tokens": 10_000,
        "run": {"workers": 1, "address": "local"},
    }
    (copy / "spec.yaml").write_text(yaml.safe_dump(spec))
    curator(copy, "run", "spec.yaml")
    assert curator(copy, "verify", "out", check=False).returncode == 0
    files = sorted((copy / "out" / "curated").glob("*.parquet"))
    assert len(files) > 1
    rows = {row["doc_id"]: row for file in files for row in pq.read_table(file).to_pylist()}
    assert list(next(iter(rows.values()))) == ["doc_id", "input_ids", "labels", "token_weights"]
    check_rows(rows, texts, Tokenizer.from_file(str(model)))
    curator(copy, "export", "out", "--for", "token-lines", "--output", "lines")
    check_lines(rows, [json.loads(line) for line in (copy / "lines" / "tokens.jsonl").read_text().splitlines()])


def check_rows(rows: dict[str, Any], texts: dict[str, str], tokenizer: Tokenizer) -> None:
    """Kept are the tokens whose loss, in Python's own numbers, is nearest to the target; the rest is not."""
    assert rows.keys() == texts.keys()
    size = tokenizer.get_vocab_size()
    total = [math.fsum(RATIO ** abs(n - p) for n in range(size)) for p in range(size)]
    kept, dropped = [], []
    for doc_id, row in rows.items():
        ids = tokenizer.encode(texts[doc_id]).ids
        assert row["input_ids"] == ids and len(ids) <= 8192
        assert row["token_weights"][0] == 0
        for t in range(1, len(ids)):
            loss = math.log(total[ids[t - 1]]) - abs(ids[t] - ids[t - 1]) * math.log(RATIO)
            (kept if row["token_weights"][t] else dropped).append(abs(loss - TARGET))
        expected = [i if weight else -100 for i, weight in zip(ids, row["token_weights"], strict=True)]
        assert row["labels"] == expected
        assert {weight for weight in row["token_weights"] if weight} <= {1.0}
    assert len(kept) == round(KEEP * (len(kept) + len(dropped)))
    # Log-probs near -6.5 are stored as float16, in steps of 2^-8, and scores are rounded once more: no sharper.
    assert max(kept) <= min(dropped) + 3 * 2**-8
    assert np.mean(kept) < np.mean(dropped) / 2


def check_lines(rows: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    expected = [
        {"ids": row["input_ids"], "weights": row["token_weights"]} for row in rows.values() if any(row["token_weights"])
    ]
    assert lines == expected
