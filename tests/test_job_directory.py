"""The directory of a job: contiguous events from several processes, torn lines, fencing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import line_file
from curator.errors import StorageError, Superseded
from curator.job_directory import JOB_ID_PATTERN, EventLog, JobDirectory, JobRecord, list_jobs, new_id, now


def make_job(root: Path, **changes: object) -> JobDirectory:
    job_id = new_id("job")
    record = JobRecord(
        id=job_id, kind="curate", tenant="default", name="n", spec={}, output="/nowhere", created_at=now()
    ).model_copy(update=changes)  # fmt: skip
    directory = JobDirectory(root / "jobs" / job_id)
    assert directory.create(record)
    return directory


def test_ids_sort_by_age_and_are_well_formed() -> None:
    ids = [new_id("job") for _ in range(1000)]
    assert all(re.match(JOB_ID_PATTERN, job_id) for job_id in ids)
    assert len(set(ids)) == 1000
    assert [job_id[:13] for job_id in ids] == sorted(job_id[:13] for job_id in ids)


def test_creating_a_job_twice_keeps_the_first_record_and_one_event(tmp_path: Path) -> None:
    directory = make_job(tmp_path)
    again = directory.record().model_copy(update={"name": "other"})
    assert not directory.create(again)
    assert directory.record().name == "n"
    assert [(event.id, event.data) for event, _ in directory.events.read(0, 10)] == [(1, {"status": "queued"})]
    assert sorted(path.name for path in directory.path.iterdir()) == ["events.jsonl", "job.json"]
    assert [job.path for job in list_jobs(tmp_path)] == [directory.path]


_WRITER = """
import sys
from pathlib import Path
from curator.job_directory import JobDirectory
for index in range(50):
    JobDirectory(Path(sys.argv[1])).append(1, "message", {"text": f"{sys.argv[2]} {index}"})
"""


def test_ids_are_contiguous_whoever_writes(tmp_path: Path) -> None:
    directory = make_job(tmp_path)
    command = [sys.executable, "-c", _WRITER, str(directory.path)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    found = [event for event, _ in directory.events.read(0, 1000)]
    assert [event.id for event in found] == list(range(1, 202))
    texts = [event.data["text"] for event in found[1:]]
    for number in range(4):  # each writer's events in its own order
        mine = [text for text in texts if text.startswith(f"{number} ")]
        assert mine == [f"{number} {index}" for index in range(50)]


@pytest.mark.parametrize("torn", [b'{"id":2,"at"', b"\x00" * 5000, b'{"id":2}' * 3000])
def test_what_a_killed_writer_left_of_a_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    directory = make_job(tmp_path)
    with directory.events.path.open("ab") as file:
        file.write(torn)
    assert len(directory.events.read(0, 10)) == 1  # nor does a reader see it
    assert directory.append(1, "message", {"text": "whole"}).id == 2
    assert [event.id for event, _ in directory.events.read(0, 10)] == [1, 2]


def test_an_earlier_owner_can_write_nothing(tmp_path: Path) -> None:
    directory = make_job(tmp_path)
    directory.append(1, "message", {"text": "mine"})
    directory.advance(2, {"status": "cancelling"})
    with pytest.raises(Superseded, match="has passed on to owner 2"):
        directory.append(1, "state", {"status": "completed"})
    with pytest.raises(Superseded):
        directory.advance(1, {"status": "queued"})
    assert directory.last_state() == ("cancelling", 3)
    assert (directory.record().epoch, directory.record().attempt) == (2, 1)


def test_of_two_who_take_a_job_over_at_once_one_is_refused(tmp_path: Path) -> None:
    directory = make_job(tmp_path)
    directory.advance(2, {"status": "validating"})
    with pytest.raises(Superseded, match="came second"):
        directory.advance(2, {"status": "validating"})
    assert directory.events.last_id() == 2


def test_a_step_that_a_crash_has_cut_short_can_be_completed(tmp_path: Path) -> None:
    directory = make_job(tmp_path)
    directory.advance(2, {"status": "cancelling"})
    path = directory.events.path
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])  # job.json was written, the event was not
    assert directory.events.last_epoch() == 1
    directory.advance(2, {"status": "cancelling"})
    assert directory.last_state() == ("cancelling", 2)


def test_a_process_stopped_with_the_lock_holds_nobody_up_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_job(tmp_path)
    monkeypatch.setattr(line_file, "LOCK_S", 0.2)
    with directory.events.locked(), pytest.raises(StorageError, match=r"locked by another process.*end it"):
        directory.advance(2, {"status": "cancelling"})
    assert directory.record().epoch == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=60), st.integers(0, 70))
def test_going_on_behind_an_id_finds_exactly_the_later_events(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], after: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    lines = [
        json.dumps({"id": number, "at": now(), "type": "message", "attempt": 1, "epoch": 1, "data": {"text": "x" * n}})
        for number, n in enumerate(lengths, 1)
    ]
    path.write_text("".join(line + "\n" for line in lines))
    log = EventLog(path)
    found = log.read(log.offset_after(after), 1000)
    assert [event.id for event, _ in found] == list(range(min(after, len(lengths)) + 1, len(lengths) + 1))
    assert log.last_id() == len(lengths)
