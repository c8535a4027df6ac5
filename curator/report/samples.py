"""Choose the few documents that the report shows token by token: extremes, doubtful ones, and one for each source.

The choice is a pure function of the tables, so that the same dataset gives the same report. A long document is shown
as an excerpt of its beginning, and the sample says which tokens of how many it shows: nothing is cut in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curator.data import Cut, FloatArray, IntArray, Policy
from curator.report.counts import NOISE_NATS
from curator.report.heatmap import find_group_stops
from curator.report.statistics import OffsetArray, sum_by_document

EXCERPT_TOKENS = 400
WORTH_SHOWING = 64
"""Scored tokens that a document should have to be chosen, as long as there are any such."""
_PREFIX = "logprobs_"
_NEEDED = ("doc_id", "text", "token_bytes", "token_weights")


@dataclass(frozen=True)
class SampleDocument:
    """A document, or its beginning, with what is known of its tokens, shape (T,) each.

    Attributes:
        doc_id: the document's id.
        source: its source.
        text: the text that the T tokens cover.
        token_bytes: UTF-8 bytes of text that each token covers.
        weights: token weights; above 0 means kept.
        score: the policy's score, NaN where unscored.
        logprobs: per model, in nats, NaN where unscored.
        reason: why this document was chosen, in words.
        total_tokens: tokens of the whole document, of which T are shown; None: all are.
        kept_share: kept part of the whole document's scored tokens; None: of the tokens shown.
        cut: the cut that held for this document, None where there is none.
    """

    doc_id: str
    source: str
    text: str
    token_bytes: IntArray
    weights: FloatArray
    score: FloatArray
    logprobs: Mapping[str, FloatArray]
    reason: str = ""
    total_tokens: int | None = None
    kept_share: float | None = None
    cut: float | None = None


@dataclass(frozen=True)
class _Measured:
    """One table with its flat scores and what decides the choice, shape (D,) each."""

    table: pa.Table
    offsets: OffsetArray
    score_T: FloatArray
    scored_D: npt.NDArray[np.float64]
    kept_D: npt.NDArray[np.float64]
    near_D: npt.NDArray[np.float64]
    cut_D: FloatArray
    sources: list[str]


def choose_samples(
    tables: Sequence[pa.Table],
    policy: Policy | None = None,
    cuts: Mapping[str, Cut] | None = None,
    *,
    each: int = 2,
    max_sources: int = 8,
    excerpt_tokens: int = EXCERPT_TOKENS,
) -> list[SampleDocument]:
    """Choose documents of curated tables to show.

    Args:
        tables: rows of curated/, at least doc_id, text, token_bytes and token_weights.
        policy: gives the score from stored log-probs. Where it cannot (random, keep_all, or None), the weight
            stands in for the score.
        cuts: by scope key; only those of the corpus and of sources are used here.
        each: how many most kept, most dropped and near the cut.
        max_sources: how many sources, the largest, show a typical document.
        excerpt_tokens: most tokens of one document.

    Returns:
        The samples, without repetition; none when the tables hold no text.
    """
    measured = [_measure(table, policy, cuts or {}) for table in tables if set(_NEEDED) <= set(table.column_names)]
    measured = [entry for entry in measured if entry.table.num_rows]
    if not measured:
        return []
    chosen = _choose_rows(measured, each, max_sources)
    starts = np.cumsum([0] + [entry.table.num_rows for entry in measured])
    samples = []
    for row, reason in chosen.items():
        part = int(np.searchsorted(starts, row, side="right")) - 1
        samples.append(_cut_sample(measured[part], row - int(starts[part]), reason, excerpt_tokens))
    return samples


def _measure(table: pa.Table, policy: Policy | None, cuts: Mapping[str, Cut]) -> _Measured:
    lengths_D = pc.list_value_length(table.column("token_bytes")).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths_D, dtype=np.int64)])
    weights_T = _flat(table, "token_weights").astype(np.float32)
    columns = {name: _flat(table, name).astype(np.float32) for name in table.column_names if name.startswith(_PREFIX)}
    if policy is not None and columns and set(policy.columns()) <= set(columns):
        score_T = policy.score(columns).astype(np.float16).astype(np.float32)  # as cuts were taken
    else:
        score_T = weights_T.copy()
        score_T[offsets[:-1][lengths_D > 0]] = np.nan
    sources = table.column("source").to_pylist() if "source" in table.column_names else [""] * table.num_rows
    by_source = policy is not None and policy.scope == "source"
    found = [cuts.get(source) if by_source else cuts.get("") for source in sources]
    cut_D = np.array([np.nan if cut is None else cut.value for cut in found], np.float32)
    distance_T = np.abs(score_T - np.repeat(cut_D, lengths_D))
    return _Measured(
        table=table,
        offsets=offsets,
        score_T=score_T,
        scored_D=sum_by_document(~np.isnan(score_T), offsets),
        kept_D=sum_by_document(weights_T > 0, offsets),
        near_D=sum_by_document(distance_T < 3 * NOISE_NATS, offsets),
        cut_D=cut_D,
        sources=sources,
    )


def _flat(table: pa.Table, name: str) -> npt.NDArray[np.generic]:
    values: npt.NDArray[np.generic] = pc.list_flatten(table.column(name)).to_numpy()
    return values


def _choose_rows(measured: Sequence[_Measured], each: int, max_sources: int) -> dict[int, str]:
    """Row over all tables -> reason, in the order in which the report shows them."""
    scored_D = np.concatenate([entry.scored_D for entry in measured])
    share_D = np.concatenate([entry.kept_D for entry in measured]) / np.maximum(scored_D, 1)
    near_D = np.concatenate([entry.near_D for entry in measured]) / np.maximum(scored_D, 1)
    sources = [source for entry in measured for source in entry.sources]
    candidates = np.flatnonzero(scored_D >= min(WORTH_SHOWING, scored_D.max()))
    chosen: dict[int, str] = {}

    def choose(rank_D: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], count: int, reason: str) -> None:
        """Take the rows of lowest rank that are not taken yet; equal ranks in the order of the tables."""
        free = [row for row in rows[np.argsort(rank_D[rows], kind="stable")].tolist() if row not in chosen]
        chosen.update(dict.fromkeys(free[:count], reason))

    choose(-share_D, candidates, each, "among the most kept")
    choose(share_D, candidates, each, "among the most dropped")
    if near_D.any():
        choose(-near_D, candidates, each, "many tokens near the cut")
    rows_of: dict[str, list[int]] = {}
    for row in candidates.tolist():
        rows_of.setdefault(sources[row], []).append(row)
    size = {source: scored_D[rows].sum() for source, rows in rows_of.items()}
    for source in sorted(rows_of, key=lambda name: (-size[name], name))[:max_sources]:
        rows = np.array(rows_of[source])
        choose(np.abs(share_D - np.median(share_D[rows])), rows, 1, "typical of its source")
    return chosen


def _cut_sample(entry: _Measured, row: int, reason: str, excerpt_tokens: int) -> SampleDocument:
    document = entry.table.slice(row, 1)
    encoded = document.column("text")[0].as_py().encode()
    token_bytes_T = _flat(document, "token_bytes").astype(np.int32)
    stops = find_group_stops(encoded, token_bytes_T)  # an excerpt ends where a character does
    size = int(stops[max(int(np.searchsorted(stops, excerpt_tokens, side="right")) - 1, 0)]) if len(stops) else 0
    begin = int(entry.offsets[row])
    return SampleDocument(
        doc_id=document.column("doc_id")[0].as_py(),
        source=entry.sources[row],
        text=encoded[: int(token_bytes_T[:size].sum())].decode(),
        token_bytes=token_bytes_T[:size],
        weights=_flat(document, "token_weights").astype(np.float32)[:size],
        score=entry.score_T[begin : begin + size],
        logprobs={
            name.removeprefix(_PREFIX): _flat(document, name).astype(np.float32)[:size]
            for name in document.column_names
            if name.startswith(_PREFIX)
        },
        reason=reason,
        total_tokens=len(token_bytes_T),
        kept_share=float(entry.kept_D[row] / max(entry.scored_D[row], 1)),
        cut=None if np.isnan(entry.cut_D[row]) else float(entry.cut_D[row]),
    )
