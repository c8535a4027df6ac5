"""What a checkpoint holds, where it is found, and which ones the transformers engine refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator.errors import ScorerError
from curator.scorers.transformers import TransformersModel

Checkpoint = Callable[[str], Path]


def engine(model: Path, **options: Any) -> TransformersModel:
    return TransformersModel(engine="transformers", model=str(model), **options)


def logprobs(config: TransformersModel) -> np.ndarray:
    ids = np.random.default_rng(11).integers(0, 5000, 40, dtype=np.int32)
    return config.build(config.identify(), 1).score([ids], lambda n: None)[0].logprobs_T


def test_identify_says_what_the_checkpoint_holds(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("llama_tied")
    identity = engine(folder).identify()
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert identity.parameters == sum(p.numel() for p in loaded.parameters())
    assert (identity.dtype, identity.context, identity.revision) == ("float32", 128, None)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert engine(moved).identify().weights_digest == identity.weights_digest
    loaded.bfloat16().save_pretrained(moved)
    assert engine(moved).identify().weights_digest != identity.weights_digest
    assert engine(moved, dtype="float32").identify().dtype == "float32"
    assert engine(moved, gpus=1).identify().dtype == "bfloat16"


def test_shards_of_weights_are_found_and_a_missing_one_is_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = checkpoint("llama_untied")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="100KB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1
    assert engine(tmp_path).identify().parameters == engine(folder).identify().parameters
    np.testing.assert_array_equal(logprobs(engine(tmp_path)), logprobs(engine(folder)))
    files[0].unlink()
    with pytest.raises(ScorerError, match="lacks 1 of"):
        engine(tmp_path).identify()


def test_a_context_beyond_the_models_own_is_an_error(checkpoint: Checkpoint) -> None:
    assert engine(checkpoint("gpt2")).identify().context == 128
    assert engine(checkpoint("gpt2"), context=64).identify().context == 64
    with pytest.raises(ScorerError, match="context 129 is longer than the 128 tokens"):
        engine(checkpoint("gpt2"), context=129).identify()


def copy_without_weights(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    shutil.copy(checkpoint("llama_tied") / "config.json", tmp_path)
    return tmp_path


def test_a_directory_without_weights_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match=r"has no config\.json"):
        engine(tmp_path).identify()
    folder = copy_without_weights(checkpoint, tmp_path)
    with pytest.raises(ScorerError, match=r"has no weights: expected model\.safetensors"):
        engine(folder).identify()


def test_pickled_weights_are_refused_and_never_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_without_weights(checkpoint, tmp_path)
    witness = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (witness,))

    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ScorerError, match=r"as pickle \(pytorch_model\.bin\).*save_pretrained"):
        engine(folder).identify()
    assert not witness.exists()


def test_a_model_with_its_own_code_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama_tied"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScorerError, match="auto_map"):
        engine(folder).identify()


@pytest.mark.parametrize("keep", [4, 500, -100])
def test_damaged_weights_are_refused(keep: int, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama_tied"), tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ScorerError, match="are damaged"):
        engine(folder).identify()


def test_weights_that_lack_a_tensor_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint("llama_untied"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = engine(folder)
    with pytest.raises(ScorerError, match=r"lacks weights for 1 tensors, first lm_head\.weight"):
        config.build(config.identify(), 1)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="no model at"):
        engine(tmp_path / "nothing").identify()
    with pytest.raises(ScorerError, match="no model at"):
        engine(Path("nothing.gguf")).identify()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ScorerError, match="not a sound GGUF file"):
        engine(tmp_path / "broken.gguf").identify()


def test_unknown_engine_arguments_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"engine_args\.batch_size"):
        engine(checkpoint("gpt2"), engine_args={"batch_size": 3})


@pytest.mark.slow
def test_a_hub_model_is_found_in_the_cache_when_there_is_no_network(checkpoint: Checkpoint, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(checkpoint("gpt2"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = (
        "from curator.scorers.transformers import TransformersModel as M\n"
        "config = M(engine='transformers', model='some/model')\n"
        "identity = config.identify(); config.build(identity, 1)\n"
        "print(identity.revision, identity.weights_digest)"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [commit, engine(checkpoint("gpt2")).identify().weights_digest]
    missing = program.replace("some/model", "some/other")
    run = subprocess.run([sys.executable, "-c", missing], env=environment, capture_output=True, text=True)
    assert run.returncode and "nor in the hub's cache" in run.stderr
