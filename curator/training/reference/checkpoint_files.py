"""Model directories: the base that a training starts from, and what it writes.

Invariant: no code that lies beside weights is run and nothing is unpickled; no weight of a base is one that the library
has drawn at random; what is written has the base's own type and the base's own tokenizer, character by character.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from curator.errors import CuratorError, TrainingError
from curator.scorers.checkpoint import Checkpoint
from curator.tokens.sources import find_tokenizer

if TYPE_CHECKING:
    from curator.training.reference.spec import TrainSpec

_NAMED = 3
_MOST_TIED = 2.0
"""A head that is tied to the embedding is stored once; it is never more than half of a model."""
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Base(NamedTuple):
    """A model to start from, in float32, the type that its result is saved in, and weights that the model has not."""

    model: Any
    saved_dtype: torch.dtype
    unused: tuple[str, ...] = ()


def load_base(spec: "TrainSpec", checkpoint: Checkpoint) -> Base:
    """Load a causal language model; never runs code that lies beside the weights, never unpickles.

    What its config describes is compared with what its weight files hold before any of it is allocated.

    Args:
        spec: names the base.
        checkpoint: what its headers say.

    Raises:
        TrainingError: files that are missing, damaged, quantized or not of one model, or weights that do not cover all
            of it.
    """
    source = _locate(spec)
    with _saying_what_is_wrong(spec):
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)  # nosec B615  # source has the revision
        with _quietly():
            if "gguf_file" in source:
                _check_size(config, checkpoint, spec)
            else:
                _check_plain(config, spec)
                _check_complete(*_load(source, device_map="meta"), spec)
        model, found = _load(source)
        _check_complete(model, found, spec)
        if "gguf_file" not in source:  # of which the tokenizer was read before, and takes seconds
            # now, not when all is trained
            AutoTokenizer.from_pretrained(**source, trust_remote_code=False)  # nosec B615  # source has the revision
    saved_dtype = config.dtype or _STORED.get(checkpoint.stored_type) or choose_dtype(spec.dtype)
    return Base(model, saved_dtype, tuple(sorted(found["unexpected_keys"])))


def _load(source: dict[str, Any], **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and what was found amiss; sizes that do not fit are let through, for `_check_complete` to name."""
    weights: dict[str, Any] = {"use_safetensors": True}
    if "gguf_file" in source:
        weights = {"quantization_config": GgufConfig(dequantize=True)}
    model, found = AutoModelForCausalLM.from_pretrained(  # nosec B615  # source has the revision
        **source,
        **weights,
        **options,
        dtype=torch.float32,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return model, found


@contextmanager
def _quietly() -> Iterator[None]:
    """What the library says of a model is said when it is really loaded."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _saying_what_is_wrong(spec: "TrainSpec") -> Iterator[None]:
    """What the library raises over files that it was not made for has every type: KeyError, ZeroDivisionError, ..."""
    try:
        yield
    except (CuratorError, MemoryError):
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0].rstrip(".:")
        named = isinstance(error, OSError | ValueError | ImportError) and first
        reason = first if named else f"{type(error).__name__}: {first}".rstrip(": ")
        raise TrainingError(
            f"base {spec.base!r} cannot be loaded ({reason}); name a hub model, a directory with config.json, "
            "tokenizer and safetensors, or a .gguf file, and fetch it again if it is damaged"
        ) from error


def _check_plain(config: Any, spec: "TrainSpec") -> None:
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise TrainingError(
            f"base {spec.base!r} is quantized ({method or 'quantization_config in config.json'}), and a reference is "
            "trained from whole weights; name the model that it was made from"
        )


def _check_size(config: Any, checkpoint: Checkpoint, spec: "TrainSpec") -> None:
    """Refuse a .gguf file whose metadata describe far more than it holds; its tensors have other names."""
    with torch.device("meta"):
        described = AutoModelForCausalLM.from_config(config).num_parameters()
    held = checkpoint.parameters
    if held is not None and described > _MOST_TIED * held:
        raise TrainingError(
            f"base {spec.base!r} holds {held:,} weights, and its metadata describe a model of {described:,}; fetch it "
            "again, or name another base"
        )


def _check_complete(model: Any, found: dict[str, Any], spec: "TrainSpec") -> None:
    """Refuse weights that the library made up; those that are tied to others are none of them."""
    kind = type(model).__name__
    problems = []
    if found["missing_keys"]:
        problems.append(f"has no {_list(found['missing_keys'])}")
    if found["mismatched_keys"]:
        sizes = (f"{name} of shape {tuple(its)} for {tuple(own)}" for name, its, own in found["mismatched_keys"])
        problems.append(f"has {_list(sizes)}")
    if found["error_msgs"]:
        problems.append(f"cannot be read in full: {_list(found['error_msgs'])}")
    if problems:
        unused = f"; it has {_list(found['unexpected_keys'])} besides" if found["unexpected_keys"] else ""
        raise TrainingError(
            f"base {spec.base!r} {'; '.join(problems)}, which {kind} needs{unused}: what is missing would be random "
            "numbers. Name a whole causal language model whose config.json is its own"
        )


def _list(names: Iterable[str]) -> str:
    """Some of them and how many more there are."""
    first, *others = sorted(names)
    shown, rest = [first, *others[: _NAMED - 1]], others[_NAMED - 1 :]
    return ", ".join(shown) + (f" and {len(rest):,} more" if rest else "")


def save_model(model: Any, saved_dtype: torch.dtype, spec: "TrainSpec", folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer files; the model itself is moved and cast for it."""
    model.to("cpu", saved_dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**_locate(spec), trust_remote_code=False).save_pretrained(folder)  # nosec B615  # with the revision
    # The library may write an equal but not identical definition; ours is the base's own, character by character.
    found = find_tokenizer(spec.base, spec.revision)
    (folder / "tokenizer.json").write_text(found.definition_json, encoding="utf-8")


def round_weights(model: Any, saved_dtype: torch.dtype) -> None:
    """Round weights, in place, to what they will be when they were saved; their own type stays."""
    with torch.no_grad():
        for weight in model.state_dict().values():
            if weight.is_floating_point():
                weight.copy_(weight.to(saved_dtype))


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
