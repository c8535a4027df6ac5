"""What pages are made of, without a browser: words for numbers, specs in YAML, histories, where a login may lead."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curator.job_directory import JobDirectory, JobRecord, new_id, now
from curator.spec import CurationSpec
from curator.training.reference.spec import TrainSpec
from service.problems import Problem
from service.routes.pages import _local
from service.ui import filters
from service.ui.examples import SPECS
from service.ui.history import read_history, read_log_tail
from service.ui.render import STATIC, render
from service.ui.spec_text import yaml_to_json
from service.ui.views import view_facts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (1000, "1.00\u00a0K"),
        (12_345, "12.3\u00a0K"),
        (999_700, "1.00\u00a0M"),
        (4.5e13, "45.0\u00a0T"),
    ],
)
def test_counts(value: float | None, text: str) -> None:
    assert filters.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0.0%"), (0.0004, "<0.1%"), (0.6, "60.0%"), (0.99996, ">99.9%"), (1, "100.0%")],
)
def test_shares_never_round_to_all_or_none(value: float | None, text: str) -> None:
    assert filters.share(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.42, "0.4 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert filters.duration(seconds) == text


def test_yaml_is_read_as_the_command_line_reads_it() -> None:
    text = b"name: a  # comment\nmodels:\n  reference: {engine: bigram}\nkeep: 0.6\n"
    assert json.loads(yaml_to_json(text)) == {"name": "a", "models": {"reference": {"engine": "bigram"}}, "keep": 0.6}


def test_the_examples_are_specs() -> None:
    """But for the output, which the service chooses."""
    curation, training = (json.loads(yaml_to_json(SPECS[kind].encode())) for kind in ("curate", "train_reference"))
    CurationSpec.model_validate(curation | {"output": {"uri": "out"}})
    spec = TrainSpec.model_validate(training | {"output": "out"})
    assert spec.eval_every is not None and spec.patience is not None


def test_what_was_asked_of_a_training_is_shown() -> None:
    spec = {"base": "b", "dataset": "d", "method": "lora", "epochs": 2.0, "patience": 3}
    job: Any = SimpleNamespace(kind="train_reference", spec=spec, output="o")
    assert view_facts(job) == [
        ("Base", "b"), ("Dataset", "d"), ("Training", "low-rank adapters · epochs 2.0 · patience 3"), ("Output", "o"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"name: [", "line 1"),
        (b"a: &x 1\nb: *x", "aliases"),
        (b"a: 1\na: 2", "twice"),
        (b"- a", "a list"),
        (b"", "empty"),
        (b"day: 2024-01-01", "quotes"),
        (b"x: .nan", "quotes"),
        (b"\xff", "JSON"),
        (b"[" * 5000, "nested"),
        (b"a: !!python/object/apply:os.system [id]", "constructor"),
    ],
)
def test_what_is_no_spec_is_refused_with_a_reason(text: bytes, words: str) -> None:
    with pytest.raises(Problem) as refused:
        yaml_to_json(text)
    assert refused.value.status == 422
    assert words in refused.value.detail


def test_a_login_leads_to_pages_of_this_service_alone() -> None:
    assert _local("/jobs/x?a=b#c") == "/jobs/x?a=b#c"
    for target in ("//evil", "https://evil", "/\\evil", "evil", "", "javascript:alert(1)", "/\t/evil", "/\n/evil"):
        assert _local(target) == "/", target


def make_job(root: Path) -> JobDirectory:
    record = JobRecord(
        id=new_id("job"), kind="curate", tenant="t", name="n", spec={}, output="/nowhere", created_at=now()
    )  # fmt: skip
    directory = JobDirectory(root / record.id)
    directory.create(record)
    return directory


def test_history_is_of_one_attempt(tmp_path: Path) -> None:
    directory = make_job(tmp_path)
    directory.append(1, "state", {"status": "validating"})
    directory.append(1, "message", {"text": '"type":"state"'})
    directory.append(1, "state", {"status": "failed", "error": {"type": "X", "message": "y"}})
    directory.advance(2, {"status": "queued"}, attempt=2)
    directory.append(2, "state", {"status": "validating"})
    directory.append(2, "state", {"status": "validating"})
    first, second = read_history(directory.path, 1), read_history(directory.path, 2)
    assert [status for _, status in first.states] == ["queued", "validating", "failed"]
    assert [status for _, status in second.states] == ["queued", "validating"]
    assert second.last_event == directory.events.last_id() == 7
    assert abs((datetime.now(UTC) - second.states[-1][0]).total_seconds()) < 60
    assert read_history(tmp_path / "gone", 1).states == ()


def test_the_log_begins_and_ends_with_whole_lines(tmp_path: Path) -> None:
    directory = make_job(tmp_path)
    assert read_log_tail(directory.path).text == ""
    content = "".join(f"line {number} é\n" for number in range(10_000))
    directory.log_path.write_text(content + "half a li", encoding="utf-8")
    tail = read_log_tail(directory.path)
    assert tail.cut and tail.offset == len(content.encode())
    assert content.endswith(tail.text) and tail.text.startswith("line ")


def test_what_is_shown_is_escaped_and_what_is_missing_is_an_error() -> None:
    html = render("login.html", next='/"><script>', refused=False)
    assert "<script>" not in html.replace('<script src="/static/theme.js">', "")
    with pytest.raises(Exception, match="next"):
        render("login.html", refused=False)


def test_pages_hold_nothing_that_the_policy_forbids() -> None:
    """No inline script or style, no handler, nothing from elsewhere: looked for in every file that a browser gets."""
    templates = (STATIC.parent / "templates").glob("*.html")
    for path in templates:
        text = path.read_text()
        for forbidden in (" style=", " onclick=", " onload=", "<style", "javascript:", "://", "|safe", "autoescape"):
            assert forbidden not in text, f"{path.name}: {forbidden}"
        assert text.count("<script") == text.count("<script src=") + text.count('<script type="module" src=')
    for path in STATIC.glob("*.js"):
        text = path.read_text()
        if path.name != "htmx.min.js":  # its evaluation of attributes is off, by the configuration in base.html
            for forbidden in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "Function(",
                ".style",
            ):
                assert forbidden not in text, f"{path.name}: {forbidden}"
