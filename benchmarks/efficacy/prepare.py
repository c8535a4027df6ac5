"""What all arms share: tokenizer, base, reference, and the pool that continual training draws from, scored once.

Each part is made once and found again by its folder. The reference is tuned by `curator train-reference`, the pool is
scored by `curator run`, every offline arm is a data set that `curator select` made from those scores: what is measured
is the product, not a copy of the method.
"""

import gzip
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from learning import Plan, batched, load_model, measure, train
from setting import Setting, read_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from curator.training.packing import pack

POOL_SHARE, RETAIN_SHARE = 0.08, 0.02
_LOOKS = 40
_END = "<|endoftext|>"


def prepare(setting: Setting) -> dict[str, Any]:
    """Make what is not there yet; returns what is known of it."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    check_same(setting.path("setting.json"), setting.describe())
    for name, make in (
        ("split", split),
        ("base", make_base),
        ("reference", make_reference),
        ("good", make_good),
        ("scored", score),
    ):
        record = setting.path(f"{name}.json")
        if not record.exists():
            began = time.monotonic()
            facts = make(setting)
            facts["seconds"] = round(time.monotonic() - began, 1)
            record.write_text(json.dumps(facts, indent=1))
            print(f"{name}: {facts}", flush=True)
    return {
        name: json.loads(setting.path(f"{name}.json").read_text()) for name in ("base", "reference", "good", "scored")
    }


def check_same(record: Path, facts: dict[str, Any]) -> None:
    """What is kept in a folder is of one setting; refuse to mix it with another's."""
    facts = json.loads(json.dumps(facts))
    if not record.exists():
        record.write_text(json.dumps(facts, indent=1))
    elif json.loads(record.read_text()) != facts:
        sys.exit(f"{record} is of another setting than {facts}; remove {record.parent} or name another --folder")


def curator(setting: Setting, *arguments: str) -> None:
    """Run our own command in the prepared folder; 3 says that rows were quarantined, as real data has it."""
    command = [str(Path(sys.executable).with_name("curator")), *arguments]
    status = subprocess.run(command, cwd=setting.folder, check=False, stdout=subprocess.DEVNULL).returncode
    if status not in (0, 3):
        sys.exit(f"{' '.join(command)} ended with {status}")


# ------------------------------------------------------------------------------------------------ data


def split(setting: Setting) -> dict[str, Any]:
    """Three parts of the mix by a hash of each document's id: to train the base, to draw from, to guard.

    The mix repeats some texts under other ids: 49 of the pool's 1,326 documents and 13 of the 326 held out are also
    in the base's part.
    """
    if not (setting.data / "corpus" / "mix.jsonl.gz").exists():
        sys.exit(f"{setting.data} has no corpus/mix.jsonl.gz; name the folder with corpus/ and target/ by --data")
    parts: dict[str, list[dict[str, str]]] = {"base": [], "pool": [], "retain": []}
    for row in _read_gzip(setting.data / "corpus" / "mix.jsonl.gz"):
        place = int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big") / 2**64
        name = "retain" if place < RETAIN_SHARE else "pool" if place < RETAIN_SHARE + POOL_SHARE else "base"
        parts[name].append(row)
    for name in ("train", "test"):
        parts[f"target_{name}"] = list(_read_gzip(setting.data / "target" / f"gsm8k_{name}.jsonl.gz"))
    for name, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        setting.path(f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: len(rows) for name, rows in parts.items()}


