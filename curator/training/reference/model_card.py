"""The model card of a reference: what it is, what made it, and how to make it again.

Invariant: it can be published as it is; of a place on the machine that trained it, only the last part is named.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from curator.training.reference.record import TrainResult, is_hub_name, name_or_last_part, portable
from curator.training.reference.spec import TrainSpec

_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+\-]{0,63}")


def make_card(result: TrainResult, licensed: str | None) -> str:
    """The text of the reference's README.md, with the front matter that model hubs read.

    Args:
        result: what was trained.
        licensed: see `find_license`.
    """
    spec = result.spec
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if licensed is not None:
        front["license"] = licensed.lower()
    if is_hub_name(spec.base):
        front["base_model"] = spec.base
    front["tags"] = ["reference-model"]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", "# Reference model", ""]
    lines += ["It says how likely good data finds a token; made by `curator train-reference`.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(result).items()), ""]
    if result.evaluations:
        lines += ["| step | held-out loss (nats) |", "|---:|---:|"]
        lines += [f"| {found.step:,} | {found.loss:.4f} |" for found in result.evaluations]
        lines += [""]
    lines += ["## License", "", _say_license(licensed), "", "## How to make it again", ""]
    lines += ["`curator train-reference spec.yaml`, where places are those of your own machine:", ""]
    lines += ["```yaml", yaml.safe_dump(portable(_sent(spec)), sort_keys=False, allow_unicode=True).rstrip(), "```"]
    return "\n".join([*lines, ""])


def find_license(spec: TrainSpec) -> str | None:
    """What the base's own files say of its license: the card beside it, or a GGUF header; asks no network."""
    path = Path(spec.base).expanduser()
    stated: Any = None
    if path.suffix == ".gguf" and path.is_file():
        from gguf import GGUFReader

        field = GGUFReader(str(path)).fields.get("general.license")
        stated = None if field is None else field.contents()
    else:
        card = path / "README.md" if path.is_dir() else _cached_card(spec)
        if card is not None and card.is_file():
            stated = _front_matter(card).get("license")
    return stated if isinstance(stated, str) and _LICENSE.fullmatch(stated) else None


def _cached_card(spec: TrainSpec) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.base, "README.md", revision=spec.revision)
    return Path(found) if isinstance(found, str) else None


def _front_matter(card: Path) -> dict[str, Any]:
    try:
        parts = card.read_text(encoding="utf-8").split("---\n", 2)
        content = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except Exception:  # a card is no reason to fail, and YAML that others wrote raises more than YAMLError
        return {}
    return content if isinstance(content, dict) else {}


def _facts(result: TrainResult) -> dict[str, str]:
    spec, revision = result.spec, result.base_revision or result.spec.revision
    data = f"{result.documents:,} documents, {result.tokens:,} tokens"
    if spec.corpus is not None:
        data = f"{spec.corpus.kind}, {data}"
    else:
        data = f"curated dataset, its weights weigh the loss, {data}; {result.unweighted_rows:,} without a kept token"
    held = "none was held out"
    if result.loss_before is not None and result.loss_after is not None:
        held = f"{result.loss_before:.4f} under the base, {result.loss_after:.4f} under this model"
        held += ", which is worse than its base" if result.loss_after > result.loss_before else ""
    ended = f"; ended by {result.ended_by}" if result.ended_by else ""
    published = result.published_step
    chosen = f"; these are the weights of step {published:,}" if published not in (None, result.steps) else ""
    falling = "falling to 0 along a cosine"
    if result.ended_by == "patience":
        falling = "falling along a cosine that early stopping cut off"
    facts = {
        "base": f"`{name_or_last_part(spec.base)}`" + (f" at `{revision}`" if revision else ""),
        "weights of the base": f"`{result.base_digest}`",
        "good data": data,
        "data digest": f"`{result.data_digest}`",
        "method": _describe_method(spec),
        "training": f"{result.steps:,} steps, {result.trained_tokens:,} tokens, {result.seconds:,.0f} s{ended}{chosen}",
        "learning rate": f"{spec.learning_rate:g}, {falling}",
        "held-out loss (nats)": held,
    }
    if result.checkpoints:
        facts["checkpoints"] = ", ".join(f"`{kept.folder}`" for kept in result.checkpoints)
    return facts


def _describe_method(spec: TrainSpec) -> str:
    adapter = spec.adapter
    if adapter is None:
        return "all weights"
    targets = adapter.target_modules if isinstance(adapter.target_modules, str) else ", ".join(adapter.target_modules)
    return f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}, dropout {adapter.dropout:g} on {targets}, merged"


def _say_license(licensed: str | None) -> str:
    if licensed is None:
        return "The base's files state none; a model that is tuned from it falls under the base's own terms."
    return f"The base is under `{licensed}`, and what is tuned from it falls under the same terms."


def _sent(spec: TrainSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_unset=True, exclude={"run"})
