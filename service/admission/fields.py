"""Every text that a spec can hold, with what it means.

`MEANINGS` says it for each field that takes free text; choices from a fixed list (`Literal`) need no entry. The walk
goes over what was sent, not over what was parsed, guided by the configs' own types: so places are judged even in a spec
that has other faults, and a config added to a plug-in folder is met without a change here.

Invariant: a text in a field without an entry has the meaning `unknown`, and a test names every such field.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from curator.corpora.fields import RowFields
from curator.corpora.hub import HubCorpus
from curator.corpora.jsonl import JsonlCorpus
from curator.corpora.parquet import ParquetCorpus
from curator.corpora.text import TextCorpus
from curator.data import ModelConfig
from curator.outputs.parquet import ParquetOutput
from curator.policies.excess_loss import ExcessLoss
from curator.policies.loss import Loss
from curator.policies.noise import Noise
from curator.policies.threshold import Threshold
from curator.scorers import BigramModel, OpenAIModel
from curator.scorers.openai import OpenAIArguments
from curator.spec import CurationSpec, RunConfig
from curator.tokens.tokenizer import TokensConfig
from curator.training.reference.spec import LoraOptions, TrainRun, TrainSpec

Meaning = Literal[
    "text",  # a name or a label: opens nothing
    "revision",  # judged with the model or data set beside it
    "files",  # a file or glob to read
    "data_set",  # a hub data set, a folder or a builder
    "data_files",  # files of a data set
    "curated",  # the folder of a curated dataset
    "output",  # a folder to write
    "reference",  # a folder to write, made in another one beside it
    "model",
    "bigram_model",
    "served_model",  # a server's name for a model, and where its tokenizer is unless that is named
    "tokenizer",
    "url",
    "key_variable",
    "cluster",
    "engine_argument",  # a key of engine_args that its config does not list
    "unknown",
]

MEANINGS: Mapping[tuple[type[BaseModel], str], Meaning] = {
    (CurationSpec, "name"): "text",
    (CurationSpec, "work"): "output",
    (RunConfig, "address"): "cluster",
    (TokensConfig, "tokenizer"): "tokenizer",
    (ParquetOutput, "uri"): "output",
    (ParquetOutput, "columns"): "text",
    (TrainSpec, "base"): "model",
    (TrainSpec, "revision"): "revision",
    (TrainSpec, "dataset"): "curated",
    (TrainSpec, "output"): "reference",
    (TrainRun, "address"): "cluster",
    (LoraOptions, "target_modules"): "text",
    **{(RowFields, name): "text" for name in ("text_field", "source_field", "id_field", "columns")},
    (JsonlCorpus, "uri"): "files",
    (ParquetCorpus, "uri"): "files",
    (TextCorpus, "uri"): "files",
    (TextCorpus, "source"): "text",
    (TextCorpus, "columns"): "text",
    (HubCorpus, "path"): "data_set",
    (HubCorpus, "name"): "text",
    (HubCorpus, "split_name"): "text",
    (HubCorpus, "revision"): "revision",
    (HubCorpus, "data_files"): "data_files",
    (ModelConfig, "model"): "model",
    (ModelConfig, "revision"): "revision",
    (ModelConfig, "url"): "url",
    (ModelConfig, "api_key_env"): "key_variable",
    (BigramModel, "model"): "bigram_model",
    (OpenAIModel, "model"): "served_model",
    (OpenAIArguments, "tokenizer"): "tokenizer",
    **{(policy, name): "text" for policy in (ExcessLoss, Noise, Threshold) for name in ("reference", "base")},
    (Loss, "model"): "text",
    (Threshold, "model"): "text",
}

Keys = tuple[str | int, ...]
"""Keys and indices that lead to a value."""


@dataclass(frozen=True)
class Found:
    """One text of a spec.

    Attributes:
        path: where it is.
        meaning: what it is.
        value: as sent; any JSON value for an engine argument, else a text.
        beside: the object that holds it.
        above: the object that holds that one.
    """

    path: Keys
    meaning: Meaning
    value: Any
    beside: Mapping[str, Any]
    above: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The path as a user writes it."""
        return ".".join(str(part) for part in self.path)


def find_texts(config: type[BaseModel], sent: Any) -> Iterator[Found]:
    """Every text of a mapping that is to become a `config`; what has another form than it should is passed over."""
    yield from _walk(config, sent, (), {})


def takes_text(annotation: Any) -> bool:
    """Whether a field of this type can hold a text that is not one of a fixed list; keys of mappings aside."""
    if get_origin(annotation) is Literal:
        return False
    arguments = get_args(annotation)[1:] if get_origin(annotation) is dict else get_args(annotation)
    return annotation in (str, bytes, Any, object, dict, list) or any(map(takes_text, arguments))


def config_classes(annotation: Any) -> list[type[BaseModel]]:
    """The configs that a field of this type can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in config_classes(argument)]


def meaning_of(config: type[BaseModel], name: str) -> Meaning:
    """What a field's text means: its own entry, or that of the base class which declares it."""
    for base in config.__mro__:
        if (base, name) in MEANINGS:
            return MEANINGS[base, name]
    return "unknown"


def _walk(config: type[BaseModel], sent: Any, path: Keys, above: Mapping[str, Any]) -> Iterator[Found]:
    if not isinstance(sent, dict):
        return
    known: set[str] = set()
    for name, field in config.model_fields.items():
        for key in {name, field.alias or name} & sent.keys():
            known.add(key)
            yield from _look(config, name, field, sent[key], (*path, key), sent, above)
    if config.model_config.get("extra") == "allow":
        for key in sent.keys() - known:
            yield Found((*path, key), "engine_argument", sent[key], sent, above)


def _look(
    config: type[BaseModel],
    name: str,
    field: FieldInfo,
    value: Any,
    path: Keys,
    beside: Mapping[str, Any],
    above: Mapping[str, Any],
) -> Iterator[Found]:
    nested = config_classes(field.annotation)
    if nested:
        many = _is_mapping(field.annotation) and isinstance(value, dict)
        for key, part in value.items() if many else [(None, value)]:
            chosen = _choose(nested, part)
            if chosen is not None:
                yield from _walk(chosen, part, path if key is None else (*path, key), beside)
    if takes_text(field.annotation):
        meaning = meaning_of(config, name)
        for place, text in _texts(value, path):
            yield Found(place, meaning, text, beside, above)


def _texts(value: Any, path: Keys) -> Iterator[tuple[Keys, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list | tuple | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, (*path, key))


def _is_mapping(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(map(_is_mapping, get_args(annotation)))
    return annotation is dict or get_origin(annotation) is dict


def _choose(configs: list[type[BaseModel]], sent: Any) -> type[BaseModel] | None:
    """The member of a union that `kind` or `engine` names; None if none is named, which parsing will say."""
    if len(configs) == 1:
        return configs[0]
    for config in configs:
        for tag in ("kind", "engine"):
            field = config.model_fields.get(tag)
            if field is not None and isinstance(sent, dict) and sent.get(tag) in get_args(field.annotation):
                return config
    return None
