"""Looking at a checkpoint without loading it: is it whole, which is it, how large, what context.

Everything that can be known to fail is found here, before work starts: a directory without weights, weights as pickle,
a model that wants to run its own code. Only headers and digests are read, and nothing is executed.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curator.errors import ScorerError
from curator.scorers.weights import digest_names, digest_weights

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model from its headers.

    Attributes:
        revision: commit of a hub model, else None.
        weights_digest: see `curator.scorers.weights`.
        stored_type: safetensors' or GGUF's name of the type that most weights have, such as BF16 or Q4_1.
        parameters: their number; None for weights packed by a quantizer.
        context: longest sequence in tokens, None where the model names none.
    """

    revision: str | None
    weights_digest: str
    stored_type: str
    parameters: int | None
    context: int | None


def inspect_checkpoint(model: str, revision: str | None) -> Checkpoint:
    """Look at a directory, a .gguf file or a hub name.

    Raises:
        ScorerError: there is no such model, it lacks weights, its weights are pickled, or it wants to run code.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _inspect_directory(path)
    if path.is_file() and path.suffix == ".gguf":
        return _inspect_gguf(path)
    if path.exists() or path.suffix == ".gguf" or not _HUB_NAME.fullmatch(model):
        raise ScorerError(
            f"no model at {model!r}; name a directory with config.json and safetensors, a .gguf file, or a hub model "
            "such as 'org/name'"
        )
    return _inspect_hub(model, revision)


def digest_local(model: str) -> str | None:
    """The `weights_digest` of a directory or .gguf file as it is now; None for any other model.

    Raises:
        ScorerError: the directory lacks weights.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return digest_weights(_weight_files(path))
    return digest_weights([path]) if path.is_file() and path.suffix == ".gguf" else None


# ------------------------------------------------------------------------------------------------ a directory


def _inspect_directory(folder: Path) -> Checkpoint:
    config = _read_config(folder / "config.json", str(folder))
    files = _weight_files(folder)
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(_count_types(file))
    return _checkpoint(None, digest_weights(files), config, counts)


def _read_config(file: Path, model: str) -> dict[str, Any]:
    if not file.is_file():
        gguf = sorted(path.name for path in file.parent.glob("*.gguf"))
        remedy = (
            f"name the file itself, such as {gguf[0]}" if gguf else "name the directory that `save_pretrained` wrote"
        )
        raise ScorerError(f"model {model!r} has no config.json; {remedy}")
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise ScorerError(f"model {model!r}: config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ScorerError(f"model {model!r}: config.json holds a {type(config).__name__}, not a mapping")
    if "auto_map" in config:
        raise ScorerError(
            f"model {model!r} wants to run its own code (auto_map in config.json), which is never done; use a version "
            "of it that transformers supports itself and remove auto_map"
        )
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The files that `transformers` would load, all present."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        raise _no_weights(str(folder), sorted(path.name for path in folder.iterdir()))
    names = _index_names((folder / _INDEX).read_bytes(), str(folder))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ScorerError(
            f"model {str(folder)!r} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}"
        )
    return [folder / name for name in names]


def _index_names(content: bytes, model: str) -> list[str]:
    try:
        names = sorted(set(json.loads(content)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ScorerError(f"model {model!r}: {_INDEX} is damaged: {error!r}") from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ScorerError(f"model {model!r}: {_INDEX} names files outside the model's folder")
    return names


def _no_weights(model: str, names: list[str]) -> ScorerError:
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    if pickled:
        return ScorerError(
            f"model {model!r} has its weights as pickle ({pickled[0]}), which can run code when read; convert them "
            "where you trust them: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) writes safetensors"
        )
    return ScorerError(f"model {model!r} has no weights: expected {_WEIGHTS} or {_INDEX}, found {names or 'nothing'}")


def _count_types(file: Path) -> Counter[str]:
    """Number of values by type, from the header of a safetensors file."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= _MAX_HEADER_BYTES:
                raise ValueError(f"header of {size:,} bytes")
            tensors = json.loads(stream.read(size))
        tensors.pop("__metadata__", None)
        end = 8 + size + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        if end != file.stat().st_size:
            raise ValueError(f"{file.stat().st_size:,} bytes where the header says {end:,}")
        counts: Counter[str] = Counter()
        for tensor in tensors.values():
            counts[tensor["dtype"]] += math.prod(tensor["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScorerError(f"weights {str(file)!r} are damaged: {error}; copy or download them again") from error
    return counts


def _checkpoint(revision: str | None, digest: str, config: dict[str, Any], counts: Mapping[str, int]) -> Checkpoint:
    text_config = config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    context = next((value for key in _CONTEXT_KEYS if (value := nested.get(key) or config.get(key))), None)
    packed = "quantization_config" in config
    return Checkpoint(
        revision=revision,
        weights_digest=digest,
        stored_type="packed" if packed or not counts else max(counts, key=lambda name: counts[name]),
        parameters=None if packed or not counts else sum(counts.values()),
        context=context if isinstance(context, int) and context > 0 else None,
    )


# ------------------------------------------------------------------------------------------------ a .gguf file


def _inspect_gguf(path: Path) -> Checkpoint:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ScorerError(f"reading {str(path)!r} needs gguf: install token-curator[transformers]") from error
    try:
        reader = GGUFReader(str(path))
        architecture = reader.fields["general.architecture"].contents()
        field = reader.fields.get(f"{architecture}.context_length")
        context = None if field is None else int(field.contents())
    except Exception as error:  # the reader raises whatever its numpy views raise on a damaged file
        raise ScorerError(f"{str(path)!r} is not a sound GGUF file ({type(error).__name__}: {error})") from error
    counts: Counter[str] = Counter()
    for tensor in reader.tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return Checkpoint(None, digest_weights([path]), max(counts, key=lambda n: counts[n]), sum(counts.values()), context)


# ------------------------------------------------------------------------------------------------ the hub


def _inspect_hub(name: str, revision: str | None) -> Checkpoint:
    """Ask the hub; when it cannot be reached, take what its cache holds."""
    try:
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ScorerError(f"hub model {name!r} needs huggingface_hub: install token-curator[transformers]") from error
    try:
        return _ask_hub(name, revision)
    except ScorerError:
        raise
    except HfHubHTTPError as error:
        raise ScorerError(f"hub model {name!r} (revision {revision or 'default'}) cannot be had: {error}") from error
    except Exception as error:  # offline mode, or whatever the hub's HTTP library raises without a network
        return _inspect_cached(name, revision, error)


def _ask_hub(name: str, revision: str | None) -> Checkpoint:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    config = _read_config(Path(hf_hub_download(name, "config.json", revision=info.sha)), name)
    sha256_of = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs is not None}
    every_name = sorted(file.rfilename for file in info.siblings or [])
    names = [_WEIGHTS]
    if _WEIGHTS not in sha256_of:
        if _INDEX not in every_name:
            raise _no_weights(name, every_name)
        names = _index_names(Path(hf_hub_download(name, _INDEX, revision=info.sha)).read_bytes(), name)
    missing = [file for file in names if file not in sha256_of]
    if missing:
        raise ScorerError(f"hub model {name!r} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}")
    counts = dict(info.safetensors.parameters) if info.safetensors else {}
    return _checkpoint(info.sha, digest_names({file: sha256_of[file] for file in names}), config, counts)


def _inspect_cached(name: str, revision: str | None, reason: Exception) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ScorerError(
            f"model {name!r} is neither a path here nor in the hub's cache, and the hub cannot be reached "
            f"({type(reason).__name__}); correct the path, or download the model first"
        ) from error
    return replace(_inspect_directory(folder), revision=folder.name)
