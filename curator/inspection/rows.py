"""One row group of a published shard, with the policy's scores and the cut that held for each row.

A column that the dataset does not publish (`output.columns`, or weights alone) is taken from the work folder, as long
as that is there. A row group that holds one enormous document is passed over: looking must stay cheap.

Shapes: T tokens of the rows end to end, D rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator import tables
from curator.data import Cut, FloatArray, Policy
from curator.errors import StorageError
from curator.job import Job
from curator.policies import policy_features
from curator.policies.noise import REPEATED
from curator.policies.weights import UNIFORM
from curator.report.statistics import OffsetArray, sum_by_document
from curator.selection.pieces import Piece, score_piece

MOST_TOKENS = 4 * tables.ROW_GROUP_TOKENS
MOST_TEXT_BYTES = 32 << 20
"""What a row group may hold to be shown; writers close theirs at the first row past `ROW_GROUP_TOKENS`."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one shard.

    Attributes:
        shard: the shard's number.
        first_row: number in its shard of the first row.
        table: the columns that were asked for, as far as they exist.
        policy: what the dataset was selected by.
        cuts: by scope key.
    """

    shard: int
    first_row: int
    table: pa.Table
    policy: Policy
    cuts: Mapping[str, Cut]

    @cached_property
    def offsets(self) -> OffsetArray:
        """Where rows begin in the flat arrays, shape (D+1,)."""
        return tables.flat(self.table.column("token_weights"))[1]

    @cached_property
    def weights_T(self) -> FloatArray:
        """Token weights, shape (T,)."""
        return tables.flat(self.table.column("token_weights"))[0]

    @cached_property
    def sources(self) -> list[str]:
        """Sources, length D; "" where the column is gone."""
        names = self.table.column_names
        return self.table.column("source").to_pylist() if "source" in names else [""] * self.table.num_rows

    @property
    def logprobs(self) -> dict[str, FloatArray]:
        """Log-probs by model, shape (T,) each."""
        prefix = tables.LOGPROBS_PREFIX
        names = [name for name in self.table.column_names if name.startswith(prefix)]
        return {name.removeprefix(prefix): tables.flat(self.table.column(name))[0] for name in names}

    @cached_property
    def score_T(self) -> FloatArray | None:
        """The policy's scores as the cuts were taken, shape (T,); None where what it reads is gone."""
        needed = stored_columns(self.policy)
        if not set(needed) <= set(self.table.column_names):
            return None
        columns = {name: tables.flat(self.table.column(name))[0] for name in needed}
        return score_piece(self.policy, Piece(columns, self.offsets, self.sources, self.shard, self.first_row))

    @cached_property
    def scored_T(self) -> npt.NDArray[np.bool_]:
        """Which tokens have a score, shape (T,): all but the first of each row where the scores are gone."""
        if self.score_T is not None:
            return ~np.isnan(self.score_T)
        scored_T = np.ones(len(self.weights_T), bool)
        scored_T[self.offsets[:-1][np.diff(self.offsets) > 0]] = False
        return scored_T

    @cached_property
    def cut_D(self) -> npt.NDArray[np.float64]:
        """The cut that held for each row, shape (D,); NaN where there is none."""
        if self.policy.keep is not None and self.policy.scope == "document":
            return self._document_cuts(self.policy.keep)
        if self.policy.scope == "source" and self.policy.keep is not None:
            found = [self.cuts.get(source) for source in self.sources]
            return np.array([np.nan if cut is None else cut.value for cut in found], np.float64)
        value = overall_cut(self.policy, self.cuts, self.shard)
        return np.full(self.table.num_rows, np.nan if value is None else value)

    def _document_cuts(self, keep: float) -> npt.NDArray[np.float64]:
        """The lowest score that is kept of each row: a document's cut is taken anew and stored nowhere."""
        cut_D = np.full(self.table.num_rows, np.nan)
        if self.score_T is None:
            return cut_D
        for row, score_T in enumerate(np.split(self.score_T, self.offsets[1:-1])):
            falling_T = np.sort(score_T[~np.isnan(score_T)])[::-1]
            if len(falling_T):
                cut_D[row] = falling_T[max(round(keep * len(falling_T)) - 1, 0)]
        return cut_D

    def sum_rows(self, values_T: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """Sum flat token values over each row, shape (D,)."""
        return sum_by_document(values_T, self.offsets)


def stored_columns(policy: Policy) -> list[str]:
    """Columns that the policy's scores are made of; those that selection makes itself, by what it makes them of."""
    made_of = {UNIFORM: [], REPEATED: ["input_ids"]}
    return [name for column in policy.columns() for name in made_of.get(column, [column])]


def overall_cut(policy: Policy, cuts: Mapping[str, Cut], shard: int | None = None) -> float | None:
    """The one cut of the corpus, of a shard, or of a policy with a bound of its own; None where there is none."""
    if policy.keep is None:
        bounds = getattr(policy, "minimum", None), getattr(policy, "maximum", None)
        return next((bound for bound in bounds if bound is not None), None)
    key = "" if policy.scope == "corpus" else f"{shard:05d}" if policy.scope == "shard" and shard is not None else None
    cut = None if key is None else cuts.get(key)
    return None if cut is None else cut.value


# ---------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class OpenShard:
    """A shard's files, opened: for each column of the dataset the file that holds it and its name there."""

    number: int
    job: Job
    cuts: Mapping[str, Cut]
    places: Mapping[str, tuple[pq.ParquetFile, str]]
    main: pq.ParquetFile

    def groups(self, columns: Sequence[str]) -> list[int]:
        """Numbers of the row groups that are small enough to look at."""
        return [number for number in range(self.main.metadata.num_row_groups) if self._is_small(number, columns)]

    def _is_small(self, group: int, columns: Sequence[str]) -> bool:
        tokens = _column_chunk(self.main, group, "token_weights").num_values
        if tokens > MOST_TOKENS:
            return False
        if "text" not in columns or "text" not in self.places:
            return True
        file, name = self.places["text"]
        return bool(_column_chunk(file, group, name).total_uncompressed_size <= MOST_TEXT_BYTES)

    def may_hold(self, group: int, source: str) -> bool:
        """Whether rows of this source can be in a row group, as its footer says."""
        if "source" not in self.places:
            return True
        file, name = self.places["source"]
        statistics = _column_chunk(file, group, name).statistics
        return statistics is None or not statistics.has_min_max or statistics.min <= source <= statistics.max

    def read(self, group: int, columns: Sequence[str]) -> Rows:
        """Read some columns of a row group, and what the policy reads; those that are nowhere are left out."""
        wanted = dict.fromkeys([*columns, *stored_columns(self.job.spec.policy)])
        found = [name for name in wanted if name in self.places]
        parts: dict[str, pa.ChunkedArray] = {}
        for file in dict.fromkeys(self.places[name][0] for name in found):
            names = {self.places[name][1]: name for name in found if self.places[name][0] is file}
            table = file.read_row_group(group, columns=list(names))
            parts |= {name: table.column(inner) for inner, name in names.items()}
        first_row = sum(self.main.metadata.row_group(number).num_rows for number in range(group))
        return Rows(self.number, first_row, pa.table(parts), self.job.spec.policy, self.cuts)


@contextmanager
def open_shard(job: Job, cuts: Mapping[str, Cut], number: int) -> Iterator[OpenShard]:
    """Open a published shard, and the files of the work folder that hold what it does not publish.

    Raises:
        StorageError: the shard is gone or damaged, or the work folder's files are of other rows.
    """
    logprobs = {tables.LOGPROBS_PREFIX + name: name for name in job.plan.models}
    features = policy_features(job.spec.policy)
    wanted = ["doc_id", "source", "text", "input_ids", "token_bytes", "token_weights", *logprobs, *features]
    with ExitStack() as files:
        main = files.enter_context(job.curated.open(number))
        places = {name: (main, name) for name in wanted if name in main.schema_arrow.names}
        missing = [name for name in wanted if name not in places]
        if {"source", "text", "input_ids", "token_bytes"} & set(missing) and number in job.tokens.published():
            tokens = files.enter_context(job.tokens.open(number))
            places |= {name: (tokens, name) for name in missing if name in tokens.schema_arrow.names}
        scores = {column: (model, "logprobs") for column, model in logprobs.items()} | features
        for column, (model, name) in scores.items():
            if column in missing and number in job.scores(model).published():
                places[column] = files.enter_context(job.scores(model).open(number)), name
        if any(_row_counts(file) != _row_counts(main) for file, _ in places.values()):
            raise StorageError(f"shard {number:05d}: tokens, scores and weights have other row groups; run it again")
        yield OpenShard(number, job, cuts, places, main)


def _row_counts(file: pq.ParquetFile) -> list[int]:
    metadata = file.metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _column_chunk(file: pq.ParquetFile, group: int, name: str) -> pq.ColumnChunkMetaData:
    row_group = file.metadata.row_group(group)
    chunks = (row_group.column(index) for index in range(row_group.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema in (name, f"{name}.list.element"))


def spread(items: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the items, evenly spread from the first on."""
    return [items[index * len(items) // count] for index in range(count)] if len(items) > count else list(items)
