"""The spec of a curation job: what a user writes, checked, and the keys that say which work can be reused.

A spec is facts and decisions. `stage_keys` gives each stage a digest over exactly the sections that its result depends
on: changing a policy changes only the `select` key, so no model runs again. `run`, `on_bad_row` and `on_bad_shard` say
how to work, not what comes out, and are in no key.
"""

import hashlib
import json
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from curator import storage
from curator.corpora import CorpusConfig
from curator.data import ModelName, StrictModel
from curator.errors import SpecError, StorageError
from curator.outputs import OutputConfig
from curator.policies import PolicyConfig, policy_features
from curator.scorers import ScorerConfig
from curator.tokens.tokenizer import TokensConfig

_MAX_SPEC_BYTES = 1 << 20


class RunConfig(StrictModel):
    """How to work; never part of a key."""

    workers: Literal["auto"] | int = Field(default="auto", description="actors per stage; auto = as many as fit")
    max_workers: int | None = Field(default=None, ge=1, description="most that workers: auto may come to")
    threads_per_worker: int = Field(default=1, ge=1, description="CPU threads of one actor")
    retries: int = Field(default=3, ge=0, description="further attempts for a shard that failed")
    address: str | None = Field(default=None, description="Ray cluster; null = RAY_ADDRESS, else a local one")

    @model_validator(mode="after")
    def _workers_positive(self) -> "RunConfig":
        if self.workers != "auto" and self.workers < 1:
            raise ValueError(f"workers must be 'auto' or at least 1, got {self.workers}")
        return self


class CurationSpec(StrictModel):
    """A whole curation job."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", description="the dataset's name")
    corpus: CorpusConfig
    models: dict[ModelName, ScorerConfig] = Field(default_factory=dict, description="engines by name")
    policy: PolicyConfig
    tokens: TokensConfig = TokensConfig()
    output: OutputConfig
    work: str | None = Field(default=None, description="where tokens and scores live; null = output.uri")
    run: RunConfig = RunConfig()
    shard_tokens: int = Field(default=4_000_000, ge=1, description="tokens per shard, about")
    on_bad_row: Literal["quarantine", "fail"] = "quarantine"
    on_bad_shard: Literal["fail", "quarantine"] = Field(
        default="fail",
        description="quarantine = do without it: for good, once the cuts are taken; till then tried again",
    )

    @model_validator(mode="after")
    def _references(self) -> "CurationSpec":
        for column in self.policy.columns():
            name = column.removeprefix("logprobs_")
            if column.startswith("logprobs_") and name not in self.models:
                raise ValueError(
                    f"policy: {self.policy.kind!r} needs a model named {name!r}, and models has "
                    f"{sorted(self.models) or 'none'}; set models.{name}, or use a policy that does not need it"
                )
        for column, (name, feature) in policy_features(self.policy).items():
            if name not in self.models or feature not in self.models[name].features:
                raise ValueError(
                    f"policy: {self.policy.kind!r} needs {column!r}; set models.{name}.features: [{feature}]"
                )
        for path, place in (("output.uri", self.output.uri), ("work", self.work or "")):
            if "\0" in place:
                raise ValueError(f"{path}: {place!r} holds a NUL character; choose another name")
        if not self.models and self.tokens.tokenizer is None:
            raise ValueError("tokens.tokenizer: null with no models; name a tokenizer or add models.reference")
        return self

    @property
    def work_root(self) -> str:
        """Absolute URI under which tokens and scores live."""
        return storage.absolute(self.work or self.output.uri)

    @property
    def output_root(self) -> str:
        """Absolute URI of the dataset."""
        return storage.absolute(self.output.uri)

    def tokenizer_model(self) -> str | None:
        """Name of the model whose tokenizer the dataset uses; None when `tokens.tokenizer` names one."""
        if self.tokens.tokenizer is not None:
            return None
        return "reference" if "reference" in self.models else next(iter(self.models))


def digest(value: Any) -> str:
    """First 16 hex digits of the sha256 of a value's canonical JSON: names folders and compares configurations."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stage_sections(spec: CurationSpec) -> dict[str, Any]:
    """The parts of a spec that decide what comes out, by stage; `output.uri` and `work` are places, not content."""
    content = spec.model_dump(mode="json")
    return {
        "corpus": content["corpus"],
        "shard_tokens": content["shard_tokens"],
        "tokens": content["tokens"],
        "models": content["models"],
        "policy": content["policy"],
        "output": {"kind": content["output"]["kind"], "columns": content["output"]["columns"]},
    }


