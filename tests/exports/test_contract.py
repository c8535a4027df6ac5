"""The contract of all forms: what the dataset says is learned is learned, and nothing else, however it is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curator
from curator.errors import SpecError
from curator.export import export_dataset
from curator.exports import ExportConfig
from curator.exports.form import Form

FORMS: list[type[Form]] = list(get_args(get_args(ExportConfig)[0]))
TOKENIZER = Path(curator.__file__).parent / "scorers" / "bigram_model" / "tokenizer.json"


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


def test_every_form_has_a_reader_and_a_guide(readers: dict[str, Any]) -> None:
    assert {kind_of(form) for form in FORMS} == readers.keys()
    for form in FORMS:
        assert form.guide.strip() and form.guide.isprintable() is False and form.guide.endswith("\n")


@pytest.mark.parametrize(("form", "soft", "length"), CASES)
def test_what_is_learned_is_exactly_what_was_curated(
    form: type[Form], soft: bool, length: int | None, tmp_path: Path, read: Callable[..., Any],
    make_documents: Callable[..., Any], write_dataset: Callable[..., Path], triples: Callable[..., Any],
) -> None:  # fmt: skip
    documents = make_documents(soft=soft, seed=1)
    dataset = write_dataset(tmp_path / "dataset", documents)
    returned = export_dataset(dataset, form(), tmp_path / "out", sequence_length=length, seed=3)
    record, found = read(tmp_path / "out")
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
    form: type[Form], length: int | None, tmp_path: Path, read: Callable[..., Any],
    make_documents: Callable[..., Any], write_dataset: Callable[..., Path],
) -> None:  # fmt: skip
    """What the trainer takes for one document is a run of tokens of one document: ids follow each other, then EOS."""
    dataset = write_dataset(tmp_path / "dataset", make_documents(soft=False, seed=1))
    record = export_dataset(dataset, form(), tmp_path / "out", sequence_length=length)
    for ids, _ in read(tmp_path / "out")[1]:
        inner = [token for token in ids if token != record.eos_id]
        assert inner == list(range(inner[0], inner[0] + len(inner))) if inner else True
        assert record.eos_id not in ids[:-1]


@pytest.mark.parametrize("length", [2, 5, 4096])
@pytest.mark.parametrize("form", FORMS, ids=kind_of)
def test_documents_of_one_token_without_a_kept_one_and_long_ones(
    form: type[Form], length: int, tmp_path: Path, read: Callable[..., Any], write_dataset: Callable[..., Path],
    triples: Callable[..., Any],
) -> None:  # fmt: skip
    long = ([*range(30, 230), 1], [0.0, *[1.0] * 200])
    documents = [([1], [0.0]), ([5, 1], [0.0, 1.0]), ([6], [0.0]), ([20, 21, 22, 1], [0.0] * 4), long]
    dataset = write_dataset(tmp_path / "dataset", documents)
    record = export_dataset(dataset, form(), tmp_path / "out", sequence_length=length)
    assert (record.rows, record.skipped_rows, record.kept_tokens) == (2, 3, 201)
    assert triples(read(tmp_path / "out")[1]) == triples(documents)


@pytest.mark.parametrize("form", FORMS, ids=kind_of)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(2, 25), min_size=1, max_size=9), length=st.integers(3, 19), seed=st.integers(0, 9))
def test_weights_are_conserved_for_any_lengths(
    form: type[Form], lengths: list[int], length: int, seed: int, tmp_path: Path, read: Callable[..., Any],
    make_documents: Callable[..., Any], write_dataset: Callable[..., Path], triples: Callable[..., Any],
) -> None:  # fmt: skip
    documents = make_documents([4, *lengths], soft=form.soft, seed=seed)
    documents[0][1][1] = 1.0
    for folder in ("dataset", "out"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    dataset = write_dataset(tmp_path / "dataset", documents)
    record = export_dataset(dataset, form(), tmp_path / "out", sequence_length=length, seed=seed)
    found = read(tmp_path / "out")[1]
    assert triples(found) == triples(documents)
    total = sum(np.sum(weights, dtype=np.float64) for _, weights in documents)
    assert record.weight_sum == pytest.approx(total, rel=1e-9)
    assert sum(np.sum(weights, dtype=np.float64) for _, weights in found) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("form", [form for form in FORMS if not form.soft], ids=kind_of)
def test_soft_weights_are_refused_where_the_trainer_cannot_take_them(
    form: type[Form], soft: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        SpecError, match=rf"policy\.soft: row '0:0' has weight .* '{kind_of(form)}' takes 0 and 1 alone"
    ):
        export_dataset(soft, form(), tmp_path / "out", sequence_length=8)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


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


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if kind_of(form) != "olmo_core"], ids=kind_of)
def test_a_dataset_of_a_real_job(
    form: type[Form], published: Path, tmp_path: Path, read: Callable[..., Any], triples: Callable[..., Any]
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
    assert triples(read(tmp_path / "out")[1]) == triples(documents)
