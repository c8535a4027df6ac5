"""Tiny random checkpoints of several architectures, written as any trainer would write them."""

import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import curator.scorers
from curator.data import IntArray

COMMON: dict[str, Any] = {
    "vocab_size": 5000,  # more than one tile of the head, and no multiple of it
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the smallest that vLLM's attention on a CPU has
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough for logits that are far from uniform
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GPT2 = {"vocab_size": 5000, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
OPT = {
    "vocab_size": 5000,
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "init_std": 0.2,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_tied": ("LlamaConfig", COMMON | {"tie_word_embeddings": True}),
    "llama_untied": ("LlamaConfig", COMMON | {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", COMMON),
    "gemma2_softcap": (
        "Gemma2Config",
        COMMON | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 1.0, "sliding_window": 16},
    ),
    "gemma3": ("Gemma3TextConfig", COMMON | {"sliding_window": 16}),
    "mistral": ("MistralConfig", COMMON),
    "opt": ("OPTConfig", OPT | {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}),
    "gpt2": ("GPT2Config", GPT2 | {"bos_token_id": 1, "eos_token_id": 2}),
    "phi_bias": ("PhiConfig", {k: v for k, v in COMMON.items() if k != "head_dim"}),
    "granite_scaling": ("GraniteConfig", COMMON | {"logits_scaling": 8.0}),
    "cohere_scale": ("CohereConfig", COMMON | {"logit_scale": 0.25, "use_qk_norm": False}),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random float32 checkpoint of the named architecture, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            import torch
            import transformers
            from transformers.utils import logging

            logging.disable_progress_bar()
            kind, arguments = ARCHITECTURES[name]
            torch.manual_seed(7)
            config = getattr(transformers, kind)(**arguments)
            model = transformers.AutoModelForCausalLM.from_config(config)
            for key, value in model.named_parameters():
                if "bias" in key:
                    torch.nn.init.normal_(value)
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(params=ARCHITECTURES)
def each_checkpoint(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Path:
    """Every architecture in turn."""
    return checkpoint(request.param)


@pytest.fixture(scope="session")
def plain_logprobs() -> Callable[[Path, IntArray], NDArray[np.float64]]:
    """The oracle: the whole model in float32, eager, one unpadded sequence, log_softmax in float64; (T - 1, V)."""

    def compute(model: Path, ids_T: IntArray) -> NDArray[np.float64]:
        import torch
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.inference_mode():
            logits = loaded(input_ids=torch.from_numpy(ids_T.astype(np.int64))[None]).logits[0, :-1]
        logprobs: NDArray[np.float64] = logits.double().log_softmax(-1).numpy()
        return logprobs

    return compute


@pytest.fixture(scope="session")
def tokenized_checkpoint(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama with a real tokenizer of 1,024 tokens."""
    made = tmp_path_factory.mktemp("tokenized") / "llama"
    shutil.copytree(checkpoint("llama_untied"), made)
    shutil.copy(Path(curator.scorers.__file__).parent / "bigram_model" / "tokenizer.json", made)
    (made / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (made / "generation_config.json").unlink()
    config = json.loads((made / "config.json").read_text())  # whose special ids are ordinary tokens there
    (made / "config.json").write_text(json.dumps(config | dict.fromkeys(SPECIAL_IDS)))
    return made


@pytest.fixture
def rogue() -> Iterator[Any]:
    """A server that misbehaves on purpose (rogue.py)."""
    with runpy.run_path(str(Path(__file__).with_name("rogue.py")))["serve"]() as rogue:
        yield rogue
