"""The contract of all forms: what the dataset says is learned is learned, and nothing else, however it is written."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import curator
from curator.errors import OutputError, SpecError
from curator.export import ExportRecord, export_dataset
from curator.exports import ExportConfig
from curator.exports.axolotl import AxolotlForm
from curator.exports.form import Facts, Form, Item
from curator.tokens.tokenizer import TokensConfig, load_tokenizer

FORMS: list[type[Form]] = list(get_args(get_args(ExportConfig)[0]))
TOKENIZER = Path(curator.__file__).parent / "scorers" / "bigram_model" / "tokenizer.json"
LENGTHS = [5, 3, 8, 2, 4, 9, 6, 7, 12, 2, 3]


def kind_of(form: type[Form]) -> str:
    return str(form.model_fields["kind"].default)


def layouts(form: type[Form]) -> list[int | None]:
    """Sequence lengths to write with; a form that may pack is written both ways."""
    return [7, 16] if form.packing == "always" else [None, 7]


CASES = [
    pytest.param(form, soft, length, id=f"{kind_of(form)}-{'soft' if soft else 'hard'}-{length}")
    for form in FORMS
    for soft in ([False, True] if form.soft else [False])
    for length in layouts(form)
]


def read(folder: Path, readers: dict[str, Any]) -> tuple[ExportRecord, list[Any]]:
    record = json.loads((folder / "export.json").read_text())
    return ExportRecord.model_validate(record), readers[record["kind"]](folder, record)


def test_every_form_has_a_reader_and_a_guide(readers: dict[str, Any]) -> None:
    assert {kind_of(form) for form in FORMS} == readers.keys()
    for form in FORMS:
        assert form.guide.strip() and form.guide.isprintable() is False and form.guide.endswith("\n")


@pytest.mark.parametrize(("form", "soft", "length"), CASES)
def test_what_is_learned_is_exactly_what_was_curated(
    form: type[Form], soft: bool, length: int | None, tmp_path: Path, readers: dict[str, Any],
    make_documents: Callable[..., Any], write_dataset: Callable[..., Path], triples: Callable[..., Any],
) -> None:  # fmt: skip
    documents = make_documents(LENGTHS, soft=soft, seed=1)
    dataset = write_dataset(tmp_path / "dataset", documents)
    returned = export_dataset(dataset, form(), tmp_path / "out", sequence_length=length, seed=3)
    record, found = read(tmp_path / "out", readers)
    assert record == returned
    assert triples(found) == triples(documents)
    kept = [(ids, weights) for ids, weights in documents if any(weights)]
    assert (record.rows, record.skipped_rows) == (len(kept), len(documents) - len(kept))
    assert record.kept_tokens == sum(np.count_nonzero(weights) for _, weights in kept)
    assert record.weight_sum == pytest.approx(sum(sum(weights) for _, weights in kept), rel=1e-6)
    assert kind_of(form) in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("form", "length"),
    [pytest.param(form, n, id=f"{kind_of(form)}-{n}") for form in FORMS for n in layouts(form)],
)
def test_documents_stay_apart(
    form: type[Form], length: int | None, tmp_path: Path, readers: dict[str, Any],
    make_documents: Callable[..., Any], write_dataset: Callable[..., Path],
) -> None:  # fmt: skip
    """What the trainer takes for one document is a run of tokens of one document: ids follow each other, then EOS."""
    dataset = write_dataset(tmp_path / "dataset", make_documents(LENGTHS, soft=False, seed=1))
    record = export_dataset(dataset, form(), tmp_path / "out", sequence_length=length)
    for ids, _ in read(tmp_path / "out", readers)[1]:
        inner = [token for token in ids if token != record.eos_id]
        assert inner == list(range(inner[0], inner[0] + len(inner))) if inner else True
        assert record.eos_id not in ids[:-1]


@pytest.mark.parametrize("form", FORMS, ids=kind_of)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(2, 25), min_size=1, max_size=9), length=st.integers(3, 19), seed=st.integers(0, 9))
def test_weights_are_conserved_for_any_lengths(
    form: type[Form], lengths: list[int], length: int, seed: int, tmp_path: Path, readers: dict[str, Any],
    make_documents: Callable[..., Any], write_dataset: Callable[..., Path], triples: Callable[..., Any],
) -> None:  # fmt: skip
    documents = make_documents([4, *lengths], soft=form.soft, seed=seed)
    documents[0][1][1] = 1.0
    for folder in ("dataset", "out"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    dataset = write_dataset(tmp_path / "dataset", documents)
    record = export_dataset(dataset, form(), tmp_path / "out", sequence_length=length, seed=seed)
    found = read(tmp_path / "out", readers)[1]
    assert triples(found) == triples(documents)
    total = sum(np.sum(weights, dtype=np.float64) for _, weights in documents)
    assert record.weight_sum == pytest.approx(total, rel=1e-9)
    assert sum(np.sum(weights, dtype=np.float64) for _, weights in found) == pytest.approx(total, rel=1e-6)


# ---------------------------------------------------------------------------------------------- the driver


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, mix_rows: list[dict[str, str]], ray_cluster: None) -> Path:
    """Thirty real documents, curated by the bigram engine that ships with the package."""
    from curator.pipeline import curate
    from curator.spec import parse_spec

    folder = tmp_path_factory.mktemp("job")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in mix_rows[:30]), encoding="utf-8")
    spec = {
        "name": "exported",
        "corpus": {"kind": "jsonl", "uri": str(corpus), "source_field": "source", "id_field": "id"},
        "models": {"reference": {"engine": "bigram"}},
        "policy": {"kind": "loss", "keep": 0.5},
        "output": {"uri": str(folder / "out")},
    }
    curate(parse_spec(spec))
    return folder / "out"


@pytest.fixture
def hard(tmp_path: Path, make_documents: Callable[..., Any], write_dataset: Callable[..., Path]) -> Path:
    return write_dataset(tmp_path / "dataset", make_documents(LENGTHS, soft=False, seed=1))


@pytest.fixture
def soft(tmp_path: Path, make_documents: Callable[..., Any], write_dataset: Callable[..., Path]) -> Path:
    return write_dataset(tmp_path / "dataset", make_documents(LENGTHS, soft=True, seed=1))


@pytest.mark.parametrize("form", [form for form in FORMS if not form.soft], ids=kind_of)
def test_soft_weights_are_refused_where_the_trainer_cannot_take_them(
    form: type[Form], soft: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        SpecError, match=rf"policy\.soft: row '0:0' has weight .* '{kind_of(form)}' takes 0 and 1 alone"
    ):
        export_dataset(soft, form(), tmp_path / "out", sequence_length=8)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


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


def test_a_form_that_does_not_pack_cuts_longer_documents(hard: Path, tmp_path: Path, readers: dict[str, Any]) -> None:
    export_dataset(hard, "axolotl", tmp_path / "out", sequence_length=4)
    lengths = [len(ids) for ids, _ in read(tmp_path / "out", readers)[1]]
    assert max(lengths) == 4
    assert all(any(weights) for _, weights in read(tmp_path / "out", readers)[1]), "a piece that teaches nothing"


class Interrupted(AxolotlForm):
    """Fails, or is stopped, after it has written something."""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        (folder / "half").write_text("half")
        next(iter(items))
        raise KeyboardInterrupt


def test_an_interrupted_export_leaves_nothing_behind(hard: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_dataset(hard, Interrupted(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_damaged_shard_leaves_nothing_behind(hard: Path, tmp_path: Path) -> None:
    shutil.copy(hard / "curated" / "00000.parquet", hard / "curated" / "00001.parquet")
    with pytest.raises(OutputError, match=r"00001\.parquet is damaged.*: 5 rows, the manifest says 6"):
        export_dataset(hard, "tinker", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize("kind", ["hugging_face", "llama_factory", "ms_swift", "tinker", "mosaicml", "trl"])
def test_a_dataset_without_a_kept_token_is_refused(
    kind: str, tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [([5, 6, 1], [0.0, 0.0, 0.0])] * 3)
    with pytest.raises(OutputError, match="has no kept token"):
        export_dataset(dataset, kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken_is_left_alone(hard: Path, tmp_path: Path) -> None:
    taken = tmp_path / "out"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    with pytest.raises(OutputError, match="not an empty folder"):
        export_dataset(hard, "tinker", taken)
    assert [path.name for path in taken.iterdir()] == ["mine"]
    (taken / "mine").unlink()
    export_dataset(hard, "tinker", taken)
    assert sorted(path.name for path in taken.iterdir()) == ["README.md", "export.json", "train.jsonl"]


class Late(AxolotlForm):
    """Takes so long that somebody else takes the name of the output."""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        super().write(items, folder, facts)
        (folder.parent / "out").mkdir()
        (folder.parent / "out" / "theirs").write_text("theirs")


def test_an_output_that_is_taken_meanwhile_is_left_alone(hard: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was taken while it was being written"):
        export_dataset(hard, Late(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "out"]


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


@pytest.mark.parametrize("inside", ["", "curated/out", "out"])
def test_an_output_in_the_dataset_is_refused(hard: Path, inside: str) -> None:
    before = sorted(hard.rglob("*"))
    with pytest.raises(OutputError, match=r"lies in the dataset .*name a folder beside it"):
        export_dataset(hard, "tinker", hard / inside)
    assert sorted(hard.rglob("*")) == before


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


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if kind_of(form) != "olmo_core"], ids=kind_of)
def test_a_dataset_of_a_real_job(
    form: type[Form], published: Path, tmp_path: Path, readers: dict[str, Any], triples: Callable[..., Any]
) -> None:
    """Through the published files and the job's own tokenizer, which has no end-of-text token as OLMo-core needs."""
    import pyarrow.parquet as pq

    documents = []
    for path in sorted((published / "curated").glob("*.parquet")):
        for row in pq.read_table(path, columns=["input_ids", "token_weights"]).to_pylist():
            documents.append((row["input_ids"], row["token_weights"]))
    length = 128 if form.packing == "always" else None
    record = export_dataset(published, form(), tmp_path / "out", sequence_length=length)
    shipped = json.loads(TOKENIZER.read_text())
    assert record.vocab_size == len(shipped["model"]["vocab"])
    assert record.tokenizer == str(TOKENIZER)
    assert triples(read(tmp_path / "out", readers)[1]) == triples(documents)
