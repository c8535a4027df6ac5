"""Models, tokenizers and hub data sets that a tenant may name, and arguments that it may give to an engine.

A hub name is allowed by `allow_models` or `allow_datasets`, as `org/name` or pinned as `org/name@revision`; of a pinned
one only that revision, which is filled in where the spec names none. Of one that is not pinned only the default branch:
a hub serves proposals of strangers as revisions, too. A folder is allowed by its place; it must not ask to run code.
What makes a checkpoint whole is the library's business (curator.scorers.checkpoint).
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from curator.training.reference.staging import ray_folder_of, staging_of
from service.admission.places import Places
from service.admission.refusals import Refused, quote
from service.admission.spelling import REMOTE, check_relative

SHIPPED_MODELS = ("bigram", "unigram")
"""What engine bigram has without any file."""

BUILDERS = ("arrow", "csv", "json", "parquet", "text")
"""Readers of `datasets` that take plain files; others call databases, unpack archives or decode media."""

VLLM_ARGUMENTS = frozenset({
    "block_size", "cpu_offload_gb", "disable_cascade_attn", "disable_sliding_window", "enable_chunked_prefill",
    "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "kv_cache_dtype", "kv_cache_memory_bytes",
    "long_prefill_token_threshold", "max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_seqs",
    "performance_mode", "quantization", "seed",
})  # fmt: skip
"""Sizes, batching and number formats. Everything else may name code, files or hosts."""

_DEFAULT_REVISION = "main"
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_ASKS_FOR_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAKES_REFERENCE = re.compile(r"\..*-(training|ray)", re.DOTALL)
_LARGEST_CONFIG_BYTES = 64 << 20


def find_revision(name: str, revision: str | None, allowed: Iterable[str], setting: str) -> str | None:
    """The revision of a hub name that may be used; None for the default branch. `setting` lists what is allowed."""
    entries = [entry.partition("@") for entry in allowed]
    pinned = [pin or None for listed, _, pin in entries if listed == name]
    if not pinned:
        raise Refused(
            f"{quote(name)} is neither an absolute path nor allowed as a hub name; use one of "
            f"{sorted({listed for listed, _, _ in entries}) or '(none)'}, or ask the operator to list it in {setting}"
        )
    if revision in pinned or (revision == _DEFAULT_REVISION and None in pinned):
        return revision
    if revision is None and len(pinned) == 1:
        return pinned[0]
    names = [pin or "(none)" for pin in pinned]
    raise Refused(f"revision {quote(revision or '(none)')} of {quote(name)} is not allowed; use one of {names}")


def check_model(model: str, revision: str | None, places: Places, allowed: Iterable[str]) -> str | None:
    """Refuse a model that is neither an allowed hub name nor a sound place; returns the revision to use."""
    if not _is_place(model):
        return find_revision(model, revision, allowed, "allow_models")
    _check_local_model(model, places)
    _check_weights(model)
    return revision


def check_bigram_model(model: str, places: Places) -> None:
    """Refuse anything but the models that are shipped and folders that are allowed."""
    if model not in SHIPPED_MODELS:
        _check_local_model(model, places)


def check_tokenizer(tokenizer: str, revision: str | None, places: Places, allowed: Iterable[str]) -> str | None:
    """Refuse a tokenizer that is neither an allowed hub name nor a sound place; returns the revision to use."""
    if not _is_place(tokenizer):
        return find_revision(tokenizer, revision, allowed, "allow_models")
    _check_local_model(tokenizer, places)
    return revision


def check_data_set(corpus: Mapping[str, Any], places: Places, allowed: Iterable[str]) -> str | None:
    """Refuse a data set that is no allowed hub name, folder or builder; returns the revision to use."""
    path, revision = corpus["path"], text_or_none(corpus.get("revision"))
    if path in BUILDERS:
        if not corpus.get("data_files"):
            raise Refused(f"the builder {quote(path)} would read the service's own folder; name files in data_files")
        return revision
    if not _is_place(path):
        return find_revision(path, revision, allowed, "allow_datasets")
    check_folder(path, places)
    return revision


def check_folder(folder: str, places: Places) -> None:
    """Refuse a folder to read that is not allowed, or from which a link leads to a place that is not."""
    places.check(folder, "folder")
    if not REMOTE.match(folder):
        places.check_tree(folder)


def check_output(place: str, places: Places, *, given: bool) -> None:
    """Refuse a place to write that is not allowed or may be where a reference is made; `given`: the service's choice.

    So no job's output ever lies in the folders that stand beside another job's reference while it is made.
    """
    if given:
        return
    places.check(place, "write")
    real = place if REMOTE.match(place) else os.path.realpath(place)
    if any(map(_MAKES_REFERENCE.fullmatch, (*place.split("/"), *real.split("/")))):
        raise Refused(f"{quote(place)}: such names are those of folders in which references are made; choose another")


def check_reference(place: str, places: Places, *, given: bool) -> None:
    """Refuse a place for a reference that is not allowed, or beside which it must not be made."""
    if REMOTE.match(place):
        where = "this service puts outputs on an object store; set output to a folder" if given else "name a folder"
        raise Refused(f"{quote(place)}: a reference is made on a local disk and renamed to its place; {where}")
    check_output(place, places, given=given)
    if given:
        return
    if os.path.realpath(place) in places.roots:
        raise Refused(f"{quote(place)} is an allowed root itself; name a folder in it")
    for beside in (staging_of(Path(place)).root, ray_folder_of(Path(place))):
        places.check(str(beside), "write")
        if beside.is_symlink():
            raise Refused(f"{quote(place)} would be made in a symbolic link beside it; choose another name")


def check_data_file(file: str, data_set: Any, places: Places) -> None:
    """Refuse a file or glob that leads out of its data set, or for a builder out of the allowed places."""
    if data_set in BUILDERS or file.startswith("/") or REMOTE.match(file):
        if isinstance(data_set, str) and not (data_set in BUILDERS or _is_place(data_set)):
            raise Refused(f"{quote(file)} is not a name within the data set; write it relative to it")
        places.check(file, "files")
        return
    check_relative(file)
    if isinstance(data_set, str) and _is_place(data_set):
        places.check(f"{data_set.rstrip('/')}/{file}", "files")


def check_engine_argument(name: str, value: Any) -> None:
    """Refuse an argument of vLLM that is not known to be harmless, or has another form than a number or a word."""
    if name not in VLLM_ARGUMENTS:
        raise Refused(f"{quote(name)} cannot be set here; allowed are {', '.join(sorted(VLLM_ARGUMENTS))}")
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise Refused("only numbers and single words can be set here; correct the value")
    if not isinstance(value, bool | int | float | str | None):
        raise Refused(f"only numbers and single words can be set here, not a {type(value).__name__}")


def check_label(text: str) -> None:
    """Refuse a name that could be read as a path where it is put into one."""
    if "/" in text or "\\" in text or text.startswith((".", "~")):
        raise Refused(f"{quote(text)} is not a plain name; leave out slashes and leading dots")


def text_or_none(value: Any) -> str | None:
    """A text as it is, and None for anything else."""
    return value if isinstance(value, str) else None


def _is_place(name: str) -> bool:
    """Whether this can only be a path or a URI: hub names have one slash, in their middle, and no scheme."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or ":" in name or "\\" in name


