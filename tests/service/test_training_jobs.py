"""Training a reference through the service: the same spec, the same states, a model directory at the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_a_reference_is_trained_and_then_scores_a_corpus(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]], tmp_path: Path, tiny_llama: Path
) -> None:
    base = tiny_llama
    good = tmp_path / "good.jsonl"
    rows = [{"text": f"Document {i} says that two and two is four. " * (1 + i % 7)} for i in range(40)]
    good.write_text("\n".join([*map(json.dumps, rows), "not json"]))
    service = start("--allow-root", str(base.parent))
    spec = {
        "base": str(base), "corpus": {"kind": "jsonl", "uri": str(good)}, "sequence_length": 64,
        "batch_tokens": 512, "micro_batch_tokens": 256, "learning_rate": 3e-3, "dtype": "float32",
    }  # fmt: skip
    with service.client() as client:
        answer = client.post("/v1/jobs", params={"kind": "train_reference"}, json=spec)
        assert answer.status_code == 202, answer.text
        trained = service.wait(answer.json()["id"])
        assert (trained["status"], trained["kind"]) == ("completed", "train_reference"), trained
        assert trained["quarantined"] == {"not_json": 1}
        assert Path(trained["output"]).joinpath("model.safetensors").exists()
        messages = [
            event["data"]["text"]
            for event in client.get(f"/v1/jobs/{trained['id']}/events", params={"limit": 1000}).json()["data"]
            if event["type"] == "message"
        ]
        assert any("tokens/s" in text for text in messages)
        assert client.get(f"/v1/jobs/{trained['id']}/shards").json()["data"] == []
        wrong = client.post("/v1/jobs", params={"kind": "train_reference"}, json=spec | {"epochs": -1})
        assert wrong.status_code == 422

    models = {
        "reference": {"engine": "transformers", "model": trained["output"]},
        "base": {"engine": "transformers", "model": str(base)},
    }
    small = tmp_path / "small.jsonl"
    small.write_text("\n".join(json.dumps(row) for row in rows[:5]))
    scored = service.submit(job_spec(models=models, corpus={"kind": "jsonl", "uri": str(small)}))
    assert service.wait(scored["id"])["status"] == "completed"
