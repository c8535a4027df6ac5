"""What went wrong with single rows and whole shards, page by page, with the reasons counted.

A page goes on after a position that later pages never shift: positions are (section, index), where the sections are
the lost shards, the damage found while planning, then each shard's rows in the order of shards. While a job runs,
shards end in any order: rows of a shard that ends later may belong before a position that was passed; the counts
always have all of them.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from curator import storage
from curator.data import BadRow, StrictModel
from curator.inspection.receipts import count_reasons, count_tokens
from curator.job import Job
from curator.manifest import MANIFEST, QUARANTINE, LostShard, TokenReceipt, read_manifest

POSITION = r"^[0-9]{1,9}\.[0-9]{1,9}$"
"""What a position looks like: section, point, index."""

_LOST, _DAMAGE, _SHARDS = 0, 1, 2
_DETAIL_CHARACTERS = 200
_FILE_CHARACTERS = 1000

Entry = tuple[int, int, "Fault"]


class Fault(StrictModel):
    """One quarantined row, or one lost shard."""

    kind: Literal["row", "shard"]
    shard: int | None = Field(description="null for what planning found")
    stage: str | None = Field(default=None, description="where a lost shard failed")
    file: str | None = Field(default=None, description="of a row: relative path of its file")
    row: int | None = Field(default=None, description="number in its file, from 0; null = the rest of the file is lost")
    offset: int | None = Field(default=None, description="byte offset in the (decompressed) file, where known")
    reason: str = Field(description="a short fixed word")
    detail: str = Field(description="what was seen, in a few words")


class Faults(StrictModel):
    """A page of faults, and the counts of all of them; the default value is that of a job that has not begun."""

    data: list[Fault] = Field(default_factory=list)
    has_more: bool = False
    next_cursor: str | None = Field(default=None, description="leads to the next page")
    reasons: dict[str, int] = Field(default_factory=dict, description="all quarantined rows so far, by reason")
    quarantined_rows: int = 0
    lost_shards: int = 0


def read_errors(job: Job, after: str | None = None, limit: int = 100) -> Faults:
    """Read a page of faults.

    Args:
        job: from `open_job`.
        after: `next_cursor` of the page before; None: from the beginning.
        limit: most entries of the page.
    """
    section, index = (int(part) for part in after.split(".")) if after else (0, -1)
    calibration = job.read_calibration()
    lost = () if calibration is None else calibration.lost
    reasons, entries = _quarantined(job, section)
    ordered = itertools.chain(_lost_entries(lost), entries)
    later = (entry for entry in ordered if entry[:2] > (section, index))
    page = list(itertools.islice(later, limit + 1))
    has_more = len(page) > limit
    return Faults(
        data=[fault for _, _, fault in page[:limit]],
        has_more=has_more,
        next_cursor="{}.{}".format(*page[limit - 1][:2]) if has_more else None,
        reasons=dict(sorted(reasons.items())),
        quarantined_rows=reasons.total(),
        lost_shards=len(lost),
    )


def _lost_entries(lost: tuple[LostShard, ...]) -> Iterator[Entry]:
    for index, shard in enumerate(lost):
        detail = _shorten(shard.reason, _DETAIL_CHARACTERS)
        fault = Fault(kind="shard", shard=shard.number, stage=shard.stage, reason="lost_shard", detail=detail)
        yield _LOST, index, fault


def _quarantined(job: Job, section: int) -> tuple[Counter[str], Iterator[Entry]]:
    """Counts by reason, and the rows from a section on."""
    counts = count_tokens(job)
    manifest_uri = storage.join(job.root, MANIFEST)
    if not counts and storage.exists(manifest_uri):  # the work folder was removed: the dataset keeps a list of its own
        return Counter(read_manifest(job.root).quarantined), _listed_entries(job)
    numbers = [count.number for count in counts if count.reasons and count.number + _SHARDS >= section]
    found = Counter(bad.reason for bad in job.plan.damage) + count_reasons(counts)
    damage = ((_DAMAGE, index, _as_fault(bad, None)) for index, bad in enumerate(job.plan.damage))
    return found, itertools.chain(damage, _shard_entries(job, numbers))


def _shard_entries(job: Job, numbers: list[int]) -> Iterator[Entry]:
    for number in numbers:
        for index, bad in enumerate(job.tokens.receipt(number, TokenReceipt).quarantined):
            yield number + _SHARDS, index, _as_fault(bad, number)


def _listed_entries(job: Job) -> Iterator[Entry]:
    uri = storage.join(job.root, QUARANTINE)
    if storage.exists(uri):
        with storage.open_read(uri) as lines:
            for index, line in enumerate(lines):
                yield _DAMAGE, index, _as_fault(BadRow.model_validate_json(line), None)


def _as_fault(bad: BadRow, shard: int | None) -> Fault:
    return Fault(
        kind="row",
        shard=shard,
        file=_shorten(bad.file, _FILE_CHARACTERS),
        row=bad.row,
        offset=bad.offset,
        reason=bad.reason,
        detail=_shorten(bad.detail, _DETAIL_CHARACTERS),
    )


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
