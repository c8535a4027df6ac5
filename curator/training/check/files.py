"""Reading what `check-trainer` compares: the canary as it was written, and the checkpoint that a trainer made of it.

Invariant: a damaged, foreign or ambiguous file is one error that names it; nothing is guessed and nothing unpickled.
This module imports torch and transformers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from curator.errors import CuratorError, OutputError, TrainingError
from curator.training.check.canary import DATA, MODEL
from curator.training.check.candidates import Row


def read_canary(folder: Path) -> tuple[Any, list[Row], int, int]:
    """The canary's model in float64, its rows, and the tokens that end and pad rows.

    Raises:
        OutputError: the folder is no canary, or not a sound one.
    """
    with _naming_what_is_wrong(folder):
        files = sorted((folder / DATA / "curated").glob("*.parquet"))
        if not files or not (folder / MODEL / "config.json").is_file():
            raise OutputError(f"{str(folder)!r} is no canary; write one with `curator check-trainer write {folder}`")
        tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)  # nosec B615  # a local folder
        _check_sizes(folder / MODEL)
        model = LlamaForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float64)  # nosec B615  # a local folder
        rows = [
            Row(torch.tensor(row["input_ids"]), torch.tensor(row["token_weights"], dtype=torch.float64))
            for row in pq.read_table(files[0], columns=["input_ids", "token_weights"]).to_pylist()
        ]
        if not rows or any(len(row.ids) != len(row.weights) or not len(row.ids) for row in rows):
            raise ValueError("its rows are not whole")
        if max(int(row.ids.max()) for row in rows) >= len(tokenizer):
            raise ValueError("its rows hold tokens that its tokenizer has not")
        end_id, padding_id = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    model.eval()
    return model, rows, end_id, padding_id


def _check_sizes(folder: Path) -> None:
    """Before anything is made of the config: another one may describe a model that fits into no memory."""
    with torch.device("meta"):
        config = LlamaConfig.from_pretrained(folder)  # nosec B615  # a local folder
        wanted = {name: p.shape for name, p in LlamaForCausalLM(config).named_parameters()}
    stored = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
    if wanted != stored:
        raise ValueError("its config.json and its weights are not of one model")


@contextmanager
def _naming_what_is_wrong(folder: Path) -> Iterator[None]:
    """Readers of files that somebody changed raise all kinds of errors."""
    try:
        yield
    except (CuratorError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise OutputError(
            f"the canary in {str(folder)!r} is damaged ({reason}); write a new one with `curator check-trainer write` "
            "and train that"
        ) from error


def read_checkpoint(checkpoint: Path, model: Any) -> tuple[dict[str, Tensor], tuple[torch.dtype, ...]]:
    """Parameters by the canary's names as they are stored, and their types; wrappers' prefixes are taken off.

    Raises:
        OutputError: no safetensors there, damaged ones, or several files with the same parameter.
        TrainingError: it has not all of the canary's parameters.
    """
    tensors: dict[str, Tensor] = {}
    homes: dict[str, Path] = {}
    for file in _find_files(checkpoint):
        for name, tensor in _read_file(file).items():
            if name in homes:
                raise OutputError(
                    f"{name!r} is in both {homes[name].name!r} and {file.name!r} of {str(checkpoint)!r}, so one of "
                    "them is of another save; name the one file, or remove what does not belong to it"
                )
            tensors[name], homes[name] = tensor, file
    found = {name: _find(name, parameter, tensors, checkpoint) for name, parameter in model.named_parameters()}
    return found, tuple(sorted({tensor.dtype for tensor in found.values()}, key=str))


def _find_files(checkpoint: Path) -> list[Path]:
    try:
        if not checkpoint.exists():
            raise OutputError(f"there is no checkpoint at {str(checkpoint)!r}; name the folder that the trainer saved")
        entries = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    except OSError as error:
        raise OutputError(
            f"{str(checkpoint)!r} cannot be read ({error.strerror}); name a folder that you may read"
        ) from error
    files = [entry for entry in entries if entry.suffix == ".safetensors"]
    if not files:
        raise OutputError(f"{str(checkpoint)!r} has no safetensors; save the trained model with safe serialisation")
    return files


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{str(file)!r} cannot be read ({error}); save the trained model again") from error


def _find(name: str, parameter: Tensor, tensors: dict[str, Tensor], checkpoint: Path) -> Tensor:
    keys = [key for key in tensors if key == name or key.endswith(f".{name}")]
    if len(keys) > 1:
        raise TrainingError(
            f"{str(checkpoint)!r} has {', '.join(map(repr, sorted(keys)))} for {name!r}: several models in one save; "
            "name the file of the one that was trained"
        )
    if not keys or tensors[keys[0]].shape != parameter.shape:
        shapes = {key: tuple(tensors[key].shape) for key in keys}
        raise TrainingError(
            f"{str(checkpoint)!r} has {shapes or 'nothing'} for {name!r} of shape {tuple(parameter.shape)}; train all "
            "of the canary's parameters, no adapter, and save the whole model"
        )
    return tensors[keys[0]]
