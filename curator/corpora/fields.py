"""The part of a corpus config that all formats with named fields share: which field of a row holds what."""

from collections import Counter

from pydantic import Field, field_validator

from curator.data import StrictModel

RESERVED_COLUMNS = frozenset({"doc_id", "source", "text", "input_ids", "token_bytes", "labels", "token_weights"})
RESERVED_PREFIX = "logprobs_"


class RowFields(StrictModel):
    """Which field of a row holds what."""

    text_field: str = Field(default="text", min_length=1, description="field that holds the text")
    source_field: str | None = Field(default="source", description="field that names the row's source; null = none")
    id_field: str | None = Field(default=None, description="field that holds the id; null = `<relative path>:<row>`")
    columns: tuple[str, ...] = Field(default=(), description="fields carried to curated/ unchanged")
    max_row_bytes: int = Field(default=256_000_000, ge=1, description="longer rows are quarantined")

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        taken = [name for name in columns if name in RESERVED_COLUMNS or name.startswith(RESERVED_PREFIX)]
        if taken:
            raise ValueError(
                f"{taken} cannot be carried: curated/ has columns of its own with these names; leave them out "
                "(text, source and id are written anyway) or rename them in the corpus"
            )
        twice = sorted(name for name, count in Counter(columns).items() if count > 1)
        if twice:
            raise ValueError(f"{twice} are listed twice; list each column once")
        return columns

    def needed(self) -> tuple[str, ...]:
        """The fields that are read, each once."""
        special = [name for name in (self.text_field, self.source_field, self.id_field) if name is not None]
        return tuple(dict.fromkeys([*special, *self.columns]))
