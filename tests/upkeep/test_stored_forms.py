"""What earlier versions wrote is read, with what it says; what later ones wrote is refused by name.

`stored/N` holds real files of form N, written by `store_forms.py` and never rewritten. `fingerprints.json` tells
every kind's fields at each of its forms.
"""

import hashlib
import importlib
import json
import pkgutil
import shutil
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

import pytest

import curator
from curator.data import StrictModel
from curator.errors import OutputError, TrainingError
from curator.export import ExportRecord
from curator.job import Calibration
from curator.job_directory import EventLog, JobDirectory, JobRecord
from curator.manifest import CuratedReceipt, Manifest, ScoreReceipt, TokenReceipt, read_record
from curator.partial import PartialManifest
from curator.plan import Plan
from curator.stages.canary import StoredCanary
from curator.stored import Step, StoredRecord, form_of, parse_record
from curator.training.reference.record import TrainResult

HERE = Path(__file__).parent
STORED = sorted((HERE / "stored").iterdir(), key=lambda folder: int(folder.name))

# Each kind of record, one stored file of it, and what that file says, as seen when it was stored.
KINDS: list[tuple[type[StoredRecord], str, dict[str, Any]]] = [
    (Manifest, "dataset/manifest.json", {"totals.tokens": 141, "weight_scale": 1.0, "quarantined.empty_text": 1}),
    (PartialManifest, "dataset/manifest.partial.json", {"totals.kept_tokens": 68, "planned_shards": 2}),
    (Plan, "dataset/plan.json", {"plan_key": "4159e433421ad70d", "sources.0.path": "corpus.jsonl"}),
    (Calibration, "dataset/calibration.json", {"cuts.scale": 1.0, "lost": []}),
    (TokenReceipt, "dataset/*/tokens/*/_receipts/00001.json", {"rows": 2, "quarantined.0.row": 3}),
    (ScoreReceipt, "dataset/*/scores/*/_receipts/00001.json", {"tokens": 44, "notes": {}}),
    (CuratedReceipt, "dataset/curated/_receipts/00001.json", {"rows": 2, "statistics.total.scored": 42}),
    (StoredCanary, "dataset/*/scores/*/canary.json", {"dtype": "float32"}),
    (JobRecord, "job.json", {"tenant": "default", "attempt": 1, "spec.policy.keep": 0.5}),
    (ExportRecord, "export.json", {"kind": "trl", "kept_tokens": 68, "vocab_size": 1024}),
    (TrainResult, "training.json", {"spec.base": "model", "bad_rows.empty_text": 1, "ended_by": "epochs"}),
]
CASES = [
    pytest.param(kind, path, facts, id=f"{kind.__name__}-{path.parts[len(HERE.parts) + 1]}-{number}")
    for kind, pattern, facts in KINDS
    for folder in STORED
    for number, path in enumerate(sorted(folder.glob(pattern)))
]
BY_KIND = pytest.mark.parametrize("kind", [kind for kind, _, _ in KINDS], ids=lambda kind: kind.__name__)


def walk(value: Any, path: str) -> Any:
    return reduce(lambda part, name: part[int(name)] if isinstance(part, list) else part[name], path.split("."), value)


def raw_of(kind: type[StoredRecord]) -> dict[str, Any]:
    pattern = next(pattern for member, pattern, _ in KINDS if member is kind)
    content: dict[str, Any] = json.loads(next(STORED[-1].glob(pattern)).read_bytes())
    return content


def test_every_kind_is_stored_in_every_folder() -> None:
    for folder in STORED:
        for kind, pattern, _ in KINDS:
            assert list(folder.glob(pattern)), f"{folder.name} has no {kind.__name__}"


@pytest.mark.parametrize(("kind", "path", "facts"), CASES)
def test_stored_forms_are_read_with_what_they_say(kind: type[StoredRecord], path: Path, facts: dict[str, Any]) -> None:
    record = read_record(str(path), kind)
    assert record.schema_version == form_of(kind)
    read, raw = json.loads(record.model_dump_json()), json.loads(path.read_bytes())
    assert {name: walk(read, name) for name in facts} == facts
    if raw["schema_version"] == form_of(kind):
        assert {name: read[name] for name in raw} == raw


