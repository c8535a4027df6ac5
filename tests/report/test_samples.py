"""The choice of sample documents: the extremes are the extremes, and every excerpt says that it is one."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curator.data import Cut
from curator.policies.excess_loss import ExcessLoss
from curator.report.samples import choose_samples


def make_table(rows: int = 60, seed: int = 0, size: int = 100) -> pa.Table:
    """Documents of one to three bytes a token, of two sources, whose kept share rises with their number."""
    random = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for number in range(rows):
        base = -random.exponential(2, size).astype(np.float16)
        excess = random.normal(number / rows - 0.5, 0.3, size)
        reference = (base.astype(np.float32) + excess).astype(np.float16)
        base[0] = reference[0] = np.nan
        score = reference.astype(np.float32) - base.astype(np.float32)
        pieces = random.choice(["a", "é", "中"], size)
        records.append(
            {
                "doc_id": f"d{number}",
                "source": "even" if number % 2 == 0 else "odd",
                "text": "".join(pieces),
                "token_bytes": [len(piece.encode()) for piece in pieces],
                "token_weights": (score > 0).astype(np.float32).tolist(),
                "logprobs_base": base.tolist(),
                "logprobs_reference": reference.tolist(),
            }
        )
    lists = {"token_bytes": pa.int32(), "token_weights": pa.float32()}
    lists |= {name: pa.float16() for name in ("logprobs_base", "logprobs_reference")}
    return pa.table(
        {
            key: pa.array(
                [np.array(record[key], lists[key].to_pandas_dtype()) for record in records]
                if key in lists
                else [record[key] for record in records],
                pa.list_(lists[key]) if key in lists else pa.string(),
            )
            for key in records[0]
        }
    )


CUTS = {"": Cut(value=0.0, share=0.5)}


def test_extremes_near_and_typical_documents_are_chosen() -> None:
    table = make_table()
    samples = choose_samples([table], ExcessLoss(), CUTS, each=2)
    shares = [np.count_nonzero(np.array(weights) > 0) / 99 for weights in table.column("token_weights").to_pylist()]
    by_reason: dict[str, list[float]] = {}
    for sample in samples:
        assert sample.kept_share == pytest.approx(shares[int(sample.doc_id[1:])])
        by_reason.setdefault(sample.reason, []).append(sample.kept_share)
    assert by_reason["among the most kept"] == sorted(shares, reverse=True)[:2]
    assert by_reason["among the most dropped"] == sorted(shares)[:2]
    assert len(by_reason["many tokens near the cut"]) == 2
    assert {sample.source for sample in samples if sample.reason == "typical of its source"} == {"even", "odd"}
    assert len({sample.doc_id for sample in samples}) == len(samples)


def test_a_sample_holds_its_own_row() -> None:
    table = make_table()
    for tables in ([table], [table.slice(0, 7), table.slice(7, 30), table.slice(37)], [pa.concat_tables([table] * 1)]):
        for sample in choose_samples(tables, ExcessLoss(), CUTS):
            row = table.slice(int(sample.doc_id[1:]), 1).to_pylist()[0]
            assert (sample.text, sample.source, sample.cut) == (row["text"], row["source"], 0.0)
            assert sample.token_bytes.tolist() == row["token_bytes"]
            assert sample.weights.tolist() == row["token_weights"]
            reference, base = (np.array(row[f"logprobs_{name}"], np.float32) for name in ("reference", "base"))
            assert np.array_equal(sample.logprobs["base"], base, equal_nan=True)
            expected = (reference - base).astype(np.float16).astype(np.float32)
            assert np.array_equal(sample.score, expected, equal_nan=True)


def test_the_choice_does_not_depend_on_how_rows_are_divided() -> None:
    table = make_table()
    whole = choose_samples([table], ExcessLoss(), CUTS)
    parts = choose_samples([table.slice(0, 13), table.slice(13)], ExcessLoss(), CUTS)
    assert [sample.doc_id for sample in whole] == [sample.doc_id for sample in parts]


def test_long_documents_are_excerpts_that_end_with_a_character() -> None:
    text = "🎉" * 300
    table = pa.table(
        {
            "doc_id": ["long"],
            "text": [text],
            "token_bytes": [np.ones(1200, np.int32)],
            "token_weights": [np.ones(1200, np.float32)],
        }
    )
    (sample,) = choose_samples([table], excerpt_tokens=402)
    assert sample.text == "🎉" * 100
    assert len(sample.token_bytes) == len(sample.weights) == len(sample.score) == 400
    assert sample.total_tokens == 1200
    (whole,) = choose_samples([table], excerpt_tokens=1200)
    assert whole.text == text


def test_cuts_of_sources_reach_their_documents() -> None:
    cuts = {"even": Cut(value=0.25, share=0), "odd": Cut(value=-0.25, share=0)}
    samples = choose_samples([make_table()], ExcessLoss(scope="source"), cuts)
    assert {(sample.source, sample.cut) for sample in samples} == {("even", 0.25), ("odd", -0.25)}


def test_without_scores_the_weights_stand_in_and_the_first_token_has_none() -> None:
    samples = choose_samples([make_table().drop_columns(["logprobs_base", "source"])], ExcessLoss(), CUTS)
    for sample in samples:
        assert np.isnan(sample.score[0])
        assert np.array_equal(sample.score[1:], sample.weights[1:])


def test_tables_without_text_or_rows_give_no_samples() -> None:
    table = make_table()
    assert choose_samples([], ExcessLoss(), CUTS) == []
    assert choose_samples([table.drop_columns(["text"]), table.slice(0, 0)], ExcessLoss(), CUTS) == []
