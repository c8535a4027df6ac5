"""Every text that any config can hold is known for what it is; a new one fails here until it has a meaning."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from curator.data import StrictModel
from curator.spec import CurationSpec
from curator.training.reference.spec import TrainSpec
from service.admission.fields import config_classes, find_texts, meaning_of, takes_text
from service.admission.models import VLLM_ARGUMENTS


def every_config(config: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    if config not in seen:
        seen.add(config)
        for field in config.model_fields.values():
            for nested in config_classes(field.annotation):
                every_config(nested, seen)
    return seen


CONFIGS = every_config(TrainSpec, every_config(CurationSpec, set()))


def test_every_text_of_every_config_has_a_meaning() -> None:
    """Fails when a config gets a field that may be a place: say in service.admission.fields what it means."""
    texts = [
        (config, name)
        for config in CONFIGS
        for name, field in config.model_fields.items()
        if takes_text(field.annotation)
    ]
    assert len(texts) > 40
    assert [f"{config.__name__}.{name}" for config, name in texts if meaning_of(config, name) == "unknown"] == []


def test_only_vllm_takes_arguments_that_its_config_does_not_list() -> None:
    assert [config.__name__ for config in CONFIGS if config.model_config.get("extra") != "forbid"] == ["VllmArguments"]


class _NewCorpus(StrictModel):
    kind: Literal["new"] = "new"
    mirror: str
    limits: tuple[str | None, ...] = ()
    options: dict[str, list[str]] = Field(default_factory=dict)


class _NewSpec(StrictModel):
    corpus: _NewCorpus
    parts: dict[str, _NewCorpus] = Field(default_factory=dict)


def test_a_field_that_nobody_has_classified_is_found() -> None:
    corpus = {"mirror": "/x", "limits": ["a", None], "options": {"from": ["/z"]}}
    found = {text.label: text.meaning for text in find_texts(_NewSpec, {"corpus": corpus, "parts": {"p": corpus}})}
    inner = ("mirror", "limits.0", "options.from.0")
    assert found == dict.fromkeys([f"{outer}.{name}" for outer in ("corpus", "parts.p") for name in inner], "unknown")


def test_texts_are_found_under_either_name_of_a_field() -> None:
    for key in ("split", "split_name"):
        sent = {"corpus": {"kind": "hub", "path": "org/texts", key: "train"}}
        assert f"corpus.{key}" in [text.label for text in find_texts(CurationSpec, sent)]


@pytest.mark.slow
def test_every_allowed_argument_is_one_of_vllm() -> None:
    arguments = pytest.importorskip("vllm.engine.arg_utils")
    assert {name for name in VLLM_ARGUMENTS if name not in arguments.EngineArgs.__dataclass_fields__} == set()
