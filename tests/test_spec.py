"""The spec: the contract's example is valid, every mistake is told with its path, its value and a remedy."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator.errors import SpecError
from curator.spec import CurationSpec, load_spec, parse_spec, stage_keys

SPEC: dict[str, Any] = {
    "name": "math-web",
    "corpus": {"kind": "jsonl", "uri": "corpus/*.jsonl", "text_field": "text", "source_field": "source"},
    "models": {
        "reference": {"engine": "bigram", "left_context": 512, "features": []},
        "base": {"engine": "bigram", "model": "unigram"},
    },
    "policy": {"kind": "excess_loss", "keep": 0.6, "scope": "corpus", "soft": None},
    "tokens": {"tokenizer": None, "bos": "auto", "eos": False},
    "output": {"uri": "curated", "kind": "parquet", "columns": "all"},
    "work": None,
    "run": {"workers": "auto", "threads_per_worker": 1, "retries": 3, "address": None},
    "shard_tokens": 4000000,
    "on_bad_row": "quarantine",
    "on_bad_shard": "fail",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example with the value at a dotted path replaced, or removed if `...`."""
    spec = copy.deepcopy(SPEC)
    *parents, last = path.split(".")
    place = spec
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return spec


def test_the_contract_is_valid_in_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(SPEC))
    (tmp_path / "a.json").write_text(json.dumps(SPEC))
    assert load_spec(str(tmp_path / "a.yaml")) == load_spec(str(tmp_path / "a.json")) == parse_spec(SPEC)


def test_defaults_are_those_of_the_contract() -> None:
    short = {name: SPEC[name] for name in ("name", "corpus", "models", "policy", "output")}
    assert parse_spec(short) == parse_spec(SPEC)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("polcy", {}, r"polcy: unknown key; remove it or check its spelling"),
        ("corpus.urii", "x", r"corpus\.urii: unknown key"),
        ("models.base.modle", "x", r"models\.base\.modle: unknown key"),
        ("corpus.kind", "csv", r"corpus\.kind: 'csv' is not one of .*'jsonl'.*'parquet'"),
        ("models.base.engine", "magic", r"models\.base\.engine: 'magic' is not one of .*'bigram'.*'transformers'"),
        ("policy.kind", "best", r"policy\.kind: 'best' is not one of .*'excess_loss'.*'random'"),
        ("policy.keep", 1.5, r"policy\.keep: .*less than or equal to 1.*1\.5"),
        ("corpus.uri", ..., r"corpus\.uri: missing; add it"),
        ("corpus", {"uri": "x"}, r"corpus: has no 'kind'; set it"),
        ("models.base", ..., r"policy: 'excess_loss' needs a model named 'base', and models has \['reference'\]"),
        ("models.Base", {"engine": "bigram"}, r"models\.Base"),
        ("run.workers", 0, r"run: workers must be 'auto' or at least 1, got 0"),
        ("on_bad_row", "ignore", r"on_bad_row: .*'quarantine' or 'fail'.*'ignore'"),
        ("shard_tokens", "many", r"shard_tokens: .*'many'"),
        ("name", "", r"name: "),
    ],
)
def test_a_mistake_is_told_by_path_value_and_remedy(path: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(changed(path, value))


def test_all_mistakes_are_told_at_once() -> None:
    spec = changed("policy.keep", 7)
    spec["shard_tokens"] = 0
    with pytest.raises(SpecError, match="2 faults") as caught:
        parse_spec(spec)
    assert "policy.keep" in str(caught.value) and "shard_tokens" in str(caught.value)


def test_models_may_be_absent_when_the_policy_needs_none() -> None:
    spec = changed("policy", {"kind": "random", "keep": 0.5})
    spec["models"] = {}
    with pytest.raises(SpecError, match=r"tokens\.tokenizer: null with no models"):
        parse_spec(spec)
    spec["tokens"]["tokenizer"] = "some/tokenizer"
    assert parse_spec(spec).models == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("name: a\nname: b\n", "'name' appears twice"),
        ("!!python/object/apply:os.system ['true']", "neither YAML nor JSON"),
        ("- a\n- b\n", "holds a list"),
        ("a: [", "neither YAML nor JSON"),
        ("[" * 5000, "neither YAML nor JSON"),
    ],
)
def test_yaml_never_runs_code_and_bad_yaml_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_spec(str(tmp_path / "spec.yaml"))


def test_a_missing_spec_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml"):
        load_spec(str(tmp_path / "nowhere.yaml"))


def test_stage_keys_change_exactly_with_what_the_stage_depends_on() -> None:
    def keys(path: str, value: Any) -> set[str]:
        old, new = stage_keys(parse_spec(SPEC)), stage_keys(parse_spec(changed(path, value)))
        return {name for name in old if old[name] != new[name]}

    assert keys("run.workers", 2) == set()
    assert keys("on_bad_row", "fail") == set()
    assert keys("work", "elsewhere") == set()
    assert keys("output.uri", "elsewhere") == set()
    assert keys("policy.keep", 0.7) == {"policy"}
    assert keys("models.base.left_context", 100) == {"models"}
    assert keys("corpus.uri", "other/*.jsonl") == {"corpus"}
    assert keys("tokens.eos", True) == {"tokens"}
    assert keys("shard_tokens", 5) == {"shard_tokens"}


def test_the_schema_is_valid_json_schema_and_accepts_the_contract() -> None:
    import jsonschema

    schema = CurationSpec.model_json_schema()
    jsonschema.validators.validator_for(schema).check_schema(schema)
    jsonschema.validate(SPEC, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed("polcy", 1), schema)
