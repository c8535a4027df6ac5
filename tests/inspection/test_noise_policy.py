"""A policy that reads more of a model than log-probs, and token ids: through a job, its inspection and a selection."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator import inspection, parse_spec, select
from curator.errors import SpecError
from curator.job import Job
from curator.policies.noise import Noise
from curator.preview import make_preview
from curator.selection.repeats import mark_repeats
from curator.tables import flat

MODELS = {
    "reference": {"engine": "bigram", "features": ["entropy"]},
    "base": {"engine": "bigram", "model": "unigram"},
}
POLICY = {"kind": "noise", "keep": 0.7}


def test_scores_shown_are_those_of_the_formula_over_what_is_stored(
    bench: Any, lines: list[bytes], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"models": MODELS, "policy": POLICY, "output": {"uri": str(tmp_path / "out")}}
    job: Job = bench.finish(bench.make_job(tmp_path, lines, **changes))
    shown = {document["doc_id"]: document for document in bench.documents(job)}
    kept = scored = repeated = 0
    for number in sorted(job.curated.published()):
        with job.curated.open(number) as curated, job.scores("reference").open(number) as reference:
            rows, entropy = curated.read(), flat(reference.read(["entropy"])["entropy"])[0].astype(np.float32)
        ids_T, offsets = flat(rows["input_ids"])
        columns = {name: flat(rows[name])[0].astype(np.float32) for name in ("logprobs_reference", "logprobs_base")}
        columns |= {"entropy_reference": entropy, "repeated": mark_repeats(ids_T, offsets)}
        repeated += int(np.nansum(columns["repeated"]))
        expected = np.split(Noise().score(columns).astype(np.float16).astype(np.float32), offsets[1:-1])
        weights = np.split(flat(rows["token_weights"])[0], offsets[1:-1])
        for doc_id, score_T, weights_T in zip(rows["doc_id"].to_pylist(), expected, weights, strict=True):
            layer = np.array(shown[doc_id]["layers"]["score"], float)
            assert np.allclose(layer, score_T[: len(layer)], atol=1e-3, equal_nan=True)
            assert score_T[weights_T > 0].min(initial=np.inf) >= shown[doc_id]["cut"]
            kept, scored = kept + int((weights_T > 0).sum()), scored + int((~np.isnan(score_T)).sum())
    assert repeated > 100, "the long row says the same forty times"
    assert kept / scored == pytest.approx(0.7, abs=1e-3)
    histograms = inspection.read_histograms(job)
    assert histograms.score is not None and sum(histograms.score.scored) == histograms.total.scored


def test_a_preview_scores_it_too(lines: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(lines[:5]))
    corpus = {"kind": "jsonl", "uri": str(tmp_path / "corpus.jsonl"), "source_field": "source", "id_field": "id"}
    spec = {"name": "n", "corpus": corpus, "models": MODELS, "policy": POLICY, "output": {"uri": str(tmp_path / "out")}}
    html, summary = make_preview(parse_spec(spec), 5)
    assert "fit in nats" in html and "70" in summary


@pytest.mark.parametrize("features", [[], ["rank"]])
def test_a_spec_without_the_entropy_is_refused_with_the_remedy(features: list[str]) -> None:
    models = {**MODELS, "reference": {"engine": "bigram", "features": features}}
    spec = {
        "name": "n", "corpus": {"kind": "jsonl", "uri": "x.jsonl"}, "models": models, "policy": POLICY,
        "output": {"uri": "out"},
    }  # fmt: skip
    with pytest.raises(SpecError, match=r"'noise' needs 'entropy_reference'; set models\.reference\.features"):
        parse_spec(spec)


def test_selecting_by_it_needs_stored_entropies(finished: Job, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'entropy_reference'; set models\.reference\.features"):
        select(finished.root, POLICY, str(tmp_path / "selected"))
