"""The record of a finished training, `training.json`: what was trained on what, how it went, and how it ended.

Invariant: it can be published with the model: of a place on the machine that trained it, it holds the last part only.
A digest of the whole spec still tells two trainings apart whose places end alike, and one of the base's weight files
two bases of one name; a record from before that was written is taken for one of the base as it is now.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from curator.errors import OutputError
from curator.spec import differences
from curator.stored import StoredRecord, parse_record
from curator.training.reference.milestones import Evaluation, KeptCheckpoint
from curator.training.reference.spec import TrainSpec

RECORD = "training.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
_PLACES = ("dataset", "output", "uri", "data_files")
_MODELS_AND_DATA = ("base", "path", "tokenizer")
"""Places that may also be a name on a hub, which is no secret."""


class TrainResult(StoredRecord):
    """What was trained; the output's training.json holds it without folders (see `make_record`)."""

    output: str
    spec: TrainSpec
    spec_digest: str | None = Field(
        default=None, description="sha256 over what decides the weights, places in full; null in older records"
    )
    base_digest: str | None = Field(
        default=None, description="sha256 over the base's weight files, as in a manifest; null in older records"
    )
    base_revision: str | None = Field(default=None, description="commit of a base from the hub")
    data_digest: str = Field(description="sha256 over the token ids (and weights) of the good data")
    documents: int
    tokens: int = Field(description="of the good data, held-out part included")
    bad_rows: dict[str, int] = Field(description="rows that could not be learned, by reason")
    unweighted_rows: int = Field(default=0, description="documents of a curated dataset that keep no token")
    steps: int = Field(description="optimiser steps that were made")
    trained_tokens: int = Field(description="tokens seen in all steps, repeated ones counted again")
    seconds: float = Field(description="of training, over all attempts; what was done again is counted once")
    loss_before: float | None = Field(description="mean loss of the held-out tokens under the base, in nats")
    loss_after: float | None = Field(description="the same under the reference")
    published_step: int | None = Field(default=None, description="step whose weights these are; null = the last")
    ended_by: Literal["epochs", "max_steps", "max_minutes", "patience"] | None = Field(
        default=None, description="what ended the training; null in records of older versions"
    )
    evaluations: tuple[Evaluation, ...] = Field(default=(), description="measurements along the way (eval_every)")
    checkpoints: tuple[KeptCheckpoint, ...] = Field(default=(), description="copies that were kept along the way")
    resumed_at: tuple[int, ...] = Field(default=(), description="steps at which an interrupted training went on")
    processes: int = Field(default=1, description="processes that shared each step, at the end")


def make_record(result: TrainResult) -> str:
    """The text of training.json."""
    content = portable(result.model_dump(mode="json"))
    content["spec"]["run"]["address"] = None
    content["spec_digest"] = _digest(result.spec)
    return json.dumps(content, indent=1, ensure_ascii=False)


def read_finished(output: Path, spec: TrainSpec, base_digest: str, data_digest: str) -> TrainResult:
    """The result that is there, if it is of the same spec, base and data; raises OutputError otherwise."""
    remedy = "name another output or remove it"
    try:
        found = parse_record(TrainResult, (output / RECORD).read_bytes(), repr(str(output / RECORD)))
    except ValidationError as error:
        raise OutputError(f"{str(output / RECORD)!r} is not a record of this version; {remedy}") from error
    changed = _changes(found, spec)
    if found.base_digest not in (None, base_digest):
        changed.append(f"base {spec.base!r} has other weights now")
    if found.data_digest != data_digest and not changed:
        changed = ["the good data has other tokens"]
    if changed:
        raise OutputError(f"{str(output)!r} holds a reference of another training ({'; '.join(changed)}); {remedy}")
    return found.model_copy(update={"output": str(output), "spec": spec, "spec_digest": None})


def _changes(found: TrainResult, spec: TrainSpec) -> list[str]:
    if found.spec_digest is None:
        return differences(found.spec.decisive(), spec.decisive())
    if found.spec_digest == _digest(spec):
        return []
    changed = differences(portable(found.spec.decisive()), portable(spec.decisive()))
    return changed or ["base, data or tokenizer lie elsewhere, under the same last name"]


def _digest(spec: TrainSpec) -> str:
    return hashlib.sha256(json.dumps(spec.decisive(), sort_keys=True).encode()).hexdigest()


def portable(value: Any, name: str = "") -> Any:
    """A spec or a record without folders."""
    if isinstance(value, dict):
        return {key: portable(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, name) for item in value]
    if not isinstance(value, str) or name not in (*_PLACES, *_MODELS_AND_DATA):
        return value
    return name_or_last_part(value) if name in _MODELS_AND_DATA else last_part(value)


def name_or_last_part(place: str) -> str:
    """A hub name as it is; of a path, the end."""
    return place if is_hub_name(place) else last_part(place)


def last_part(place: str) -> str:
    """The end of a path or URI."""
    return place.rstrip("/").rpartition("/")[2] or "."


def is_hub_name(name: str) -> bool:
    """Whether this is `org/name` on a hub, and no path that is there."""
    return bool(_HUB_NAME.fullmatch(name)) and "/" in name and not Path(name).exists()
