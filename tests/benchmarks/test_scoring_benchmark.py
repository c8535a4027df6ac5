"""What the scoring benchmark makes of its measurements; the measuring itself is run by `make bench-scoring`."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plot_scoring
import pytest
import scoring_figures as figures
import scoring_plan
import scoring_table
import workloads
from engines.child import read_documents, time_workload
from engines.matrices import limit_tokens_per_s, linear_shapes
from engines.plain import fixed_batches


def test_a_sample_has_the_lengths_of_the_corpus() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1, 5000).astype(int).tolist()

    chosen = [lengths[i] for i in workloads.stratified(lengths, 100_000)]

    assert 100_000 <= sum(chosen) < 110_000
    for share in (10, 50, 90):
        assert np.percentile(chosen, share) == pytest.approx(np.percentile(lengths, share), rel=0.05)


def test_a_corpus_that_is_too_small_is_taken_whole() -> None:
    assert sorted(workloads.stratified([3, 1, 2], 100)) == [0, 1, 2]


def test_every_company_holds_the_targets_where_it_says() -> None:
    documents = [np.full(n + 2, n, np.int32) for n in range(9)]

    targets, mixes, places = workloads.companies(documents, 4, 3)

    assert [one[0] for one in targets] == [0, 1, 2, 3]
    for mix, order in zip(mixes, places, strict=True):
        assert [mix[i][0] for i in order] == [0, 1, 2, 3]
        assert len({one[0] for one in mix}) == len(mix) > 4


def test_documents_come_back_as_they_were_written(tmp_path: Path) -> None:
    documents = workloads.uniform(np.arange(10), 4, 12)

    workloads.write_documents(tmp_path, "some", documents)

    assert [one.tolist() for one in read_documents(tmp_path, "some")] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


def test_batches_of_the_plain_forward_keep_size_and_budget() -> None:
    lengths = [5, 1, 9, 7, 3, 9]

    assert fixed_batches(lengths, 2, 18) == [[2, 5], [3, 0], [4]]
    assert fixed_batches(lengths, 8, 18) == [[2, 5], [3, 0], [4]]
    assert fixed_batches(lengths, 8, 1) == [[2], [5], [3], [0], [4]]


def test_the_limit_is_the_time_of_all_products() -> None:
    config = SimpleNamespace(
        hidden_size=4, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=3, vocab_size=10,
    )  # fmt: skip
    shapes = linear_shapes(config)
    weights = 2 * (4 * 6 + 2 * 4 * 3 + 6 * 4 + 3 * 4 * 6) + 4 * 10

    assert limit_tokens_per_s(shapes, dict.fromkeys(shapes, 1000.0)) == pytest.approx(1000 / (2 * weights))
    fast_head = dict.fromkeys(shapes, 1000.0) | {"head": float("inf")}
    assert limit_tokens_per_s(shapes, fast_head) == pytest.approx(1000 / (2 * (weights - 40)))


def test_variants_take_turns() -> None:
    calls: list[str] = []

    seconds = time_workload({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)

    assert calls == ["a", "b", "a", "b"]
    assert [len(one) for one in seconds.values()] == [2, 2]


def measured(job_s: dict[str, float]) -> dict[str, Any]:
    return {
        job: {"timings": {"mix": {"scorer": [seconds, 2 * seconds]}}, "tokens": {"mix": 1000}}
        for job, seconds in job_s.items()
    }


def test_ratios_hold_the_best_repetition_against_the_peers() -> None:
    raw = measured({"vllm": 1.0, "transformers": 2.0, "plain forward": 5.0, "vllm, features": 1.04})
    raw["vLLM itself"] = {
        "timings": {"mix": {"prompt_logprobs": [4.0], "prefill only": [0.5]}}, "tokens": {"mix": 1000}
    }  # fmt: skip
    raw["limit"] = {"measured": {"tokens_per_s": 1250.0}}

    ratios = figures.speed(raw)["ratios"]

    assert ratios == {
        "vllm / stock": 4.0, "faster / stock": 4.0, "transformers / plain": 2.5, "faster / limit": 0.8
    }  # fmt: skip
    assert figures.features(raw) == {"vllm": pytest.approx(0.04)}


def test_the_same_tokens_are_compared_in_every_company(tmp_path: Path) -> None:
    nan = np.nan
    recorded = {
        "alone": [nan, 1.0, nan, 2.0, 3.0],  # targets of 2 and 3 tokens
        "company_0": [nan, 2.0, 3.0, nan, 1.5],
        "company_1": [nan, 1.0, nan, 9.0, nan, 2.0, 3.0],
        "company_2": [nan, 1.0, nan, 2.0, 3.25],
    }
    paths = {name: str(tmp_path / f"{name}.npy") for name in recorded}
    for name, values in recorded.items():
        np.save(paths[name], np.array(values, np.float32))

    found = figures.batching(
        {"vllm": {"recorded": paths}}, [[3, 2], [2, 2, 3], [2, 3]], [[1, 0], [0, 2], [0, 1]], [2, 3]
    )

    assert found["vllm"]["max"] == 0.5
    assert found["vllm"]["pairs"] == 9
    assert found["vllm"]["equal"] == pytest.approx(7 / 9)


def test_what_was_not_measured_is_said_and_never_reached() -> None:
    goal = scoring_table.Goal("speed", ("speed", "ratios", "vllm / stock"), 2.5)

    assert scoring_table.judge({}, goal) == ("not measured", ">= 2.50", "")
    assert scoring_table.judge({"speed": {"ratios": {"vllm / stock": 2.5}}}, goal)[2] == "reached"
    assert scoring_table.judge({"speed": {"ratios": {"vllm / stock": 2.4}}}, goal)[2] == "missed"


def test_sections_share_processes() -> None:
    options = scoring_plan.Options(
        ("speed", "accuracy", "batching"), ("plain", "stock"), "model", "folder", "file", 2, 2, Path("python")
    )

    steps = scoring_plan.plan(options)

    assert [job.engine for job in steps["vllm"].jobs] == ["ours"]
    assert steps["vllm"].jobs[0].time == {"mix": 2, "uniform_512": 2, "uniform_2048": 2}
    assert steps["vllm"].jobs[0].record == ["accuracy", "alone", "company_0", "company_1", "company_2"]
    assert steps["vllm, float32"].jobs[0].time == {}
    assert "lm-eval" not in steps


def test_the_plot_is_an_svg_with_a_bar_for_each_engine() -> None:
    engines = {name: {"tokens_per_s": {"mix": rate}} for name, rate in {"vllm": 10.0, "a < b": 5.0}.items()}
    results = {
        "sections": {"speed": {"engines": engines, "run": "now"}, "limit": {"model": {"tokens_per_s": 20.0}}},
        "runs": {"now": {"model": "Small", "threads": 2, "cpu": "CPU"}},
    }

    root = ElementTree.fromstring(plot_scoring.draw(json.loads(json.dumps(results))))

    widths = [float(one.get("width", 0)) for one in root if one.tag.endswith("rect")]
    assert len(widths) == 2
    assert widths[0] == pytest.approx(2 * widths[1])
    assert widths[0] == pytest.approx((scoring_limit_x(root) - plot_scoring.LABELS) / 2, abs=0.1)


def scoring_limit_x(root: ElementTree.Element) -> float:
    return next(float(one.get("x1", 0)) for one in root if one.tag.endswith("line"))
