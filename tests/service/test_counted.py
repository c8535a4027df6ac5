"""A progress event whose figures are none, of a driver that went wrong or a file that was edited, ends no job."""

from typing import Any

import pytest

from curator.job_directory import Event
from service.metrics import Metrics

SOUND = {"stage": "score base", "counted": {"tokens": 7, "shards": {"published": 2}}}


def read(metrics: Metrics, data: dict[str, Any]) -> None:
    metrics.event_read(Event(id=1, at="2026-01-01T00:00:00Z", type="progress", attempt=1, epoch=1, data=data))


@pytest.mark.parametrize(
    "data",
    [
        {"counted": {"tokens": 5, "shards": {}}},
        SOUND | {"counted": 5},
        SOUND | {"counted": []},
        SOUND | {"counted": {}},
        SOUND | {"counted": {"tokens": "many", "shards": {"published": "two"}}},
        SOUND | {"counted": {"tokens": -1, "shards": {"published": -2}}},
        SOUND | {"counted": {"tokens": None, "shards": [["published", 2]]}},
        SOUND | {"counted": {"tokens": float("nan"), "shards": {"published": 0.5, "no such": 2}}},
    ],
)
def test_figures_that_are_none_are_not_counted_and_the_next_are(data: dict[str, Any]) -> None:
    metrics = Metrics(None, None)  # type: ignore[arg-type]  # asked for gauges alone
    read(metrics, data)
    read(metrics, SOUND)
    assert metrics._registry.get_sample_value("stage_tokens_total", {"stage": "score"}) == 7
    assert metrics._registry.get_sample_value("shard_commits_total", {"result": "published"}) == 2