def stage_keys(spec: CurationSpec) -> dict[str, Any]:
    """Digest of each section of `stage_sections`; models one by one."""
    sections = stage_sections(spec)
    keys: dict[str, Any] = {name: digest(section) for name, section in sections.items() if name != "models"}
    keys["models"] = {name: digest(model) for name, model in sections["models"].items()}
    return keys


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Paths at which two JSON values differ, with both values, for messages."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [f"{path}: {old!r} became {new!r}"]


# ------------------------------------------------------------------------------------------------ reading a spec


def load_spec(uri: str) -> CurationSpec:
    """Read a spec from a YAML or JSON file; raises SpecError that names every fault by its path."""
    return parse_spec(read_mapping(uri), uri)


def read_mapping(uri: str) -> dict[str, Any]:
    """Read one YAML or JSON mapping; no tags, no aliases, nothing is executed."""
    try:
        content = storage.read_bytes(uri)
    except (StorageError, FileNotFoundError) as error:
        raise SpecError(f"cannot read the file {uri!r}: {error}; check the path") from error
    if len(content) > _MAX_SPEC_BYTES:
        raise SpecError(f"{uri!r} has {len(content):,} bytes; a spec has at most {_MAX_SPEC_BYTES:,}")
    try:
        value = yaml.load(content, Loader=PlainLoader)  # nosec B506  # a SafeLoader, stricter
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{uri!r} is neither YAML nor JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(
            f"{uri!r} holds a {type(value).__name__}; a spec is a mapping with keys such as name and corpus"
        )
    return value


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases (a few bytes of them can expand to gigabytes) and without duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in a spec; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuse a key that comes twice."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key is a list or a mapping (line {key_node.start_mark.line + 1})")
            if key_node.value in seen:
                raise yaml.YAMLError(f"key {key_node.value!r} appears twice (line {key_node.start_mark.line + 1})")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def parse_spec(content: Any, origin: str = "spec") -> CurationSpec:
    """Check a mapping against `CurationSpec`; raises SpecError that names every fault by its path."""
    spec: CurationSpec = validate(TypeAdapter(CurationSpec), content, origin)
    return spec


def validate(adapter: TypeAdapter[Any], content: Any, origin: str) -> Any:
    """Validate, turning pydantic's errors into one SpecError with a line for each fault."""
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        lines = [_explain(fault, content) for fault in error.errors(include_url=False)]
        count = f"{len(lines)} faults" if len(lines) > 1 else "1 fault"
        raise SpecError(f"{origin}: {count}\n" + "\n".join(f"  {line}" for line in lines)) from error


def _explain(fault: Any, content: Any) -> str:
    """One fault as `path: problem, value; remedy`."""
    context, path = fault.get("ctx", {}), _user_path(fault["loc"], content)
    match fault["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key; remove it or check its spelling (`curator schema` lists the keys)"
        case "union_tag_invalid":
            tag = context["discriminator"].strip("'")
            return f"{path}.{tag}: {context['tag']!r} is not one of {context['expected_tags']}"
        case "union_tag_not_found":
            return f"{path}: has no {context['discriminator']}; set it to say which kind this is"
        case "missing":
            return f"{path}: missing; add it"
        case "value_error":
            message = str(context.get("error", fault["msg"]))
            return f"{path}: {message}" if path else message
    return f"{path}: {fault['msg']}, got {_shorten(fault['input'])}"


def _user_path(location: tuple[int | str, ...], content: Any) -> str:
    """The path as the user wrote it: pydantic puts a union's tag (`jsonl`) into it, the spec does not."""
    parts: list[str] = []
    for part in location:
        if isinstance(content, dict) and part not in content and part in (content.get("kind"), content.get("engine")):
            continue
        parts.append(str(part))
        content = content.get(part) if isinstance(content, dict) else None
    return ".".join(parts)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
