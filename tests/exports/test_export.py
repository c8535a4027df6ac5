"""Asking for an export: arguments, order, tokenizers, and datasets that cannot be exported."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import curator
from curator.errors import OutputError, SpecError
from curator.export import ExportRecord, export_dataset
from curator.tokens.tokenizer import TokensConfig, load_tokenizer

TOKENIZER = Path(curator.__file__).parent / "scorers" / "bigram_model" / "tokenizer.json"


def test_the_end_of_text_token_is_the_one_that_the_manifest_names(
    tmp_path: Path, make_documents: Callable[..., Any], write_dataset: Callable[..., Path]
) -> None:
    """Whatever the tokenizer says of itself."""
    tokenizer = load_tokenizer(str(TOKENIZER), None, TokensConfig())
    dataset = write_dataset(tmp_path / "dataset", make_documents([5, 4], soft=False, seed=1), eos_id=7)
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["tokenizer"] |= {"source": str(TOKENIZER), "fingerprint": tokenizer.fingerprint}
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    record = export_dataset(dataset, "tinker", tmp_path / "out")
    assert (record.eos_id, record.vocab_size) == (7, tokenizer.vocab_size) and tokenizer.eos_id != 7


def test_without_a_seed_rows_keep_their_order_and_a_seed_changes_it(hard: Path, tmp_path: Path) -> None:
    def order(name: str, seed: int | None) -> list[int]:
        export_dataset(hard, "tinker", tmp_path / name, seed=seed)
        lines = (tmp_path / name / "train.jsonl").read_text().splitlines()
        return [json.loads(line)["model_input"]["chunks"][0]["tokens"][0] for line in lines]

    files = order("files", None)
    assert files == sorted(files)
    assert order("a", 5) == order("b", 5) != files
    assert sorted(order("c", 6)) == files


def test_a_form_that_does_not_pack_cuts_longer_documents(hard: Path, tmp_path: Path, read: Callable[..., Any]) -> None:
    export_dataset(hard, "axolotl", tmp_path / "out", sequence_length=4)
    lengths = [len(ids) for ids, _ in read(tmp_path / "out")[1]]
    assert max(lengths) == 4
    assert all(any(weights) for _, weights in read(tmp_path / "out")[1]), "a piece that teaches nothing"


@pytest.mark.parametrize("kind", ["hugging_face", "llama_factory", "ms_swift", "tinker", "mosaicml", "trl"])
def test_a_dataset_without_a_kept_token_is_refused(
    kind: str, tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [([5, 6, 1], [0.0, 0.0, 0.0])] * 3)
    with pytest.raises(OutputError, match="has no kept token"):
        export_dataset(dataset, kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"form": "torchtitan"}, SpecError, "sequence_length: the form 'torchtitan' is packed"),
        ({"form": "tinker", "sequence_length": 1}, SpecError, "sequence_length: 1 is not in 2"),
        ({"form": "tinker", "sequence_length": 2**31}, SpecError, "sequence_length: 2147483648 is not in 2"),
        ({"form": "tinker", "sequence_length": "64"}, SpecError, "sequence_length: '64' is not in 2"),
        ({"form": "tinker", "sequence_length": 64.0}, SpecError, "sequence_length: 64.0 is not in 2"),
        ({"form": "tinker", "seed": -1}, SpecError, "seed: -1"),
        ({"form": "tinker", "seed": "1"}, SpecError, "seed: '1'"),
        ({"form": "nobody"}, SpecError, "'nobody' is not one of 'axolotl', 'hugging_face'"),
        ({"form": "tinker", "output": "s3://bucket/out"}, OutputError, "is not local"),
        ({"form": "tinker", "directory": "."}, OutputError, "holds no finished dataset"),
    ],
)
def test_arguments_that_cannot_be_are_told_before_anything_is_written(
    arguments: dict[str, Any], error: type[Exception], message: str, hard: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_dataset(**{"directory": hard, "output": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_readmes_command_exports_what_its_own_job_publishes(tmp_path: Path, write_dataset: Callable[..., Path]) -> None:
    """That job has `tokens.eos: false`, so its documents do not end with the end-of-text token."""
    text = (Path(curator.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^curator export OUTPUT --for (\S+) --sequence-length (\d+) --output", text, re.M)
    documents = [(range(10 * n + 5, 10 * n + 12), [0.0, *[1.0] * 6]) for n in range(4)]
    dataset = write_dataset(tmp_path / "dataset", documents, eos_id=1)
    record = export_dataset(dataset, command[0], tmp_path / "out", sequence_length=int(command[1]))
    assert (record.rows, record.kept_tokens) == (4, 24)


def test_weights_without_tokens_cannot_be_exported(hard: Path, tmp_path: Path) -> None:
    manifest = json.loads((hard / "manifest.json").read_text())
    (hard / "manifest.json").write_text(json.dumps({**manifest, "content": "weights"}))
    with pytest.raises(OutputError, match="holds weights without tokens"):
        export_dataset(hard, "tinker", tmp_path / "out")


def test_a_tokenizer_that_no_longer_fits_is_told(tmp_path: Path, write_dataset: Callable[..., Path]) -> None:
    dataset = write_dataset(tmp_path / "dataset", [([5, 10**6, 7], [0.0, 1.0, 1.0])])
    manifest = json.loads((dataset / "manifest.json").read_text())
    fingerprint = load_tokenizer(str(TOKENIZER), None, TokensConfig()).fingerprint
    manifest["tokenizer"] |= {"source": str(TOKENIZER), "fingerprint": fingerprint}
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputError, match=r"row '0:0' holds token 1000000, the tokenizer .* restore it"):
        export_dataset(dataset, "tinker", tmp_path / "out")


def test_the_command_writes_and_tells(hard: Path, tmp_path: Path) -> None:
    from curator.cli import app

    arguments = ["export", str(hard), "--for", "hugging-face", "--output", str(tmp_path / "out"), "--sequence-length"]
    result = CliRunner().invoke(app, [*arguments, "8", "--seed", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "hugging_face" in result.output and "2 rows skipped" in result.output
    record = ExportRecord.model_validate_json((tmp_path / "out" / "export.json").read_text())
    assert (record.sequence_length, record.seed, record.skipped_rows, record.vocab_size) == (8, 1, 2, 52)
