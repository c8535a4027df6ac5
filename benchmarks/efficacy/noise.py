"""Which token scores find noise? AUROC of each policy's scores by kind of noise (`make bench-noise`).

    python benchmarks/efficacy/noise.py [--size 4m] [--documents 300]

Clean text is the target's test set, which no model has seen; noise of five kinds is put into it (inject.py), everything
is scored by `curator run` under the base and the reference of `make bench-efficacy`, which are made if they are not
there, and every policy scores the tokens. AUROC is the chance that a clean token has a higher score than a noisy one:
1 = a cut parts them without a mistake, 0.5 = the score says nothing. Tokens without a score, and those that lie half
in noise, are left out.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from pydantic import TypeAdapter
from inject import KINDS, Noisy, auroc, inject, label
from prepare import curator, prepare
from setting import ROOT, SIZES, Setting, read_rows

from curator.policies import PolicyConfig
from curator.selection.repeats import mark_repeats
from curator.tables import flat

SHARES = (0.05, 0.1, 0.2, 0.4)
MAIN_SHARE = 0.2
FOREIGN = ("email_spamassassin", "man_roff", "docs_linux", "docs_python")

SEED = 1
"""The policy `noise` was tried out on noise of seed 0, in other documents."""

Columns = dict[str, np.ndarray]


def _by_policy(**settings: Any) -> Callable[[Columns], np.ndarray]:
    policy = TypeAdapter(PolicyConfig).validate_python(settings)
    return lambda columns: np.asarray(policy.score({name: columns[name] for name in policy.columns()}))


SCORES: dict[str, Callable[[Columns], np.ndarray]] = {
    "random": _by_policy(kind="random"),
    "loss of the base": _by_policy(kind="loss", model="base"),
    "loss of the reference": _by_policy(kind="loss", model="reference"),
    "entropy of the base": lambda columns: -columns["entropy_base"],
    "entropy of the reference": lambda columns: -columns["entropy_reference"],
    "excess loss": _by_policy(kind="excess_loss"),
    "noise": _by_policy(kind="noise"),
}
"""Higher = keep; a low loss and a low entropy are taken for clean."""


def make_corpus(setting: Setting, documents: int) -> dict[str, Noisy]:
    """Every kind at every share, in copies of the same documents; the rows' source is kind and share."""
    clean = [row["text"] for row in read_rows(setting.path("target_test.jsonl"))][:documents]
    foreign = [row["text"] for row in read_rows(setting.path("retain.jsonl")) if row["source"] in FOREIGN]
    noisy, rows = {}, []
    for kind in KINDS:
        for share in SHARES:
            for number, made in enumerate(inject(kind, clean, share, foreign)):
                name = f"{kind}-{share}-{number}"
                noisy[name] = made
                rows.append({"id": name, "source": f"{kind}-{share}", "text": made.text})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    setting.path("noisy.jsonl").write_text(text, encoding="utf-8")
    return noisy


def score(setting: Setting) -> None:
    """Log-prob and entropy of every token under base and reference."""
    context = setting.size.sequence_length
    model = {"engine": "transformers", "context": context, "left_context": context // 4, "features": ["entropy"]}
    spec = {
        "name": "noisy", "corpus": {"kind": "jsonl", "uri": "noisy.jsonl", "source_field": "source", "id_field": "id"},
        "models": {name: model | {"model": name} for name in ("reference", "base")},
        "policy": {"kind": "keep_all"}, "output": {"uri": "noisy"}, "work": "work-noisy",
    }  # fmt: skip
    setting.path("noisy.yaml").write_text(yaml.safe_dump(spec))
    curator(setting, "run", "noisy.yaml")


def measure(setting: Setting, noisy: dict[str, Noisy]) -> dict[str, dict[str, dict[str, float]]]:
    """AUROC by share, score and kind; kinds are averaged under "mean"."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for share in SHARES:
        scored = {kind: _read(setting, noisy, f"{kind}-{share}") for kind in KINDS}
        rows = found[str(share)] = {}
        for name, score in SCORES.items():
            rows[name] = {kind: round(_measure_one(score, *scored[kind]), 4) for kind in KINDS}
            rows[name]["mean"] = round(float(np.mean(list(rows[name].values()))), 4)
    return found


def _measure_one(score: Callable[[Columns], np.ndarray], columns: Columns, labels_T: np.ndarray) -> float:
    score_T = score(columns)
    counted = ~np.isnan(score_T) & (labels_T >= 0)
    return auroc(score_T[counted], labels_T[counted] == 1)


def _read(setting: Setting, noisy: dict[str, Noisy], source: str) -> tuple[Columns, np.ndarray]:
    """The score columns of one source's tokens, documents end to end, and what each token is."""
    parts: dict[str, list[np.ndarray]] = {}
    for curated in sorted(setting.path("noisy", "curated").glob("*.parquet")):
        rows = pq.read_table(curated, filters=[("source", "=", source)])
        if rows.num_rows == 0:
            continue
        ids_T, offsets = flat(rows["input_ids"])
        columns = {name: flat(rows[name])[0].astype(np.float32) for name in ("logprobs_reference", "logprobs_base")}
        columns |= _entropies(setting, curated.stem, source)
        columns["repeated"] = mark_repeats(ids_T, offsets)
        columns["uniform"] = np.random.default_rng(len(ids_T)).random(len(ids_T)).astype(np.float32)
        token_bytes = np.split(flat(rows["token_bytes"])[0], offsets[1:-1])
        names = rows["doc_id"].to_pylist()
        columns["label"] = np.concatenate([label(noisy[n], size) for n, size in zip(names, token_bytes, strict=True)])
        for name, values_T in columns.items():
            parts.setdefault(name, []).append(values_T)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return joined, joined.pop("label")


def _entropies(setting: Setting, shard: str, source: str) -> Columns:
    """Entropies are stored with the scores, in the rows of the token file."""
    work = setting.path("work-noisy")
    sources = np.array(_one(work.glob(f"tokens/*/{shard}.parquet"), "source").to_pylist())
    found = {}
    for model in ("reference", "base"):
        entropies = _one(work.glob(f"scores/{model}/*/{shard}.parquet"), "entropy")
        found[f"entropy_{model}"] = flat(entropies.filter(sources == source))[0].astype(np.float32)
    return found

