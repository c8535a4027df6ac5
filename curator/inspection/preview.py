"""A few documents of a dataset, chosen by what was kept of them, from a few row groups of its published shards.

The choice is a pure function of those row groups: the same shards give the same documents. What counts as near to the
cut, and which documents are long enough to be worth showing, is as in the report's samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from curator.data import Cut, StrictModel
from curator.inspection.documents import PreviewDocument, as_number, show_document
from curator.inspection.rows import Rows, open_shard, overall_cut, spread
from curator.job import Job
from curator.report.counts import NOISE_NATS
from curator.report.samples import WORTH_SHOWING
from curator.tables import LOGPROBS_PREFIX, ROW_GROUP_TOKENS

Selection = Literal["kept", "dropped", "near", "all"]
"""Most kept, most dropped, scores nearest to the cut, or simply the first documents."""

NOTHING_YET = "no shard is published yet"
_GROUPS = 3  # row groups of the usual size that a choice is made from: about 800,000 tokens
_MOST_SHARDS = 12  # that are opened for it, where shards are smaller than that
_NEEDED = ("doc_id", "text", "token_bytes")
_STRONG = 0.95
_HUGE = 1e6


class Scale(StrictModel):
    """What colours may mean, the same for all documents of a preview."""

    centre: float = Field(default=0.0, description="the score without colour: the corpus' cut, or 0")
    spread: float = Field(default=1.0, description="distance from the centre that nearly all scores keep within")
    loss_max: float = Field(default=1.0, description="loss in nats that nearly all tokens stay below")
    weight_max: float = 1.0


class Preview(StrictModel):
    """Documents to look at, and what they were chosen from; the default value is that of a job without a plan."""

    select: Selection = "all"
    documents: list[PreviewDocument] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)
    policy: dict[str, Any] = Field(default_factory=dict, description="as in the spec")
    cut: float | None = Field(
        default=None, description="the one cut of the corpus; null where each source, shard or row has its own"
    )
    scale: Scale = Scale()
    seen_documents: int = Field(default=0, description="among which these were chosen")
    seen_shards: list[int] = Field(default_factory=list, description="from which those were read")
    note: str | None = Field(default=NOTHING_YET, description="why there are no documents")


def read_preview(job: Job, *, select: Selection, limit: int, shard: int | None = None) -> Preview:
    """Choose up to `limit` documents.

    Args:
        job: from `open_job`.
        select: which documents to look for.
        limit: most documents.
        shard: look into this shard alone; None: a few shards, spread over those that are published.

    Raises:
        StorageError: a published shard is gone or damaged.
    """
    calibration, numbers = job.read_calibration(), sorted(job.curated.published())
    wanted = [number for number in numbers if shard in (None, number)]
    cuts = {} if calibration is None else calibration.cuts.by_scope
    if select == "all":
        parts = list(_read_first(job, cuts, wanted, limit))
    else:
        parts = [rows for number in _spread_shards(job, wanted) for rows in _read_some(job, cuts, number, len(wanted))]
    shown = [rows for rows in parts if set(_NEEDED) <= set(rows.table.column_names)]
    excess = _excess_models(job)
    return Preview(
        select=select,
        documents=[show_document(rows, row, excess) for rows, row in _choose(shown, select, limit)],
        models=list(job.plan.models),
        policy=job.plan.spec["policy"],
        cut=as_number(overall_cut(job.spec.policy, cuts)),
        scale=_measure_scale(parts, overall_cut(job.spec.policy, cuts)),
        seen_documents=sum(rows.table.num_rows for rows in shown),
        seen_shards=sorted({rows.shard for rows in shown}),
        note=_explain(numbers, wanted, parts, shown),
    )


def _columns(job: Job) -> list[str]:
    return [*_NEEDED, "source", "token_weights", *(LOGPROBS_PREFIX + name for name in job.plan.models)]


def _read_first(job: Job, cuts: Mapping[str, Cut], numbers: Sequence[int], limit: int) -> Iterator[Rows]:
    """Row groups from the beginning until they hold `limit` rows, or what is read at most."""
    rows_read = tokens_read = 0
    for number in numbers:
        with open_shard(job, cuts, number) as opened:
            for group in opened.groups(_columns(job)):
                if rows_read >= limit or tokens_read >= _GROUPS * ROW_GROUP_TOKENS:
                    return
                rows = opened.read(group, _columns(job))
                rows_read, tokens_read = rows_read + rows.table.num_rows, tokens_read + len(rows.weights_T)
                yield rows


def _spread_shards(job: Job, numbers: Sequence[int]) -> list[int]:
    usual_tokens = max(job.plan.tokens // max(len(job.plan.shards), 1), 1)
    return spread(numbers, min(max(_GROUPS * ROW_GROUP_TOKENS // usual_tokens, _GROUPS), _MOST_SHARDS))


def _read_some(job: Job, cuts: Mapping[str, Cut], number: int, shards: int) -> Iterator[Rows]:
    """Row groups spread over one shard, the fewer the more shards there are."""
    with open_shard(job, cuts, number) as opened:
        groups = opened.groups(_columns(job))
        for group in spread(groups, max(_GROUPS // shards, 1)):
            yield opened.read(group, _columns(job))


def _choose(parts: Sequence[Rows], select: Selection, limit: int) -> list[tuple[Rows, int]]:
    places = [(rows, row) for rows in parts for row in range(rows.table.num_rows)]
    if not places:
        return []
    if select == "all":
        return places[:limit]
    rank_D, scored_D = (np.concatenate(values) for values in zip(*(_rank(rows, select) for rows in parts), strict=True))
    known = np.flatnonzero(~np.isnan(rank_D) & (scored_D >= min(WORTH_SHOWING, scored_D.max())))
    ordered = known[np.argsort(rank_D[known], kind="stable")]
    return [places[index] for index in ordered[:limit].tolist()]


def _rank(rows: Rows, select: Selection) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What documents are chosen by, lowest first, NaN for never, and their scored tokens, shape (D,) each.

    The kept share is taken by weight, which for weights of 0 and 1 is the same and tells soft weights apart.
    """
    scored_D = rows.sum_rows(rows.scored_T)
    if select != "near":
        share_D = rows.sum_rows(rows.weights_T) / np.maximum(scored_D, 1)
        return (-share_D if select == "kept" else share_D), scored_D
    if rows.score_T is None:
        return np.full(len(scored_D), np.nan), scored_D
    distance_T = np.abs(rows.score_T - np.repeat(rows.cut_D, np.diff(rows.offsets)))
    near_D = rows.sum_rows(distance_T < 3 * NOISE_NATS) / np.maximum(scored_D, 1)
    return np.where(np.isnan(rows.cut_D), np.nan, -near_D), scored_D


