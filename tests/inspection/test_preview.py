"""The documents that a person sees say what the shards hold, and are those that were asked for."""

from typing import Any

import numpy as np
import pytest

import curator.inspection.preview
from curator import inspection
from curator.inspection import Selection, documents, rows
from curator.job import Job


def test_documents_say_what_the_shards_hold(bench: Any, finished: Job) -> None:
    expected = {(row["shard"], row["row"]): row for row in bench.read_rows(finished)}
    shown = bench.documents(finished)
    assert [(document["shard"], document["row"]) for document in shown] == list(expected)[: len(shown)]
    assert len(shown) == len(expected) == 102
    for document in shown:
        row = expected[document["shard"], document["row"]]
        size = len(document["tokens"])
        assert (document["doc_id"], document["source"]) == (row["doc_id"], row["source"])
        assert document["total_tokens"] == len(row["input_ids"])
        assert document["truncated"] == (size < len(row["input_ids"]))
        text = "".join(document["tokens"])
        assert text == row["text"] if not document["truncated"] else row["text"].startswith(text)
        assert document["weights"] == row["token_weights"][:size]
        assert document["kept_tokens"] == np.count_nonzero(row["token_weights"])
        assert document["scored_tokens"] == len(row["input_ids"]) - 1
        excess = np.float16(bench.excess_of(row)[:size])
        layers = {name: np.array(values, float) for name, values in document["layers"].items()}
        assert set(layers) == {"score", "loss_reference", "loss_base", "excess"}
        np.testing.assert_allclose(layers["excess"], excess, atol=6e-6, rtol=0)
        assert np.array_equal(layers["score"], layers["excess"], equal_nan=True)
        for model in ("reference", "base"):
            np.testing.assert_allclose(layers[f"loss_{model}"], -np.float32(row[f"logprobs_{model}"][:size]), atol=1e-5)
        assert document["layers"]["score"][0] is None


def test_tokens_that_share_a_character_form_a_group(bench: Any, finished: Job) -> None:
    (document,) = [shown for shown in bench.documents(finished) if shown["doc_id"] == "emoji"]
    (row,) = [row for row in bench.read_rows(finished) if row["doc_id"] == "emoji"]
    groups, tokens = document["groups"], document["tokens"]
    assert sum(groups) == len(tokens) and max(groups) > 1
    token = begin = 0
    encoded = row["text"].encode()
    for size in groups:
        end = begin + sum(row["token_bytes"][token : token + size])
        assert tokens[token : token + size] == [encoded[begin:end].decode()] + [""] * (size - 1)
        for inner in range(1, size):  # no group could have ended earlier
            with pytest.raises(UnicodeDecodeError):
                encoded[begin : begin + sum(row["token_bytes"][token : token + inner])].decode()
        token, begin = token + size, end


def test_a_long_document_is_cut_where_a_character_ends(bench: Any, finished: Job) -> None:
    (document,) = [shown for shown in bench.documents(finished) if shown["doc_id"] == "long"]
    size = len(document["tokens"])
    assert document["truncated"] and document["total_tokens"] > documents.SHOWN_TOKENS >= size
    assert size > documents.SHOWN_TOKENS - 12 and len(document["weights"]) == len(document["layers"]["score"]) == size
    assert (bench.emoji * 40).startswith("".join(document["tokens"])) and sum(document["groups"]) == size


def test_an_excerpt_holds_no_more_bytes_than_it_may(bench: Any, finished: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (1, 7, 100):
        monkeypatch.setattr(documents, "SHOWN_BYTES", most)
        for document in bench.documents(finished, shard=0):
            assert document["truncated"]
            assert len("".join(document["tokens"]).encode()) <= most
            assert len(document["tokens"]) == len(document["weights"]) == len(document["layers"]["score"])


@pytest.mark.parametrize("select", ["kept", "dropped", "near"])
def test_the_extremes_of_the_shards_seen_are_chosen(
    bench: Any, finished: Job, select: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curator.inspection.preview, "_MOST_SHARDS", 3)
    preview = inspection.read_preview(finished, select=select, limit=7)
    seen = [row for row in bench.read_rows(finished, preview.seen_shards) if len(row["input_ids"]) > 64]
    cut = finished.read_calibration().cuts.by_scope[""].value  # type: ignore[union-attr]
    assert preview.cut == pytest.approx(cut, abs=1e-5)

    def measure(row: dict[str, Any]) -> float:
        if select == "near":
            return float(np.count_nonzero(np.abs(np.float16(bench.excess_of(row)) - np.float32(cut)) < 0.09))
        return np.count_nonzero(row["token_weights"]) * (1 if select == "kept" else -1)

    best = sorted((measure(row) / (len(row["input_ids"]) - 1) for row in seen), reverse=True)[:7]
    by_place = {(row["shard"], row["row"]): row for row in seen}
    chosen = [by_place[document.shard, document.row] for document in preview.documents]
    assert [measure(row) / (len(row["input_ids"]) - 1) for row in chosen] == pytest.approx(best)
    assert len(preview.seen_shards) == 3 and preview.seen_documents < 102


def test_colours_use_their_range_on_nearly_all_tokens(bench: Any, finished: Job) -> None:
    preview = inspection.read_preview(finished, select="kept", limit=1)
    seen = bench.read_rows(finished, preview.seen_shards)
    losses = [-np.float32(row[f"logprobs_{model}"][1:]) for row in seen for model in ("reference", "base")]
    excess = np.concatenate([bench.excess_of(row)[1:] for row in seen])
    assert preview.scale.loss_max == pytest.approx(np.quantile(np.concatenate(losses), 0.95), abs=0.01)
    farthest = np.abs(np.quantile(excess, [0.05, 0.95]) - preview.cut).max()
    assert preview.scale.spread == pytest.approx(farthest, abs=0.01)
    assert (preview.scale.centre, preview.scale.weight_max) == (preview.cut, 1.0)


def test_scales_of_more_tokens_than_a_float16_can_count() -> None:
    values = np.linspace(0, 100, 200_001, dtype=np.float16)
    assert curator.inspection.preview._quantiles([values]) == pytest.approx((5, 95), abs=0.05)


def test_one_shard_alone_can_be_looked_at(bench: Any, finished: Job) -> None:
    assert {document["shard"] for document in bench.documents(finished, "kept", shard=2)} == {2}
    assert len(bench.documents(finished, "all", shard=1)) == len(bench.read_rows(finished, [1]))
    assert len(bench.documents(finished, "all", 3)) == 3
    absent = inspection.read_preview(finished, select="all", limit=5, shard=999)
    assert (absent.documents, absent.note) == ([], "this shard is not published")


def test_an_enormous_row_group_is_passed_over(finished: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_TEXT_BYTES", 10)
    preview = inspection.read_preview(finished, select="kept", limit=5)
    assert preview.documents == [] and preview.note is not None and "too long" in preview.note
    monkeypatch.setattr(rows, "MOST_TOKENS", 10)
    assert all(source.score is None for source in inspection.read_histograms(finished).sources)


def test_hostile_names_are_shortened_and_numbers_fit_json() -> None:
    assert len(documents._shorten("x" * 5000)) == 1000
    assert documents.as_numbers(np.float32([np.nan, np.inf, -np.inf, -0.0, 0.1])) == [None, 1e6, -1e6, 0.0, 0.1]
    assert str(documents.as_numbers(np.float32([-0.0]))[0]) == "0.0" and documents.as_number(None) is None
