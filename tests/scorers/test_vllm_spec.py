"""What a spec may say of the vLLM engine; nothing here starts one."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from curator.errors import ScorerError
from curator.scorers import ScorerConfig


def config(**fields: Any) -> Any:
    return TypeAdapter(ScorerConfig).validate_python({"engine": "vllm", "model": "somewhere", **fields})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trust_remote_code", "own code is never run"),
        ("speculative_config", "corrupts the log-probs"),
        ("max_model_len", "follows from 'context'"),
        ("hf_overrides", "follows from 'scoring'"),
    ],
)
def test_what_would_break_scores_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(engine_args={argument: 1})


def test_any_other_engine_argument_is_kept_in_its_own_name() -> None:
    arguments = config(engine_args={"max_num_batched_tokens": 512, "enforce_eager": True}).engine_args
    assert arguments.model_extra == {"max_num_batched_tokens": 512, "enforce_eager": True}
    assert arguments.scoring == "auto"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_unknown_engine_argument_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match=r"engine_args\.max_num_batch_tokens.*did you mean 'max_num_batched_tokens'"):
        config(model=str(tmp_path), engine_args={"max_num_batch_tokens": 5}).identify()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_entropy_needs_scoring_inside_the_engine(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="no entropy"):
        config(model=str(tmp_path), features=["entropy"], engine_args={"scoring": "prompt_logprobs"}).identify()
