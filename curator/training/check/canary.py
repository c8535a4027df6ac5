"""A canary: a tiny model and a tiny curated dataset whose first training step tells what a trainer does with weights.

The model is random and float32, the dataset six rows of text as bytes, so one optimiser step takes a second anywhere.
Both are made so that the gradients of a right and of every known wrong use of the weights point in different
directions: weights are spread widely, bf16 rounds many of them as badly as it can, and one row weighs more than all
others together, so that no way to divide the step into micro-batches of equal say looks like the whole.

Invariant: same arguments, same bytes of model and rows. This module imports torch and transformers; import it lazily.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import curator
from curator import storage, tables
from curator.data import FloatArray, IntArray
from curator.errors import OutputError
from curator.manifest import MANIFEST, Manifest, ShardEntry, Totals
from curator.tokens.tokenizer import TokensConfig, load_tokenizer

MODEL, DATA = "model", "data"
END, PADDING = "<|endoftext|>", "<|padding|>"
_SEED = 20
_ZERO_SHARE = 0.35
_PALETTE = (0.13, 0.27, 0.25 * (1 + 2**-8), 0.44, 0.93, 1 + 2**-8, 1.95, 2 * (1 + 3 * 2**-8), 2.49, 4 * (1 + 2**-8))
_TEXTS = (
    "Every token has a weight of its own, and a trainer must give each its due: shift once, weigh each prediction, add "
    "all of a step together, and divide by one number for every rank and micro-batch.",
    "Rain on a tin roof, tea at 4.",
    "x = 17; y = x * 3; print(y)",
    "Short line.",
    "Lazy dogs jump over foxes!",
    "Zebras vex 9 jays",
)

_README = """# A canary for trainers

`model/` is a tiny random float32 Llama with its tokenizer, `data/` a curated dataset of {rows} rows with {kind}
weights.

1. Export or load `data/` as you do with real data (`curator export {folder}/data --for TRAINER --output OUT`).
2. Train `model/` for exactly ONE optimiser step over all {rows} rows: full fine-tuning in float32, no packing or whole
   rows only, constant learning rate without warm-up (0.1 with SGD, 0.001 with Adam), no weight decay, clipping,
   dropout or label smoothing. Split the step into several micro-batches of unlike rows, as your real runs do (such as
   batch size 2, accumulation 3): what a step is divided by shows only then.
3. Save the model as safetensors and ask: `curator check-trainer read {folder} CHECKPOINT`
"""


def write_canary(folder: Path, hard: bool = False) -> None:
    """Write `model/`, `data/` and a README into an empty or absent folder.

    Args:
        folder: where to.
        hard: weights of 0 and 1 only, for trainers that take masks.

    Raises:
        OutputError: the folder holds something, or cannot be written; then nothing is left in it.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{str(folder)!r} is not empty; name a new folder for the canary")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(_cannot_write(folder, error)) from error
    try:
        _write(folder, hard)
    except (OSError, SafetensorError) as error:
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise OutputError(_cannot_write(folder, error)) from error


def _cannot_write(folder: Path, error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return (
        f"a canary cannot be written to {str(folder)!r} ({reason}); name a folder that you may write, with room for it"
    )


def _write(folder: Path, hard: bool) -> None:
    _make_tokenizer().save_pretrained(folder / MODEL)
    _make_model().save_pretrained(folder / MODEL)
    _write_data(folder, hard)
    kind = "hard (0 or 1)" if hard else "soft"
    (folder / "README.md").write_text(_README.format(folder=folder.name, rows=len(_TEXTS), kind=kind), encoding="utf-8")


def _make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = {token: number for number, token in enumerate([PADDING, END, *alphabet])}
    backend = Backend(models.BPE(vocab=names, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, bos_token=END, pad_token=PADDING, model_max_length=512
    )


def _make_model() -> LlamaForCausalLM:
    tokenizer = _make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.1, tie_word_embeddings=False, dtype="float32",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(_SEED)
    model = LlamaForCausalLM(config).float()
    torch.random.set_rng_state(generator_state)
    return model


def make_weights(rows: list[IntArray], hard: bool) -> list[FloatArray]:
    """Weights of each row; no first token has one, and every last token does: a step that loses it is found out."""
    random = np.random.default_rng(_SEED)
    made = []
    for ids in rows:
        weights = random.choice(np.array(_PALETTE, np.float32), len(ids))  # nosec B311  # numpy's, seeded
        weights[random.random(len(ids)) < _ZERO_SHARE] = 0  # nosec B311  # numpy's, seeded
        weights[-1], weights[0] = _PALETTE[-1], 0
        made.append((weights > 0).astype(np.float32) if hard else weights)
    return made


def _write_data(folder: Path, hard: bool) -> None:
    source = storage.absolute(str(folder / MODEL))
    tokenizer = load_tokenizer(source, None, TokensConfig())
    encoded = tokenizer.encode(list(_TEXTS))
    documents = [document for document in encoded if not isinstance(document, str)]
    weights = make_weights([document.input_ids for document in documents], hard)
    columns = {
        "doc_id": [f"canary:{number}" for number in range(len(documents))],
        "source": ["canary"] * len(documents),
        "text": list(_TEXTS),
        "input_ids": [document.input_ids for document in documents],
        "token_bytes": [document.token_bytes for document in documents],
        "labels": [
            np.where(w > 0, document.input_ids, tables.IGNORED_LABEL)
            for document, w in zip(documents, weights, strict=True)
        ],
        "token_weights": weights,
    }
    schema = tables.curated_schema(pa.schema([]), [])
    path = folder / DATA / "curated" / "00000.parquet"
    path.parent.mkdir(parents=True)
    with tables.open_writer(path, schema) as writer:
        writer.write_table(pa.table(columns, schema=schema))
    sha256, size_bytes = storage.sha256(str(path))
    entry = ShardEntry(
        number=0, file=f"curated/{path.name}", sha256=sha256, bytes=size_bytes, rows=len(documents),
        tokens=sum(map(len, weights)), kept_tokens=sum(int(np.count_nonzero(w)) for w in weights),
        weight_sum=float(sum(w.sum(dtype=np.float64) for w in weights)),
    )  # fmt: skip
    manifest = _make_manifest(entry, source, tokenizer.fingerprint)
    (folder / DATA / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _make_manifest(entry: ShardEntry, source: str, fingerprint: str) -> Manifest:
    totals = Totals(
        rows=entry.rows, tokens=entry.tokens, scored_tokens=entry.tokens - entry.rows, kept_tokens=entry.kept_tokens,
        weight_sum=entry.weight_sum, rows_without_kept_tokens=0, text_bytes=sum(len(t.encode()) for t in _TEXTS),
        quarantined_rows=0, duplicate_ids=0,
    )  # fmt: skip
    return Manifest(
        name="canary",
        content="dataset",
        curator_version=curator.__version__,
        spec={"name": "canary"},
        keys={},
        tokenizer={"source": source, "revision": None, "fingerprint": fingerprint, "bos_id": None, "eos_id": None},
        models={},
        cuts={},
        weight_scale=1.0,
        shards=(entry,),
        totals=totals,
        quarantined={},
    )
