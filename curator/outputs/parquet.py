"""Parquet: weights joined to the text, in files that `datasets` and other readers open with no code of ours.

Invariant: in every row, `labels` is `input_ids` with -100 exactly where the weight is 0.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from curator.data import FloatArray, StrictModel
from curator.errors import OutputError
from curator.tables import IGNORED_LABEL, LOGPROBS_PREFIX, REQUIRED_COLUMNS, curated_schema, flat, list_array


class ParquetOutput(StrictModel):
    """A folder with `curated/*.parquet`, a manifest, a dataset card and a report."""

    kind: Literal["parquet"] = "parquet"
    uri: str = Field(min_length=1, description="the output folder: a path, or a URI that fsspec knows")
    columns: Literal["all"] | tuple[str, ...] = Field(
        default="all", description=f"curated columns to publish; {', '.join(REQUIRED_COLUMNS)} are always there"
    )

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: str | tuple[str, ...]) -> str | tuple[str, ...]:
        twice = sorted({name for name in columns if columns.count(name) > 1}) if isinstance(columns, tuple) else []
        if twice:
            raise ValueError(f"{twice} named more than once; name each column once")
        return columns

    def table_schema(self, carried: pa.Schema, models: Sequence[str]) -> pa.Schema:
        """Columns of a published file; raises OutputError naming a column that this data set cannot have."""
        return curated_schema(carried, models, self.columns)


def build_rows(
    schema: pa.Schema,
    tokens: pa.Table,
    logprobs: Mapping[str, pa.ChunkedArray | pa.Array],
    weights_T: FloatArray,
    scale: float = 1.0,
) -> pa.Table:
    """Join weights and log-probs to rows of a tokens file.

    Args:
        schema: the published columns, from `ParquetOutput.table_schema`.
        tokens: rows of a tokens file.
        logprobs: by model, the same rows' column `logprobs` of its score file.
        weights_T: weights of the rows' tokens laid end to end, shape (T,), before normalisation.
        scale: the data set's normalisation; kept weights average 1 after it.

    Returns:
        One table with exactly the columns of `schema`, in its order.

    Raises:
        OutputError: weights or log-probs are not aligned with the rows.
    """
    ids_T, offsets = flat(tokens["input_ids"])
    if weights_T.shape != ids_T.shape:
        raise OutputError(f"{weights_T.shape} weights for {ids_T.shape} tokens; weigh the same rows that are published")
    weights_T = (weights_T * np.float32(scale)).astype(np.float32, copy=False)
    ours: dict[str, pa.ChunkedArray | pa.Array] = {}
    for field in schema:
        if field.name == "labels":
            ours["labels"] = list_array(np.where(weights_T == 0, np.int32(IGNORED_LABEL), ids_T), offsets)
        elif field.name == "token_weights":
            ours["token_weights"] = list_array(weights_T, offsets)
        elif field.name.startswith(LOGPROBS_PREFIX):
            model = field.name.removeprefix(LOGPROBS_PREFIX)
            ours[field.name] = _aligned(logprobs, model, offsets)
        else:
            ours[field.name] = tokens[field.name]
    return pa.table(ours, schema=schema)


def _aligned(
    logprobs: Mapping[str, pa.ChunkedArray | pa.Array], model: str, offsets: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> pa.ChunkedArray | pa.Array:
    if model not in logprobs:
        raise OutputError(f"no log-probs of model '{model}' for {LOGPROBS_PREFIX}{model}; there are {sorted(logprobs)}")
    if not np.array_equal(flat(logprobs[model])[1], offsets):
        raise OutputError(f"the log-probs of model '{model}' have other lengths than the tokens; score the shard again")
    return logprobs[model]
