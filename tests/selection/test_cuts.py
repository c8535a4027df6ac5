"""Cuts and weights of a whole corpus: exact, and the same however the work is divided."""

import math
import pickle
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.errors import PolicyError
from curator.policies.excess_loss import ExcessLoss
from curator.policies.keep_all import KeepAll
from curator.policies.loss import Loss
from curator.policies.random import RandomTokens
from curator.policies.threshold import Threshold
from curator.policies.weights import Soft
from curator.selection.apply import apply_policy
from curator.selection.cuts import (
    Cuts,
    TieCounts,
    count_piece,
    count_ties,
    find_boundaries,
    find_cuts,
    merge_counts,
    merge_ties,
)
from curator.selection.pieces import Piece, make_piece
from curator.tables import list_array

SOURCES = ["web", "", "mail\0", "ünï"]
SCOPES = ["corpus", "source", "shard", "document"]


def make_shards(lengths_by_shard, seed=0, levels=None, nan_share=0.02):
    """Shards of rows with two models' log-probs; `levels` limits the distinct values, so that scores tie."""
    generator = np.random.default_rng(seed)
    shards = []
    for shard, lengths in enumerate(lengths_by_shard):
        offsets = np.cumsum([0, *lengths])
        columns = {}
        for name in ("logprobs_reference", "logprobs_base"):
            values = -generator.exponential(2, offsets[-1])
            values = np.round(values * levels) / levels if levels else values
            values[generator.random(offsets[-1]) < nan_share] = np.nan
            values[offsets[:-1][np.diff(offsets) > 0]] = np.nan
            columns[name] = values.astype(np.float16)
        sources = [SOURCES[i] for i in generator.integers(0, len(SOURCES), len(lengths))]
        shards.append(Piece(columns, offsets, sources, shard, 0))
    return shards


def cut_rows(shard, points):
    """Divide a shard into pieces at row numbers."""
    rows = len(shard.sources)
    edges = sorted({0, rows, *(min(point, rows) for point in points)})
    pieces = []
    for first, last in pairwise(edges):
        start, stop = shard.offsets[first], shard.offsets[last]
        columns = {name: values[start:stop] for name, values in shard.columns.items()}
        pieces.append(
            Piece(columns, shard.offsets[first : last + 1] - start, shard.sources[first:last], shard.shard, first)
        )
    return pieces


def calibrate(policy, pieces):
    counts = merge_counts(pickle.loads(pickle.dumps(count_piece(policy, piece))) for piece in pieces)
    boundaries = find_boundaries(policy, counts)
    ties = merge_ties(pickle.loads(pickle.dumps(count_ties(policy, piece, boundaries))) for piece in pieces)
    return Cuts.model_validate_json(find_cuts(policy, counts, ties).model_dump_json())


def select(policy, pieces):
    """(source, shard, row, score, weight) of every token, as published."""
    cuts = calibrate(policy, pieces)
    found = []
    for piece in pieces:
        score_T, weights_T = apply_policy(policy, piece, cuts.by_scope)
        assert score_T.dtype == weights_T.dtype == np.float32
        row_T = np.repeat(np.arange(len(piece.sources)), piece.lengths)
        for row, score, weight in zip(row_T, score_T, weights_T * np.float32(cuts.scale), strict=True):
            found.append((piece.sources[row], piece.shard, piece.row0 + int(row), float(score), float(weight)))
    return found


def population(scope, token):
    return {"corpus": None, "source": token[0], "shard": token[1], "document": token[1:3]}[scope]


LENGTHS = [[5, 0, 1, 40, 17, 3], [], [2, 2, 90], [33] * 7]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("levels", [None, 4, 0.1])
@pytest.mark.parametrize("keep", [0.01, 0.6, 1.0])
@pytest.mark.parametrize("kind", [ExcessLoss, Loss, RandomTokens])
def test_each_population_keeps_its_best_share_exactly(scope, levels, keep, kind):
    tokens = select(kind(keep=keep, scope=scope), make_shards(LENGTHS, levels=levels))
    groups = defaultdict(list)
    for token in tokens:
        if math.isnan(token[3]):
            assert token[4] == 0
        else:
            groups[population(scope, token)].append(token)
    assert groups
    for members in groups.values():
        kept = [score for *_, score, weight in members if weight > 0]
        dropped = [score for *_, score, weight in members if weight == 0]
        assert {weight for *_, weight in members} <= {0.0, 1.0}
        assert len(kept) == round(keep * len(members))
        assert not kept or not dropped or min(kept) >= max(dropped)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SCOPES),
    st.sampled_from([None, 4, 0.1]),
    st.sampled_from([None, Soft(form="sigmoid", temperature=0.3), Soft(form="linear", temperature=0.3)]),
    st.lists(st.lists(st.integers(0, 12), max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(0, 5), max_size=3),
    st.randoms(use_true_random=False),
)
def test_no_division_into_pieces_and_no_order_changes_a_weight(scope, levels, soft, lengths, points, random):
    policy = ExcessLoss(scope=scope, soft=soft, keep=0.5)
    shards = make_shards(lengths, levels=levels)
    pieces = [piece for shard in shards for piece in cut_rows(shard, points)]
    whole = select(policy, shards)
    random.shuffle(pieces)
    parts = select(policy, pieces)
    order = sorted(range(len(parts)), key=lambda i: parts[i][1:3])  # stable: tokens of a row stay in order
    assert repr([parts[i] for i in order]) == repr(whole)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True, allow_subnormal=True), min_size=1, max_size=80),
    st.floats(0.01, 1),
    st.sampled_from(SCOPES),
)
def test_every_float16_value_is_ranked_as_python_ranks_it(values, keep, scope):
    logprobs = np.array([np.nan, *values], np.float16)
    piece = Piece({"logprobs_reference": logprobs}, np.array([0, len(logprobs)]), ["s"], 3, 11)
    policy = Loss(keep=keep, scope=scope)
    score_T, weights_T = apply_policy(policy, piece, calibrate(policy, [piece]).by_scope)
    ranked = sorted((v for v in values if not math.isnan(v)), reverse=True)
    kept = sorted(score_T[weights_T > 0].tolist(), reverse=True)
    assert kept == ranked[: round(keep * len(ranked))]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("tokens", [2, 7, 1000, 300_000])
