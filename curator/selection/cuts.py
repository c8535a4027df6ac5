"""Find the cuts of a policy over a whole corpus, in two passes of small mergeable counts (see the package's page).

Invariants: the cuts do not depend on how the corpus is divided into pieces or over workers; of n scored tokens of a
population exactly round(keep * n) are kept (see `ties.find_share`); everything here pickles and is compact.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import Field

from curator.data import Cut, FloatArray, Policy, StrictModel
from curator.errors import PolicyError
from curator.selection.apply import apply_policy, find_tied
from curator.selection.histogram import (
    BINS,
    Boundary,
    Histogram,
    bin_values,
    compress,
    count_scores,
    find_boundary,
    merge_histograms,
    order_counts,
)
from curator.selection.pieces import Piece, locate, scope_rows, score_piece
from curator.selection.ties import STREAM_TIES, count_tie_breaks, find_share, hash_tokens

Counts = dict[str, Histogram]
"""Scored tokens by scope key (see `pieces.scope_rows`) and bin."""

_WEIGHT_UNIT = 2**32  # weights are summed as integers, so that the sum does not depend on its order
_DENSE_KEYS = 64


class Cuts(StrictModel):
    """What selecting needs to know of the whole corpus."""

    by_scope: dict[str, Cut] = Field(
        default_factory=dict, description="by scope key: '' for the corpus, a source's name, a shard's number"
    )
    scale: float = Field(default=1.0, gt=0, description="multiplies weights, so that kept weights average 1")


@dataclass(frozen=True)
class TieCounts:
    """What the second pass counts: tie-breaks at the boundaries, and weights where no histogram gives their sum."""

    by_scope: Counts = field(default_factory=dict)
    weight_sum: int = 0
    kept: int = 0


# ---------------------------------------------------------------------------------------------- first pass


def needs_counts(policy: Policy) -> bool:
    """Whether the first pass has anything to count: a share to keep of a population larger than a document."""
    return policy.keep is not None and policy.scope != "document"


def count_piece(policy: Policy, piece: Piece) -> Counts:
    """First pass: count a piece's scores by population."""
    if not needs_counts(policy):
        return {}
    score_T = score_piece(policy, piece)
    keys, row_key = scope_rows(policy.scope, piece)
    if len(keys) == 1:
        return {keys[0]: compress(count_scores(score_T))}
    return _count_by_key(score_T, np.repeat(row_key, piece.lengths), keys)


def _count_by_key(score_T: FloatArray, key_T: npt.NDArray[np.intp], keys: list[str]) -> Counts:
    """Count several populations in one go, `_DENSE_KEYS` of them at a time to bound memory."""
    code_T = score_T.astype(np.float16).view(np.uint16).astype(np.int64)
    counts: Counts = {}
    for first in range(0, len(keys), _DENSE_KEYS):
        part = keys[first : first + _DENSE_KEYS]
        inside_T = (key_T >= first) & (key_T < first + len(part))
        combined_T = code_T[inside_T] + (key_T[inside_T] - first) * BINS
        dense = np.bincount(combined_T, minlength=len(part) * BINS).reshape(len(part), BINS)
        counts |= {key: compress(row) for key, row in zip(part, order_counts(dense), strict=True)}
    return counts


def merge_counts(parts: Iterable[Counts]) -> Counts:
    """Add up the first pass; keys come out sorted, whatever the order of the parts."""
    merged: Counts = {}
    for part in parts:
        for key, histogram in part.items():
            merged[key] = merge_histograms([merged[key], histogram]) if key in merged else histogram
    return dict(sorted(merged.items()))


def find_boundaries(policy: Policy, counts: Counts) -> dict[str, Boundary]:
    """The boundary of each population, from the whole corpus' counts."""
    if policy.keep is None:
        return {}
    return {key: find_boundary(histogram.expand(), policy.keep) for key, histogram in counts.items()}


# ---------------------------------------------------------------------------------------------- second pass


def needs_ties(policy: Policy, boundaries: Mapping[str, Boundary]) -> bool:
    """Whether the second pass has anything to count; if not, give `find_cuts` an empty `TieCounts()`."""
    if policy.binary:
        return any(boundary.splits for boundary in boundaries.values())
    return not needs_counts(policy)


def count_ties(policy: Policy, piece: Piece, boundaries: Mapping[str, Boundary]) -> TieCounts:
    """Second pass: count the tie-breaks of a piece's tokens at the boundaries, or sum its soft weights."""
    if not needs_ties(policy, boundaries):
        return TieCounts()
    if not policy.binary:
        _, weights_T = apply_policy(policy, piece, {})
        units = np.rint(weights_T.astype(np.float64) * _WEIGHT_UNIT).astype(np.int64)
        return TieCounts(weight_sum=int(units.sum()), kept=int(np.count_nonzero(weights_T)))
    keys, row_key = scope_rows(policy.scope, piece)
    values = np.array([boundaries[key].value for key in keys])
    tied = find_tied(score_piece(policy, piece), values, row_key, piece)
    row, position = locate(piece, tied)
    tie = hash_tokens(policy.seed, STREAM_TIES, piece.shard, row, position)
    key_of_tied = row_key[row - piece.row0]
    here = {key: tie[key_of_tied == i] for i, key in enumerate(keys) if boundaries[key].splits}
    return TieCounts({key: compress(count_tie_breaks(tie, boundaries[key])) for key, tie in here.items()})


def merge_ties(parts: Iterable[TieCounts]) -> TieCounts:
    """Add up the second pass; the order of the parts does not matter."""
    everything = list(parts)
    return TieCounts(
        merge_counts(part.by_scope for part in everything),
        sum(part.weight_sum for part in everything),
        sum(part.kept for part in everything),
    )


# ---------------------------------------------------------------------------------------------- both together


def find_cuts(policy: Policy, counts: Counts, ties: TieCounts) -> Cuts:
    """The cuts, and the scale with which kept weights average 1 over the corpus.

    Args:
        policy: the policy that everything was counted with.
        counts: the whole first pass, merged.
        ties: the whole second pass, merged.

    Raises:
        PolicyError: the second pass is missing where it was needed.
    """
    boundaries = find_boundaries(policy, counts)
    cuts = {key: _find_cut(policy, boundary, ties.by_scope.get(key)) for key, boundary in boundaries.items()}
    if policy.binary:
        return Cuts(by_scope=cuts)
    weight_sum, kept = ties.weight_sum, ties.kept
    for key, cut in cuts.items():
        weight_V = policy.weigh(bin_values(), cut, np.zeros(BINS, np.float32))[counts[key].bins].astype(np.float64)
        units = np.rint(weight_V * _WEIGHT_UNIT).astype(np.int64)
        weight_sum += sum(a * b for a, b in zip(units.tolist(), counts[key].counts.tolist(), strict=True))
        kept += int(counts[key].counts[weight_V > 0].sum())
    return Cuts(by_scope=cuts, scale=kept * _WEIGHT_UNIT / weight_sum if weight_sum else 1.0)


def _find_cut(policy: Policy, boundary: Boundary, tie_counts: Histogram | None) -> Cut:
    if not policy.binary or not boundary.splits:
        share = boundary.needed / boundary.tied if boundary.tied else 0.0
        return Cut(value=boundary.value, share=share)
    if tie_counts is None:
        raise PolicyError(f"{boundary.tied} tokens tie at the cut and were not counted; run the second pass first")
    return Cut(value=boundary.value, share=find_share(tie_counts.expand(), boundary))
