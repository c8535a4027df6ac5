"""The engine behind HTTP: its key stays between it and the server, and it keeps to the limits of a provider."""

import logging
import pickle
import runpy
import time
from pathlib import Path
from typing import Any

import pytest

from curator.errors import ScorerError
from curator.scorers.openai_server import Pace

_ROGUE = runpy.run_path(str(Path(__file__).with_name("rogue.py")))
IDS, status = _ROGUE["IDS"], _ROGUE["status"]


def test_the_key_reaches_the_server_and_nothing_else(
    rogue: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_API_KEY", "sk-very-secret-0123456789\n")
    model = rogue.model(api_key_env="TEST_API_KEY")
    identity = model.identify()
    scorer = model.build(identity, threads=1)
    errors = []
    for code in (400, 401, 403, 429, 307):
        told = "wrong key sk-very-secret-0123456789"
        rogue.faults = [status(code, told, Retry_After="9999", Location="http://elsewhere.invalid")]
        with pytest.raises(ScorerError) as caught:
            scorer.score([IDS], lambda n: None)
        errors.append(pickle.loads(pickle.dumps(caught.value)))
    assert set(rogue.keys) == {"Bearer sk-very-secret-0123456789"}
    shown = [*map(str, errors), *map(repr, errors), repr(scorer), repr(model), str(scorer.notes()), caplog.text]
    shown += [model.model_dump_json(), identity.model_dump_json()]
    assert "wrong key [key]" in str(errors[0]) and "TEST_API_KEY" in str(errors[1])
    assert not any("very-secret" in text for text in shown)


def test_a_key_that_is_not_set_is_an_error_that_names_the_variable(rogue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_API_KEY", raising=False)
    with pytest.raises(ScorerError, match="TEST_API_KEY, which is not set"):
        rogue.model(api_key_env="TEST_API_KEY").identify()
    monkeypatch.setenv("TEST_API_KEY", "sk-first\nsk-second")
    with pytest.raises(ScorerError, match="TEST_API_KEY holds characters") as caught:
        rogue.model(api_key_env="TEST_API_KEY").identify()
    assert "sk-" not in str(caught.value)


def test_limits_hold_over_any_stretch_of_time() -> None:
    now = [100.0]
    pace = Pace(60, clock=lambda: now[0])
    starts = []
    for amount in (1, 1, 5, 1, 1):
        starts.append(now[0] + pace.reserve(amount))
        now[0] += 0.25
    assert starts == [100, 101, 102, 107, 108]
    now[0] = 500
    assert pace.reserve(1) == 0, "time that nobody used is not saved up"
    assert pace.reserve(1) == 1


def test_requests_and_tokens_are_paced(rogue: Any) -> None:
    for limits in ({"requests_per_minute": 600}, {"tokens_per_minute": 600 * len(IDS)}):
        scorer = rogue.scorer(engine_args=limits)
        time.sleep(0.4)  # until the share of the probe is over
        start = time.monotonic()
        scorer.score([IDS] * 6, lambda n: None)
        assert 0.4 < time.monotonic() - start < 3
