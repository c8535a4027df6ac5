"""Model directories: the base that a training starts from, and what it writes.

Invariant: no code that lies beside weights is run and nothing is unpickled; what is written has the base's own type
and the base's own tokenizer, character by character.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from curator.errors import TrainingError
from curator.tokens.sources import find_tokenizer

if TYPE_CHECKING:
    from curator.training.spec import TrainSpec


class Base(NamedTuple):
    """A model to start from, in float32, and the type that its result is saved in."""

    model: Any
    saved_dtype: torch.dtype


def load_base(spec: "TrainSpec") -> Base:
    """Load a causal language model; never runs code that lies beside the weights, never unpickles."""
    source = _locate(spec)
    weights: dict[str, Any] = {"use_safetensors": True}
    if "gguf_file" in source:
        weights = {"quantization_config": GgufConfig(dequantize=True)}
    try:
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(**source, **weights, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"base {spec.base!r} cannot be loaded ({reason}); name a hub model, a directory with config.json and "
            "safetensors, or a .gguf file"
        ) from error
    return Base(model, config.dtype or choose_dtype(spec.dtype))


def save_model(model: Any, saved_dtype: torch.dtype, spec: "TrainSpec", folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer files; the model itself is moved and cast for it."""
    model.to("cpu", saved_dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**_locate(spec), trust_remote_code=False).save_pretrained(folder)
    # The library may write an equal but not identical definition; ours is the base's own, character by character.
    found = find_tokenizer(spec.base, spec.revision)
    (folder / "tokenizer.json").write_text(found.definition_json, encoding="utf-8")


def choose_dtype(wanted: str) -> torch.dtype:
    """The type of matrix products; `auto` is bfloat16 only where the hardware multiplies it."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if torch.accelerator.is_available():
        return torch.float32
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def _locate(spec: "TrainSpec") -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where the base is."""
    path = Path(spec.base).expanduser()
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.exists():
        return {"pretrained_model_name_or_path": str(path)}
    return {"pretrained_model_name_or_path": spec.base, "revision": spec.revision}
