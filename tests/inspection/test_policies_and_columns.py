"""Every policy's weights are explained by the scores and cuts shown, wherever a dataset keeps its columns."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator import inspection
from curator.data import Cut
from curator.inspection import rows
from curator.job import Job
from curator.pipeline import weigh
from curator.policies.threshold import Threshold


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "loss", "keep": 0.3, "prefer": "highest", "scope": "source"},
        *(
            pytest.param(policy, marks=pytest.mark.slow)
            for policy in (
                {"kind": "random", "keep": 0.5, "scope": "shard"},
                {"kind": "excess_loss", "keep": 0.25, "scope": "document"},
                {"kind": "threshold", "minimum": 0.25},
                {"kind": "keep_all"},
            )
        ),
        {"kind": "excess_loss", "keep": 0.6, "soft": {"form": "linear", "temperature": 1.0}},
    ],
    ids=lambda policy: "-".join(str(policy.get(key, "")) for key in ("kind", "scope")),
)
def test_scores_and_cuts_explain_the_weights_of_every_policy(
    bench: Any, folder: Path, lines: list[bytes], finished: Job, tmp_path: Path, policy: dict[str, Any]
) -> None:
    job = bench.finish(bench.make_job(folder, lines, policy=policy, output={"uri": str(tmp_path / "out")}))
    shown = bench.documents(job)
    assert len(shown) == 102
    for document in shown:
        score, weights = np.array(document["layers"]["score"], float), np.array(document["weights"])
        assert not weights[np.isnan(score)].any()
        if policy["kind"] == "keep_all":
            assert document["cut"] is None and np.array_equal(weights > 0, ~np.isnan(score))
        elif not policy.get("soft"):
            assert score[weights > 0].min(initial=np.inf) >= document["cut"]
            assert np.nanmax(np.where(weights > 0, np.nan, score), initial=-np.inf) <= document["cut"]
        else:
            assert np.all(np.diff(weights[np.argsort(score)][: np.count_nonzero(~np.isnan(score))]) >= 0)
    histograms = bench.assert_json(inspection.read_histograms(job))
    assert sum(histograms["score"]["scored"]) == histograms["total"]["scored"]
    near = inspection.read_preview(job, select="near", limit=5)
    assert bool(near.documents) == (policy["kind"] != "keep_all")
    if policy.get("scope") == "source":
        cuts = {document["source"]: document["cut"] for document in shown}
        assert {source["name"]: source["cut"] for source in histograms["sources"]} == cuts
        assert histograms["cut"] is None and len(histograms["cuts"]) == len(cuts)


def test_of_two_bounds_the_lower_counts_as_the_cut() -> None:
    cuts = {"": Cut(value=9.0, share=0)}
    assert rows.overall_cut(Threshold(minimum=0.5, maximum=2.0), cuts) == 0.5
    assert rows.overall_cut(Threshold(maximum=2.0), cuts) == 2.0


@pytest.mark.slow
def test_columns_that_are_not_published_come_from_the_work_folder(
    bench: Any, lines: list[bytes], tmp_path: Path, finished: Job
) -> None:
    job = bench.finish(bench.make_job(tmp_path, lines, output={"uri": str(tmp_path / "out"), "columns": ["input_ids"]}))
    assert bench.documents(job) == bench.documents(finished)
    assert inspection.read_histograms(job).sources == inspection.read_histograms(finished).sources
    funnel, faults = inspection.read_funnel(job), inspection.read_errors(job)

    shutil.rmtree(tmp_path / "work")
    preview = inspection.read_preview(job, select="kept", limit=5)
    assert preview.documents == [] and preview.note is not None and "work folder" in preview.note
    after = inspection.read_funnel(job)
    assert after.documents.kept == funnel.documents.kept and after.documents.read >= 102
    histograms = inspection.read_histograms(job)
    assert histograms.total.tokens == funnel.tokens.read and all(s.score is None for s in histograms.sources)
    listed = inspection.read_errors(job)
    assert listed.reasons == faults.reasons
    assert [fault.row for fault in listed.data] == [fault.row for fault in faults.data]


def test_weights_alone_are_shown_with_the_text_that_they_are_for(
    bench: Any, folder: Path, lines: list[bytes], finished: Job, tmp_path: Path
) -> None:
    job = bench.make_job(folder, lines, output={"uri": str(tmp_path / "weights")})
    alone = Job(job.spec, job.plan.model_copy(update={"content": "weights"}))
    weigh(alone, bench.here(None), [])
    assert not (tmp_path / "weights" / "curated").exists()
    assert bench.documents(alone) == bench.documents(finished)


def test_a_text_without_its_scores_is_shown_with_its_weights(bench: Any, lines: list[bytes], tmp_path: Path) -> None:
    columns = ["text", "token_bytes", "source"]
    job = bench.finish(bench.make_job(tmp_path, lines, output={"uri": str(tmp_path / "out"), "columns": columns}))
    shutil.rmtree(tmp_path / "work")
    for document in bench.documents(job, "kept", 50):
        assert document["layers"] == {} and document["scored_tokens"] == document["total_tokens"] - 1
    assert inspection.read_preview(job, select="near", limit=5).documents == []
