"""Make what the trainers' environments are tested with: two tiny curated datasets, and their exports.

Run by the project's own environment, so that those of the trainers need nothing of curator:

    FOLDER/model                             the tiny Llama that scored them, and its tokenizer
    FOLDER/hard, FOLDER/soft                 curated datasets: masks of 0 and 1, and soft weights
    FOLDER/exports/<form>-<hard or soft>     `curator export` of them, packed to `SEQUENCE_LENGTH` where the form packs
    FOLDER/exports/<form>-<hard or soft>-64  a second one where the form may, but need not, be cut or packed
    FOLDER/truth/<hard or soft>.npz          the documents' ids and weights, for oracles: straight from the parquet
                                             files, so that nothing of the export is trusted

Usage: make_canary.py FOLDER
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
CURATOR = str(Path(sys.executable).parent / "curator")

SEQUENCE_LENGTH = 64
DOCUMENTS = 24
CHARACTERS = 240

FORMS = {  # whether the form is exported packed, and whether it takes soft weights
    "axolotl": (False, False),
    "llama_factory": (False, False),
    "megatron": (False, True),
    "mosaicml": (True, True),
    "ms_swift": (False, True),
    "nanotron": (True, False),
    "nemo": (True, False),
    "olmo_core": (True, False),
    "tinker": (False, True),
    "torchtitan": (True, False),
    "torchtune": (False, False),
}
ALSO_WITH_A_LENGTH = ("llama_factory", "ms_swift")


def main() -> None:
    """Make everything anew in the folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "truth").mkdir(parents=True)
    write_model(folder / "model")
    write_corpus(folder / "corpus.jsonl")
    for name, soft in (("hard", None), ("soft", {"form": "sigmoid", "temperature": 1.0})):
        make_dataset(folder, name, {"kind": "loss", "keep": 0.6, "soft": soft})
        write_truth(folder / name, folder / "truth" / f"{name}.npz")
        for form, (packed, takes_soft) in FORMS.items():
            if name == "hard" or takes_soft:
                export(folder, name, form, packed)
                if form in ALSO_WITH_A_LENGTH:
                    export(folder, name, form, True, f"-{SEQUENCE_LENGTH}")


def write_model(folder: Path) -> None:
    """Save a two-layer Llama with the tokenizer that ships with curator, here with an end-of-text token."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(ROOT / "curator" / "scorers" / "bigram_model" / "tokenizer.json"),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_corpus(path: Path) -> None:
    """Write paragraphs of the licence as a corpus: a text that does not change with the project."""
    paragraphs = [text for text in (ROOT / "LICENSE").read_text(encoding="utf-8").split("\n\n") if len(text) > 80]
    rows = [{"text": text[: CHARACTERS - 7 * number]} for number, text in enumerate(paragraphs[:DOCUMENTS])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_dataset(folder: Path, name: str, policy: dict[str, object]) -> None:
    """Score the corpus with the tiny model and publish it; every document ends with the end-of-text token."""
    spec = {
        "name": f"canary-{name}",
        "corpus": {"kind": "jsonl", "uri": str(folder / "corpus.jsonl")},
        "models": {"reference": {"engine": "transformers", "model": str(folder / "model")}},
        "policy": policy,
        "tokens": {"eos": True},
        "output": {"uri": str(folder / name)},
        "work": str(folder / "work"),
        "run": {"workers": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    subprocess.run([CURATOR, "run", str(path)], check=True)


def export(folder: Path, name: str, form: str, with_length: bool, suffix: str = "") -> None:
    """Write one form with the public command."""
    output = folder / "exports" / f"{form}-{name}{suffix}"
    length = ["--sequence-length", str(SEQUENCE_LENGTH)] if with_length else []
    subprocess.run([CURATOR, "export", str(folder / name), "--for", form, "--output", str(output), *length], check=True)


def write_truth(dataset: Path, path: Path) -> None:
    """Write ids and weights of all documents that keep a token, end to end, in the order of their files."""
    ids: list[list[int]] = []
    weights: list[list[float]] = []
    for file in sorted((dataset / "curated").glob("*.parquet")):
        table = pq.read_table(file, columns=["input_ids", "token_weights"])
        for row_ids, row_weights in zip(
            table["input_ids"].to_pylist(), table["token_weights"].to_pylist(), strict=True
        ):
            if any(row_weights):
                ids.append(row_ids)
                weights.append(row_weights)
    np.savez(
        path,
        input_ids=np.concatenate(ids).astype(np.int64),
        token_weights=np.concatenate(weights).astype(np.float64),
        lengths=np.array([len(row) for row in ids]),
    )


if __name__ == "__main__":
    main()