def _read_gzip(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def encode(setting: Setting, name: str) -> list[np.ndarray]:
    """Token ids of a part's documents; those of one token or none are left out."""
    cache = setting.path(f"{name}.npz")
    if not cache.exists():
        tokenizer = Tokenizer.from_file(str(setting.path("base", "tokenizer.json")))
        texts = [row["text"] for row in read_rows(setting.path(f"{name}.jsonl"))]
        found = [np.array(encoded.ids, np.int32) for encoded in tokenizer.encode_batch_fast(texts)]
        found = [ids for ids in found if len(ids) > 1]
        np.savez(cache, ids=np.concatenate(found), lengths=[len(ids) for ids in found])
    loaded = np.load(cache)
    return np.split(loaded["ids"], np.cumsum(loaded["lengths"])[:-1])


def looked_at(setting: Setting) -> dict[str, list[np.ndarray]]:
    """Documents that every curve is measured on: the target's test set and held-out mix, a fixed sample of each."""
    chosen = {}
    for name, part, count in (
        ("target", "target_test", setting.size.target_documents), ("retain", "retain", setting.size.retain_documents),
    ):  # fmt: skip
        documents = encode(setting, part)
        order = np.random.default_rng(0).permutation(len(documents))[:count]
        chosen[name] = [documents[index] for index in order]
    return chosen


# ------------------------------------------------------------------------------------------------ base


def make_base(setting: Setting) -> dict[str, Any]:
    """A tokenizer and a model, trained on most of the mix.

    It counts as converged when the last tenth of its training gained under 0.01 nats on held-out mix. Where the
    learning rate falls to 0, that tenth is also its slowest: read the curve and the number of tokens with it.
    """
    torch.manual_seed(0)
    size, folder = setting.size, setting.path("base")
    folder.mkdir(exist_ok=True)
    _train_tokenizer(setting, folder)
    documents = encode(setting, "base")
    held = looked_at(setting)["retain"]
    steps = min(size.base_tokens, 2 * sum(map(len, documents))) // size.step_tokens
    model = LlamaForCausalLM(size.config).to(setting.device)
    kept_curve = setting.path("base-curve.json")
    curve = (
        {int(step): loss for step, loss in json.loads(kept_curve.read_text()).items()} if kept_curve.exists() else {}
    )
    looks = sorted({round(steps * share) for share in np.linspace(0, 1, _LOOKS + 1)[1:]} | {round(0.9 * steps)})

    def look(step: int) -> None:
        curve[step] = round(measure(model, held, setting), 4)
        kept_curve.write_text(json.dumps(curve))
        print(f"base: step {step:,} of {steps:,}, held-out mix {curve[step]:.4f} nats", flush=True)

    plan = Plan(
        steps,
        size.base_rate,
        warmup=min(200, steps // 10),
        decay=size.base_decay,
        look_at=frozenset(looks),
        look=look,
        keep=setting.path("base.pt"),
    )
    batches = batched(_sequences(documents, size.sequence_length), size.step_tokens // size.sequence_length)
    seconds = train(model, batches, plan, setting)
    model.save_pretrained(folder)
    gain = curve[round(0.9 * steps)] - curve[steps]
    return {
        "parameters": model.num_parameters(), "tokens": steps * size.step_tokens, "training_seconds": round(seconds),
        "curve": curve, "gain_of_last_tenth": round(gain, 4), "converged": gain < 0.01,
    }  # fmt: skip


def _train_tokenizer(setting: Setting, folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=setting.size.vocabulary, special_tokens=[_END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    rows = read_rows(setting.path("base.jsonl"))
    tokenizer.train_from_iterator((row["text"] for row in rows[::4]), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END).save_pretrained(folder)


def _sequences(documents: list[np.ndarray], length: int) -> Iterator[dict[str, torch.Tensor]]:
    """Packed sequences without end, each pass over the documents in another order."""
    epoch = 0
    while True:
        order = np.random.default_rng([1, epoch]).permutation(len(documents)).tolist()
        rows = ((number, _row(documents[index])) for number, index in enumerate(order))
        for _, sequence in pack(rows, length):
            yield {name: torch.from_numpy(values) for name, values in sequence.items()}
        epoch += 1


def _row(ids: np.ndarray) -> dict[str, np.ndarray]:
    weights = np.ones(len(ids), np.float32)
    weights[0] = 0
    return {"input_ids": ids.astype(np.int64), "labels": ids.astype(np.int64), "token_weights": weights}


# ------------------------------------------------------------------------------------------------ reference, scores


def make_reference(setting: Setting) -> dict[str, Any]:
    """The base, tuned for three epochs on the target's training set (Rho-1, sec. 3.1)."""
    spec = {
        "base": "base", "output": "reference", "epochs": 3, "learning_rate": setting.size.reference_rate,
        "corpus": {"kind": "jsonl", "uri": "target_train.jsonl"}, "sequence_length": setting.size.sequence_length,
    }  # fmt: skip
    setting.path("reference.yaml").write_text(yaml.safe_dump(spec))
    curator(setting, "train-reference", "reference.yaml")
    target = looked_at(setting)["target"]
    losses = {name: measure(load_model(setting.path(name), setting), target, setting) for name in ("base", "reference")}
    return {f"target_loss_under_{name}": round(loss, 4) for name, loss in losses.items()}


def make_good(setting: Setting) -> dict[str, Any]:
    """The reference's own data as a data set in which every token counts, for the arms that mix it in."""
    spec = {
        "name": "good", "corpus": {"kind": "jsonl", "uri": "target_train.jsonl"}, "models": {},
        "tokens": {"tokenizer": "base"}, "policy": {"kind": "keep_all"}, "output": {"uri": "good"},
    }  # fmt: skip
    setting.path("good.yaml").write_text(yaml.safe_dump(spec))
    curator(setting, "run", "good.yaml")
    return dict(json.loads(setting.path("good", "manifest.json").read_text())["totals"])


def score(setting: Setting, base: str = "base", output: str = "scored") -> dict[str, Any]:
    """Score the pool under base and reference; what is stored of a model already is not scored again.

    The context is the length that they were trained on: beyond it their losses would say nothing.
    """
    context = setting.size.sequence_length
    spec = {
        "name": output, "corpus": {"kind": "jsonl", "uri": "pool.jsonl", "source_field": "source", "id_field": "id"},
        "models": {name: {"engine": "transformers", "model": model, "context": context, "left_context": context // 4}
                   for name, model in (("reference", "reference"), ("base", base))},
        "policy": {"kind": "keep_all"}, "output": {"uri": output}, "shard_tokens": 1_000_000, "work": "work",
    }  # fmt: skip
    setting.path(f"{output}.yaml").write_text(yaml.safe_dump(spec))
    curator(setting, "run", f"{output}.yaml")
    totals = json.loads(setting.path(output, "manifest.json").read_text())["totals"]
    return {"documents": totals["rows"], "tokens": totals["tokens"]}