def test_the_share_holds_when_all_scores_tie(scope, tokens):
    logprobs = np.full(tokens, -1.0, np.float16)
    piece = Piece({"logprobs_reference": logprobs}, np.array([0, tokens]), ["s"], 0, 0)
    policy = Loss(scope=scope, keep=0.6)
    _, weights_T = apply_policy(policy, piece, calibrate(policy, [piece]).by_scope)
    assert abs(np.count_nonzero(weights_T) - round(0.6 * tokens)) <= (0 if scope == "document" else 1)


def test_another_seed_keeps_other_ties_and_the_same_number():
    shards = make_shards(LENGTHS, levels=0.1)
    one, two = (select(Loss(seed=seed), shards) for seed in (0, 1))
    assert [t[4] for t in one] != [t[4] for t in two]
    assert sum(t[4] for t in one) == sum(t[4] for t in two)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("form", ["sigmoid", "linear"])
def test_kept_soft_weights_average_1_over_the_corpus(scope, form):
    policy = ExcessLoss(scope=scope, soft=Soft(form=form, temperature=0.7))
    weights = [t[4] for t in select(policy, make_shards(LENGTHS)) if t[4] > 0]
    assert math.fsum(weights) / len(weights) == pytest.approx(1, abs=1e-6)
    assert max(weights) > 1.05 > 0.95 > min(weights)


def test_keep_all_weighs_every_token_with_context_1():
    tokens = select(KeepAll(), make_shards([[1, 5, 0, 3]]))
    assert [t[4] for t in tokens] == [0, 0, 1, 1, 1, 1, 0, 1, 1]


def test_a_threshold_keeps_the_same_tokens_whatever_else_is_in_the_corpus():
    shards = make_shards(LENGTHS)
    policy = Threshold(measure="excess_loss", minimum=0.25, maximum=2)
    alone = [t for shard in shards for t in select(policy, [shard])]
    assert repr(alone) == repr(select(policy, shards))
    assert {t[4] for t in alone} == {0.0, 1.0}


def test_random_keeps_a_uniform_share_whatever_the_scores():
    shards = make_shards([[500] * 40])
    tokens = select(RandomTokens(keep=0.3), shards)
    kept = np.array([t[4] for t in tokens]).reshape(40, 500)
    assert kept[:, 0].sum() == 0 and kept.sum() == round(0.3 * 40 * 499)
    assert np.abs(kept[:, 1:].mean(axis=1) - 0.3).max() < 0.11  # five deviations


def test_many_sources_in_one_piece_are_counted_each_on_its_own():
    rows = 150
    logprobs = np.tile(np.array([np.nan, -1, -2, -3], np.float16), rows)
    piece = Piece({"logprobs_reference": logprobs}, np.arange(0, 4 * rows + 1, 4), [f"s{i}" for i in range(rows)], 0, 0)
    policy = Loss(keep=0.34, scope="source")
    cuts = calibrate(policy, [piece]).by_scope
    assert list(cuts) == sorted(cuts) and {cut.value for cut in cuts.values()} == {-1.0}
    assert apply_policy(policy, piece, cuts)[1].reshape(rows, 4).tolist() == [[0, 1, 0, 0]] * rows


def test_shards_are_keyed_by_their_file_names():
    policy = Loss(scope="shard")
    assert list(calibrate(policy, make_shards([[4], [4]])).by_scope) == ["00000", "00001"]


def test_a_population_without_a_cut_and_a_second_pass_left_out_are_errors():
    policy = Loss(scope="source", keep=0.5)
    shards = make_shards(LENGTHS, levels=0.1)
    with pytest.raises(PolicyError, match="no cut"):
        apply_policy(policy, shards[0], {})
    with pytest.raises(PolicyError, match="second pass"):
        find_cuts(policy, merge_counts(count_piece(policy, shard) for shard in shards), TieCounts())


def test_counts_stay_small_on_their_way():
    piece = make_shards([[2000] * 100])[0]
    assert len(pickle.dumps(count_piece(ExcessLoss(), piece))) < 400_000


def test_a_piece_of_columns_that_are_not_aligned_is_refused():
    one = list_array(np.zeros(3, np.float16), np.array([0, 1, 3]))
    two = list_array(np.zeros(3, np.float16), np.array([0, 2, 3]))
    assert make_piece({"logprobs_a": one}, ["s", "s"], 0, 0).lengths.tolist() == [1, 2]
    for lists, sources in [({"a": one, "b": two}, ["s", "s"]), ({"a": one}, ["s"]), ({}, [])]:
        with pytest.raises(PolicyError, match="shard 00000"):
            make_piece(lists, sources, 0, 0)
    assert make_piece({"a": pa.chunked_array([], one.type)}, [], 0, 0).lengths.tolist() == []
