"""What `curator check-trainer` reads and writes: the canary itself, checkpoints, and damage to either."""

import resource
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

import curator
from curator.audit import verify
from curator.errors import OutputError, TrainingError
from curator.training.check.canary import write_canary
from curator.training.check.verdict import check_trainer


def test_the_canary_is_a_sound_dataset(canary: Path, hard_canary: Path) -> None:
    assert verify(str(canary / "data")) == verify(str(hard_canary / "data")) == []
    items = list(curator.load(canary / "data"))
    text = AutoTokenizer.from_pretrained(canary / "model").decode(items[0]["input_ids"])
    assert len(items) == 6 and len(text) == len(items[0]["input_ids"])
    assert {float(w) for item in curator.load(hard_canary / "data") for w in item["token_weights"]} == {0.0, 1.0}


def test_an_occupied_folder_is_left_alone(canary: Path) -> None:
    with pytest.raises(OutputError, match="is not empty"):
        write_canary(canary)


def test_a_checkpoint_that_lacks_parameters_is_refused(canary: Path, tmp_path: Path) -> None:
    tensors = load_file(canary / "model" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(TrainingError, match=r"nothing for 'lm_head\.weight'"):
        check_trainer(canary, tmp_path / "part.safetensors")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(OutputError, match="has no safetensors"):
        check_trainer(canary, tmp_path / "pickle")
    with pytest.raises(OutputError, match="is no canary"):
        check_trainer(tmp_path, tmp_path)


def untrained(canary: Path, folder: Path) -> dict[str, Tensor]:
    folder.mkdir()
    return load_file(canary / "model" / "model.safetensors")


def test_a_damaged_checkpoint_is_named(canary: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for content in (b"", b"garbage" * 99, (canary / "model" / file.name).read_bytes()[:5000]):
        file.write_bytes(content)
        with pytest.raises(OutputError, match=r"model\.safetensors' cannot be read \(.*save the trained model again"):
            check_trainer(canary, tmp_path)
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="cannot be read"):
        check_trainer(canary, tmp_path)


def test_a_checkpoint_that_is_not_there_or_cannot_be_listed_is_named(
    canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"there is no checkpoint at .*gone"):
        check_trainer(canary, tmp_path / "gone")
    with pytest.raises(OutputError, match=r"cannot be read \(File name too long\)"):
        check_trainer(canary, tmp_path / ("x" * 300))

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # tests may run as root, whom no permission keeps out
    with pytest.raises(OutputError, match=r"cannot be read \(Permission denied\)"):
        check_trainer(canary, tmp_path)


def test_one_parameter_in_several_files_is_ambiguous(canary: Path, tmp_path: Path) -> None:
    tensors = untrained(canary, tmp_path / "a")
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, tmp_path / "a" / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, tmp_path / "a" / "model-00002-of-00002.safetensors")
    assert check_trainer(canary, tmp_path / "a").summary.startswith("nothing was trained"), "shards are one save"
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with pytest.raises(OutputError, match=r"'lm_head.weight' is in both 'model-00001.*' and 'model\.safetensors'"):
        check_trainer(canary, tmp_path / "a")
    both = tensors | {f"ema.{name}": tensor.clone() for name, tensor in tensors.items()}
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(TrainingError, match=r"'ema\.model.*', 'model.*several models in one save"):
        check_trainer(canary, tmp_path / "both.safetensors")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("data/curated/00000.parquet", b""),
        ("data/curated/00000.parquet", b"PAR1 and nothing else PAR1"),
        ("model/config.json", b"{"),
        ("model/config.json", b'{"model_type": "llama"}'),
        ("model/model.safetensors", b""),
        ("model/tokenizer.json", b"[]"),
        ("model/tokenizer.json", None),
    ],
)
def test_a_damaged_canary_is_named(canary: Path, tmp_path: Path, file: str, content: bytes | None) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(canary, damaged)
    (damaged / file).unlink()
    if content is not None:
        (damaged / file).write_bytes(content)
    with pytest.raises(OutputError, match=r"the canary in .*damaged' is damaged \(.*write a new one"):
        check_trainer(damaged, canary / "model")


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written to .*canary' \(Not a directory\)"):
        write_canary(tmp_path / "file" / "canary")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a full disk: the weights take 48 kB
    try:
        with pytest.raises(OutputError, match=r"cannot be written to .*canary' \(.*File too large"):
            write_canary(tmp_path / "canary")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "canary").iterdir()) == []
    write_canary(tmp_path / "canary")
