"""The commands against a service: what they print, and their exit codes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.uploads import FILENAME_PATTERN

Command = Callable[..., Result]

PROGRESS = {
    "stage": "score reference",
    "stages": [
        {"stage": "tokenize", "shards": 4, "tokens": 100, "state": "finished", "seconds": 1.5},
        {"stage": "score reference", "shards": 4, "tokens": 120, "state": "started", "seconds": None},
    ],
    "shards_done": 1, "shards": 4, "tokens_done": 40, "tokens": 120, "workers": 2, "tokens_per_s": 1234.5, "eta_s": 65,
}  # fmt: skip
TOTALS = {"rows": 10, "tokens": 100, "scored_tokens": 90, "kept_tokens": 45, "quarantined_rows": 0}


@pytest.fixture
def curator(service: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> Command:
    from curator.cli import app

    monkeypatch.setenv("CURATOR_API_KEY", service.key)
    monkeypatch.setenv("CURATOR_SERVER", wire.url)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text("{name: n, corpus: {kind: jsonl}}")
    return path


def test_submit_prints_the_id(curator: Command, service: Any, spec: Path) -> None:
    done = curator("submit", spec, "--idempotency-key", "k", "--kind", "train_reference")
    assert done.exit_code == 0 and done.stdout.strip() == service.jobs["k"]
    assert service.seen[0][2]["query"] == "kind=train_reference"


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ({"status": "completed", "totals": TOTALS}, 0, "kept 45 (50.00% of those scored)"),
        ({"status": "completed", "totals": TOTALS | {"quarantined_rows": 2}}, 3, "quarantine 2 rows"),
        ({"status": "completed", "totals": TOTALS, "quarantined": {"not_json": 1}}, 3, "1 rows (not_json 1)"),
        ({"status": "failed", "error": {"type": "ShardError", "message": "no luck"}}, 1, "ShardError: no luck"),
        ({"status": "cancelled"}, 1, "cancelled"),
    ],
)  # fmt: skip
def test_waiting_shows_progress_and_exits_as_the_job_ends(
    curator: Command, service: Any, spec: Path, end: dict[str, Any], code: int, words: str
) -> None:
    service.states = [
        {"status": "queued", "queue_position": 3},
        {"status": "in_progress", "progress": PROGRESS},
        end | {"progress": None},
    ]
    done = curator("submit", spec, "--wait")
    assert done.exit_code == code, done.output
    assert words in done.stdout
    assert "queued, number 3 of the queue" in done.stderr and "in_progress" in done.stderr
    assert "tokenize: done in 1.5 s" in done.stderr and "score reference: 4 shards, about 120 tokens" in done.stderr


def test_lost_shards_are_told_like_quarantined_rows(curator: Command, service: Any) -> None:
    service.state, service.lost = {"totals": TOTALS}, [{"number": 3, "stage": "tokenize", "reason": "no luck"}]
    done = curator("status", service.job, "--watch")
    assert done.exit_code == 3 and "lost       1 shards" in done.stdout


def test_upload_sets_the_corpus(curator: Command, service: Any, spec: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(b'{"text": "hello"}\n' * 1000)
    for _ in range(2):  # the second time it is there already
        assert curator("submit", spec, "--upload", corpus).exit_code == 0
    assert [body["corpus"]["uri"] for body in service.bodies] == ["upload://upl_1/corpus.jsonl"] * 2
    assert service.uploaded == [corpus.read_bytes()]
    assert curator("submit", spec, "--upload", tmp_path / "absent").exit_code == 2


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("corpus-1_a.jsonl", "corpus-1_a.jsonl"),
        ("my corpus.jsonl", "my_corpus.jsonl"),
        ("données.jsonl", "donnees.jsonl"),
        ("données (2).jsonl.gz", "donnees_2_.jsonl.gz"),
        ("語料.parquet", "corpus.parquet"),
        ("-v1.語.jsonl", "v1..jsonl"),
        (".hidden.jsonl", "corpus.hidden.jsonl"),
        ("é" * 100 + ".jsonl.zst", "e" * 70 + ".jsonl.zst"),
    ],
)
def test_a_file_of_any_name_can_be_sent(
    curator: Command, service: Any, spec: Path, tmp_path: Path, name: str, plain: str
) -> None:
    corpus = tmp_path / name
    corpus.write_bytes(b"{}")
    assert curator("submit", spec, "--upload", corpus).exit_code == 0
    sent = [headers["query"] for method, path, headers in service.seen if (method, path) == ("POST", "/v1/uploads")]
    assert sent == [f"filename={plain}"] and re.match(FILENAME_PATTERN, plain)


def test_status_of_one_job(curator: Command, service: Any) -> None:
    service.state = {"status": "in_progress", "progress": PROGRESS}
    shown = curator("status", service.job)
    assert "score reference: 1/4 shards, 40 tokens, 2 workers, 1,234 tokens/s, ETA 0:01:05" in shown.stdout
    assert json.loads(curator("status", service.job, "--json").stdout)["progress"]["eta_s"] == 65


def test_status_lists_the_newest_jobs_and_no_control_characters(curator: Command, service: Any) -> None:
    shown = curator("status", "--limit", 15).stdout
    assert len(shown.splitlines()) == 16 and "n14" in shown and "\x1b" not in shown
    assert len(json.loads(curator("status", "--json").stdout)) == 20


def test_watching_needs_a_job(curator: Command) -> None:
    assert curator("status", "--watch").exit_code == 2


def test_logs_and_events(curator: Command, service: Any) -> None:
    assert [line[:6] for line in curator("logs", service.job).stdout.splitlines()] == [
        f"line {n}" for n in range(1, 10)
    ]
    ids = [json.loads(line)["id"] for line in curator("events", service.job, "--follow").stdout.splitlines()]
    assert ids == list(range(1, 201))


def test_download_says_what_is_here(curator: Command, service: Any, shards: list[bytes], tmp_path: Path) -> None:
    service.shards, service.complete = shards, False
    done = curator("download", service.job, "--output", tmp_path / "d", "--parallel", 2)
    assert done.exit_code == 0 and "6 fetched now" in done.stdout and "partial" in done.stdout
    service.complete = True
    assert "partial" not in curator("download", service.job, "--output", tmp_path / "d").stdout


def test_download_goes_to_a_folder_named_as_the_job(
    curator: Command, service: Any, shards: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    service.shards = shards
    assert curator("download", service.job).exit_code == 0
    assert (tmp_path / service.job / "manifest.json").is_file()


def test_names_are_shown_as_they_are(curator: Command, service: Any) -> None:
    stage = {"stage": "score :bug:", "shards": 4, "tokens": 120, "state": "started", "seconds": None}
    service.states = [
        {"status": "in_progress", "name": ":bug:", "progress": PROGRESS | {"stages": [stage]}},
        {"status": "completed", "name": ":bug:"},
    ]
    shown = curator("status", service.job, "--watch")
    assert "name       :bug:" in shown.stdout and "score :bug:" in shown.stderr


@pytest.mark.parametrize("missing", ["CURATOR_API_KEY", "CURATOR_SERVER"])
def test_without_server_or_key_it_is_wrong_usage(
    curator: Command, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    done = curator("status")
    assert done.exit_code == 2 and ("CURATOR_API_KEY" if "KEY" in missing else "--server") in done.output


def test_bars_move_on_a_terminal(service: Any) -> None:
    from io import StringIO

    from rich.console import Console

    from curator.client import RemoteJob
    from curator.client.display import JobBars, make_display

    screen = StringIO()
    bars = make_display(Console(file=screen, force_terminal=True, width=140))
    assert isinstance(bars, JobBars)
    bars.show(RemoteJob.model_validate({"id": service.job, "status": "in_progress", "progress": PROGRESS}))
    bars.close()
    assert "score reference" in screen.getvalue() and "1/4" in screen.getvalue()
    assert "1,234 tokens/s, ETA 0:01:05" in screen.getvalue()