def _excess_models(job: Job) -> tuple[str, str] | None:
    """The reference and the base: as the policy names them, else the models that are called so."""
    policy = job.plan.spec["policy"]
    reference, base = policy.get("reference", "reference"), policy.get("base", "base")
    return (reference, base) if {reference, base} <= job.plan.models.keys() else None


def _measure_scale(parts: Sequence[Rows], cut: float | None) -> Scale:
    """Colours that use their whole range on nearly all tokens."""
    centre = as_number(cut) or 0.0
    scores = [rows.score_T[rows.scored_T] for rows in parts if rows.score_T is not None]
    losses = [-values_T[~np.isnan(values_T)] for rows in parts for values_T in rows.logprobs.values()]
    low, high = _quantiles([*scores, np.array([centre])])
    return Scale(
        centre=centre,
        spread=round(max(abs(low - centre), abs(high - centre), 1 / 16), 3),
        loss_max=round(max(_quantiles([*losses, np.ones(1)])[1], 1.0), 3),
        weight_max=round(max([1e-3, *(float(rows.weights_T.max(initial=0)) for rows in parts)]), 5),
    )


def _quantiles(parts: Sequence[npt.NDArray[np.floating[Any]]]) -> tuple[float, float]:
    """The values that all but a twentieth lie above, and below."""
    values = np.concatenate(parts).astype(np.float32)  # a float16 cannot even count more than 65,504 of them
    low, high = np.clip(np.quantile(values, [1 - _STRONG, _STRONG]), -_HUGE, _HUGE).tolist()
    return low, high


def _explain(numbers: Sequence[int], wanted: Sequence[int], parts: Sequence[Rows], shown: Sequence[Rows]) -> str | None:
    if shown:
        return None
    if not numbers:
        return NOTHING_YET
    if not wanted:
        return "this shard is not published"
    if not parts:
        return "the shards hold documents that are too long to be shown here"
    return "the dataset does not publish its text, and the work folder that holds it is gone"