def _check_local_model(model: str, places: Places) -> None:
    places.check(model, "folder")
    if REMOTE.match(model):
        raise Refused(f"{quote(model)}: models are read from folders and the hub only; name a folder")
    folder = model if os.path.isdir(model) else os.path.dirname(model)
    if folder == model:
        places.check_tree(folder)
    for name in _ASKS_FOR_CODE:
        if _asks_for_code(os.path.join(folder, name)):
            raise Refused(
                f"{quote(model)} wants to run its own code (auto_map in {name}), which is never done; use a version of "
                "it that transformers supports itself and remove auto_map"
            )


def _asks_for_code(file: str) -> bool:
    try:
        with open(file, "rb") as stream:
            content = stream.read(_LARGEST_CONFIG_BYTES)
        config = json.loads(content)
    except (OSError, ValueError, RecursionError):  # not there or damaged: loading it fails, and says why
        return False
    return isinstance(config, dict) and "auto_map" in config


def _check_weights(model: str) -> None:
    """Refuse weights that only pickle could read; whether they are whole is seen when the model is identified."""
    if os.path.isfile(model):
        if not model.endswith(".gguf"):
            raise Refused(f"{quote(model)} is a file, and only .gguf files are models; name the model's folder")
        return
    names = sorted(os.listdir(model)) if os.path.isdir(model) else []
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise Refused(
            f"{quote(model)} has its weights as pickle ({pickled[0]}), which can run code when read; convert them to "
            "safetensors"
        )