@BY_KIND
@pytest.mark.parametrize("change", [{}, {"never_heard_of": [1]}], ids=["same fields", "more fields"])
def test_a_newer_form_is_refused_naming_both_versions_and_the_remedy(
    kind: type[StoredRecord], change: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "record.json").write_text(json.dumps({**raw_of(kind), **change, "schema_version": form_of(kind) + 6}))
    expected = (
        rf"record\.json' has schema version {form_of(kind) + 6}, and token-curator {curator.__version__} reads "
        rf"versions up to {form_of(kind)}: .*install"
    )
    with pytest.raises(OutputError, match=expected):
        read_record(str(tmp_path / "record.json"), kind)


@BY_KIND
def test_a_field_too_many_in_todays_form_is_damage_and_no_new_version(kind: type[StoredRecord], tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({**raw_of(kind), "never_heard_of": 1}))
    with pytest.raises(OutputError, match=r"not a sound .*never_heard_of"):
        read_record(str(tmp_path / "record.json"), kind)


@BY_KIND
def test_a_file_from_before_forms_had_numbers_is_form_1(kind: type[StoredRecord]) -> None:
    raw = json.loads(next(STORED[0].glob(next(p for k, p, _ in KINDS if k is kind))).read_bytes())
    numbered = parse_record(kind, json.dumps(raw).encode(), "here")
    del raw["schema_version"]
    assert parse_record(kind, json.dumps(raw).encode(), "here") == numbered


# ------------------------------------------------------------------------------------------- the steps between forms


class Grown(StoredRecord):
    """A record that has had three forms: `size` in kB; `size_bytes`; `size_bytes` and `owner`."""

    form_steps: ClassVar[tuple[Step, ...]] = (
        lambda old: {"size_bytes": old["size"] * 1000},
        lambda old: {**old, "owner": "nobody"},
    )
    schema_version: int = 3
    size_bytes: int
    owner: str


@pytest.mark.parametrize(
    "raw",
    [
        {"size": 2},
        {"schema_version": 1, "size": 2},
        {"schema_version": 2, "size_bytes": 2000},
        {"schema_version": 3, "size_bytes": 2000, "owner": "nobody"},
    ],
)
def test_each_older_form_is_led_up_to_todays(raw: dict[str, Any]) -> None:
    assert parse_record(Grown, json.dumps(raw).encode(), "here") == Grown(size_bytes=2000, owner="nobody")


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.5, [2]])
def test_a_version_that_nothing_writes_is_refused(version: Any) -> None:
    raw = json.dumps({"schema_version": version, "size": 2}).encode()
    with pytest.raises(OutputError, match=r"here has schema version .*which nothing writes; restore"):
        parse_record(Grown, raw, "here")


def record_kinds(kind: type[StoredRecord] = StoredRecord) -> Iterator[type[StoredRecord]]:
    for member in kind.__subclasses__():
        if member.__module__.startswith("curator."):
            yield member
        yield from record_kinds(member)


def test_all_kinds_are_known_here_and_each_has_a_step_for_every_form_before_its_own() -> None:
    for module in pkgutil.walk_packages(curator.__path__, "curator."):
        if "scorers" not in module.name and "training" not in module.name:
            importlib.import_module(module.name)
    kinds = {kind for kind in record_kinds() if kind.__name__ != "Receipt"}
    assert kinds == {kind for kind, _, _ in KINDS}
    for kind in kinds:
        assert len(kind.form_steps) == form_of(kind) - 1, f"{kind.__name__} lacks a step for an older form"


def plain(schema: Any) -> Any:
    """The schema without its words: names, types, what is required and what is allowed."""
    if isinstance(schema, dict):
        words = ("title", "description") if not isinstance(schema.get("title"), dict) else ()
        return {name: plain(part) for name, part in schema.items() if name not in words}
    return [plain(part) for part in schema] if isinstance(schema, list) else schema


