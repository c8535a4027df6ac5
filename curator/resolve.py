"""Which models and which tokenizer a spec means, exactly: every `auto` resolved, every mistake told by its path.

Runs before any work starts and loads no weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field

from curator import storage
from curator.data import ModelConfig, ModelIdentity, StrictModel
from curator.errors import CuratorError, SpecError
from curator.scorers import ScorerConfig
from curator.spec import CurationSpec
from curator.tokens.tokenizer import Tokenizer, load_tokenizer
from curator.tokens.windows import plan_windows


class TokenizerIdentity(StrictModel):
    """The dataset's tokenizer, resolved."""

    source: str
    revision: str | None
    fingerprint: str
    bos_id: int | None
    eos_id: int | None = Field(description="appended to each document; null when tokens.eos is off")


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn an error about something that the spec names into a SpecError with the path to it."""
    try:
        yield
    except SpecError:
        raise
    except CuratorError as error:
        raise SpecError(f"{path}: {error}") from error


def resolve_models(spec: CurationSpec) -> tuple[Tokenizer, TokenizerIdentity, dict[str, ModelIdentity]]:
    """Identify every model, and see which of them have the dataset's tokenizer.

    A model with another one is scored on its own tokens and projected: its identity says so.
    """
    models: dict[str, ModelIdentity] = {}
    for name, config in spec.models.items():
        with explained(f"models.{name}"):
            models[name] = config.identify()
    tokenizer, identity = _dataset_tokenizer(spec)
    for name, config in spec.models.items():
        own = None if name == spec.tokenizer_model() else _own_tokenizer(name, config, spec, identity)
        has_bos = (own or tokenizer).bos_id is not None
        changes = {
            "left_context": _left_context(name, config, models[name].context, has_bos),
            "tokenizer_fingerprint": None if own is None else own.fingerprint,
        }
        models[name] = models[name].model_copy(update=changes)
    return tokenizer, identity, models


def _own_tokenizer(name: str, config: ScorerConfig, spec: CurationSpec, dataset: TokenizerIdentity) -> Tokenizer | None:
    """The model's tokenizer if it is not the dataset's, which its scores can then be projected from."""
    with explained(f"models.{name}"):
        theirs = load_tokenizer(config.tokenizer_source(), config.revision, spec.tokens)
    if theirs.fingerprint == dataset.fingerprint:
        return None
    if config.features:
        raise SpecError(
            f"models.{name}.features: {list(config.features)} of a model whose tokenizer (fingerprint "
            f"{theirs.fingerprint}) is not the dataset's ({dataset.source}, {dataset.fingerprint}); only log-probs can "
            "be projected across tokenizers: remove the features, or name this model's tokenizer in tokens.tokenizer"
        )
    return theirs


def _left_context(name: str, config: ModelConfig, context: int, has_bos: bool) -> int:
    """The left context as set, else the default, which gives way to a small window."""
    chosen = (
        config.left_context if "left_context" in config.model_fields_set else min(config.left_context, context // 2)
    )
    try:
        plan_windows(1, context, chosen, has_bos)
    except SpecError as error:
        raise SpecError(f"models.{name}.{error}") from error
    return chosen


def _dataset_tokenizer(spec: CurationSpec) -> tuple[Tokenizer, TokenizerIdentity]:
    name = spec.tokenizer_model()
    if name is None:
        path, source, revision = "tokens.tokenizer", spec.tokens.tokenizer or "", None
    else:
        config = spec.models[name]
        path, source, revision = f"models.{name}", config.tokenizer_source(), config.revision
    with explained(path):
        tokenizer = load_tokenizer(source, revision, spec.tokens)
    return tokenizer, TokenizerIdentity(
        source=storage.absolute(source) if storage.exists(storage.absolute(source)) else source,
        revision=revision,
        fingerprint=tokenizer.fingerprint,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id if tokenizer.appends_eos else None,
    )
