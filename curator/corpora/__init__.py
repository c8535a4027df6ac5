"""Corpus readers, one file per format; `CorpusConfig` is the union that a spec's `corpus` is validated against.

To add a format: one file that fills the `Corpus` protocol of curator.data, and its class on one line below.
"""

from typing import Annotated

from pydantic import Field

from curator.corpora.hub import HubCorpus
from curator.corpora.jsonl import JsonlCorpus
from curator.corpora.parquet import ParquetCorpus
from curator.corpora.text import TextCorpus

CorpusConfig = Annotated[
    JsonlCorpus
    | ParquetCorpus
    | TextCorpus
    | HubCorpus,
    Field(discriminator="kind"),
]  # fmt: skip
"""What the spec's `corpus` may be, told apart by `kind`."""