def fingerprint(kind: type[StrictModel]) -> str:
    schema = json.dumps(plain(kind.model_json_schema(mode="serialization")), sort_keys=True)
    return hashlib.sha256(schema.encode()).hexdigest()[:16]


@BY_KIND
def test_fields_do_not_change_without_the_version(kind: type[StoredRecord]) -> None:
    known = json.loads((HERE / "fingerprints.json").read_text()).get(kind.__name__, {})
    assert known.get(str(form_of(kind))) == fingerprint(kind), (
        f"the fields of {kind.__name__} have changed. If its form {form_of(kind)} was released, raise schema_version, "
        "give form_steps a step, store the new forms (store_forms.py) and add a fingerprint; if not, replace the one "
        f"that is there: {fingerprint(kind)} in tests/upkeep/fingerprints.json"
    )


def test_a_changed_field_changes_the_fingerprint_and_a_changed_word_does_not() -> None:
    class Before(StoredRecord):
        """Words."""

        title: int

    def variant(**fields: Any) -> type[StoredRecord]:
        return type("Before", (StoredRecord,), {"__annotations__": fields, "__module__": __name__})

    assert fingerprint(Before) == fingerprint(variant(title=int))
    for other in (variant(title=str), variant(title=int, more=int), variant(titel=int), variant()):
        assert fingerprint(Before) != fingerprint(other)


# ------------------------------------------------------------------------------------------- whole folders


@pytest.fixture(params=STORED, ids=lambda folder: f"form {folder.name}")
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(request.param, tmp_path / "stored")
    return tmp_path / "stored"


def test_a_stored_dataset_is_sound_and_gives_its_rows(stored: Path) -> None:
    from curator.audit import verify

    assert verify(str(stored / "dataset")) == []
    rows = {row["doc_id"]: row for row in curator.load(str(stored / "dataset"))}
    assert sorted(rows) == ["a", "b", "c", "e", "f"]
    assert sum(float(row["token_weights"].sum()) for row in rows.values()) == 68


def test_a_stored_job_directory_is_read_event_by_event(stored: Path) -> None:
    (stored / "jobs").mkdir()
    record = JobDirectory(stored).record()
    assert (record.kind, record.epoch, record.idempotency_key) == ("curate", 1, None)
    events = [event for event, _ in EventLog(stored / "events.jsonl").read(0, 1000)]
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    states = [event.data["status"] for event in events if event.type == "state"]
    assert states == ["validating", "in_progress", "finalizing", "completed"]
    assert JobDirectory(stored).last_state() == ("completed", len(events))


def test_a_stored_place_in_an_epoch_is_gone_on_from(stored: Path) -> None:
    def rest(state: dict[str, Any] | None) -> list[list[int]]:
        data = curator.load(str(stored / "dataset"), sequence_length=16, seed=1)
        if state is not None:
            data.load_state_dict(state)
        return [item["input_ids"].tolist() for item in data]

    state = json.loads((stored / "state.json").read_text())
    assert rest(state) == rest(None)[1:]
    with pytest.raises(TrainingError, match=r"version 8, and this token-curator goes on from version 1; install"):
        rest({**state, "version": 8})


def test_the_service_finds_a_stored_job_and_leaves_out_a_newer_one(stored: Path, tmp_path: Path) -> None:
    from service.database import open_database
    from service.discovery import Discovery
    from service.settings import Settings
    from service.store import Store

    record = json.loads((stored / "job.json").read_text())
    newer = {**record, "schema_version": 2, "id": record["id"][:-1] + "b", "urgent": True}
    settings = Settings(data_dir=tmp_path / "data")
    for one in (record, newer):
        folder = settings.jobs_dir / one["id"]
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps(one))
        shutil.copy(stored / "events.jsonl", folder)
    store = Store(open_database(settings), settings.jobs_dir)
    assert Discovery(settings, store).discover() == [record["id"]]
    job = store.job(record["id"])
    assert job is not None and job.status == "completed" and job.totals is not None
    assert job.totals["kept_tokens"] == 68
    store.engine.dispose()
