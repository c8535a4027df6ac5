"""From events to columns: what the newest events of a job say about it."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from curator.job_directory import TERMINAL, Event

_REPEATED = ("calibrate", "publish")
"""How the names of stages begin that start from the beginning whenever a job is started again."""
POSTPONED = "postponed"
"""In an event that queues a job which could not be started: it goes on waiting."""


def fold(events: Iterable[Event]) -> dict[str, Any]:
    """The columns that these events change, oldest first."""
    changes: dict[str, Any] = {}
    for event in events:
        moment = datetime.fromisoformat(event.at).timestamp()
        changes |= {"updated_at": moment, "epoch": event.epoch, "attempt": event.attempt}
        if event.type == "progress":
            changes["progress"] = event.data
        elif event.type == "state":
            changes |= _fold_state(event.data, moment)
    return changes


def _fold_state(data: dict[str, Any], moment: float) -> dict[str, Any]:
    status = data["status"]
    changes: dict[str, Any] = {"status": status, "error": data.get("error")}
    if status == "validating":
        changes |= {"started_at": moment, "finished_at": None, "progress": None}
    if status == "queued":
        changes |= {"finished_at": None, "progress": None} | ({} if data.get(POSTPONED) else {"queued_at": moment})
    if status in TERMINAL:
        changes |= {"finished_at": moment}
    if status == "completed":
        changes |= {"totals": data.get("totals"), "quarantined": data.get("quarantined")}
    return changes


def has_published(progress: dict[str, Any] | None) -> bool:
    """Whether the driver that reports this has published a shard, which no later one needs to do again."""
    stages = progress["stages"] if progress else []
    lasting = [stage for stage in stages if not stage["stage"].startswith(_REPEATED)]
    if any(stage["state"] == "finished" and stage["shards"] for stage in lasting):
        return True
    return bool(progress and lasting and lasting[-1] is stages[-1] and progress["shards_done"])
