"""The OpenAPI document and the service say the same: every operation is called with what the document allows and what
it forbids, alone and one after the other, and every answer is held against the document (Schemathesis).

In short here; `CURATOR_SOAK=1` gives it an hour.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

pytestmark = pytest.mark.slow

SOAK = os.environ.get("CURATOR_SOAK") == "1"
EXAMPLES = 1500 if SOAK else 25
LONGEST_S = 5400 if SOAK else 1200
ROOMY = {
    "CURATOR_MAX_RUNNING_JOBS": "0", "CURATOR_MAX_QUEUED_JOBS": "1000000", "CURATOR_TENANT_QUEUED_JOBS": "1000000",
}  # fmt: skip

# No check is left out. Three things are told that no JSON schema can say:
#
# 422 of a spec that fits its schema. What the fields of a spec say of each other is checked behind the schema (a policy
# names a model of `models`; micro_batch_tokens fits batch_tokens), and the query's `kind` says which of the two schemas
# of the body is meant, which OpenAPI cannot express. So these two operations may answer 422 to a body of its schema.
#
# 412 and 416 of a shard: whether `If-Match` names this shard and `Range` lies in it is known only with the shard.
#
# `wait`: a long poll of a job that never changes lasts as long as it asks, which is right and would take hours here.
CONFIGURATION = """
[[operations]]
include-operation-id = ["submit_job", "validate_job"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 422, 429]

[[operations]]
include-operation-id = "get_job"
parameters = { "query.wait" = 0 }
"""


def fetch_document(service: Any, corpus: Path) -> dict[str, Any]:
    """The document, with a real corpus in its example of a spec."""
    with service.client() as client:
        text = client.get("/openapi.json").raise_for_status().text
    assert text.count('"/data/corpus.jsonl"') == 2  # of submitting, and of the dry run
    document: dict[str, Any] = json.loads(text.replace('"/data/corpus.jsonl"', json.dumps(str(corpus))))
    return document


def run_schemathesis(
    service: Any, document: dict[str, Any], folder: Path, configuration: str, *options: str
) -> tuple[int, str]:
    """Run it as a user does; its exit status and what it printed."""
    (folder / "schemathesis.toml").write_text(configuration)
    (folder / "openapi.json").write_text(json.dumps(document))
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", "schemathesis.toml", "run",
        "openapi.json", "--url", service.url, "-H", f"Authorization: Bearer {service.key}", "--no-color",
        "--generation-database", "none", "--request-timeout", "30", "--continue-on-failure", "-n", str(EXAMPLES),
        *(() if SOAK else ("--seed", "1")), *options,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST_S
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_service_keeps_to_its_document(start: Callable[..., Any], service_corpus: Path, tmp_path: Path) -> None:
    service = start(**ROOMY)
    document = fetch_document(service, service_corpus)
    code, printed = run_schemathesis(service, document, tmp_path, CONFIGURATION)
    assert code == 0, printed
    number = sum(len(methods) for methods in document["paths"].values())
    assert f"Tested: {number}" in re.sub(r" +", " ", printed), printed
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert re.search(rf"✅\s+{phase}", printed), printed
    with service.client() as client:
        assert client.get("/v1/jobs").json()["data"], printed  # specs were taken, not only refused
    assert not any("unexpected error" in line for line in service.log)


def test_a_finished_job_is_as_the_document_says(
    start: Callable[..., Any], service_corpus: Path, tmp_path: Path
) -> None:
    service = start()
    document = fetch_document(service, service_corpus)
    examples = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    job = service.submit(examples["curate"]["value"] | {"shard_tokens": 30_000})  # the example runs
    assert service.wait(job["id"])["status"] == "completed"
    pinned = f"""
[[operations]]
include-operation-id = ["get_shard", "get_manifest"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 412, 416, 429]

[parameters]
"path.job_id" = "{job["id"]}"
"path.number" = 0
"query.wait" = 0
"""
    reading = ("--include-method", "GET", "--exclude-path-regex", "^(?!/v1/jobs/)")
    code, printed = run_schemathesis(service, document, tmp_path, pinned, *reading)
    assert code == 0, printed
    assert "404" not in printed, printed  # the warning of operations that found nothing
    assert not any("unexpected error" in line for line in service.log)


def test_the_examples_fit_their_schemas(shared: Any, service_corpus: Path) -> None:
    document = fetch_document(shared, service_corpus)
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    for name, schema in (("curate", "SubmittedSpec"), ("train_reference", "TrainSpec")):
        validator = jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{schema}"} | document)
        validator.validate(body["examples"][name]["value"])
    assert body["schema"] == {"anyOf": [{"$ref": f"#/components/schemas/{s}"} for s in ("SubmittedSpec", "TrainSpec")]}


def test_every_operation_says_what_it_may_answer(shared: Any) -> None:
    with shared.client() as client:
        document = client.get("/openapi.json").json()
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[a-z_]+", name) for name in ids)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"] and operation["tags"], (method, path)
            if not operation.get("security"):
                continue
            answers = operation["responses"]
            assert {"401", "403", "429"} <= answers.keys(), (method, path)
            assert ("404" in answers) == ("{" in path), (method, path)
            for status, answer in answers.items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, status)


def test_a_wrong_method_is_told_the_right_ones(shared: Any) -> None:
    with shared.client() as client:
        document = client.get("/openapi.json").json()
        for path, methods in document["paths"].items():
            url = path.format(job_id="job_" + "0" * 26, upload_id="upl_" + "0" * 26, key_id="aaaaaaaa", number=0)
            for method in ("PUT", "PATCH", "OPTIONS", "POST", "DELETE"):
                if method.lower() in methods:
                    continue
                answer = client.request(method, url)
                assert answer.status_code == 405, (method, path)
                allowed = set(answer.headers["allow"].split(", "))
                assert allowed - {"HEAD"} == {name.upper() for name in methods}, (method, path)
                assert all(name in answer.json()["detail"] for name in allowed)


def test_waiting_has_bounds(shared: Any) -> None:
    with shared.client() as client:
        for wait in ("-1", "3601", "nan", "inf", "x"):
            answer = client.get("/v1/jobs/job_00000000000000000000000000", params={"wait": wait})
            assert answer.status_code == 422 and answer.json()["errors"][0]["path"] == "wait", wait


def test_reading_on_from_far_behind_the_end_is_an_empty_page(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]]
) -> None:
    service = start(**ROOMY)
    job = service.submit(job_spec())
    log = service.data_dir / "jobs" / job["id"] / "log.txt"
    log.write_bytes(b"".join(b"%05d %s\n" % (number, b"x" * 3000) for number in range(300)))  # more than a batch
    with service.client() as client:
        for part in ("logs", "events"):
            for after in (1 << 44, (1 << 53) - 1, 1 << 53):  # file systems end at 16 TB
                answer = client.get(f"/v1/jobs/{job['id']}/{part}", params={"after": after})
                assert answer.json() == {"data": [], "has_more": False, "next_cursor": None}, (part, after)
        url, lines, cursor = f"/v1/jobs/{job['id']}/logs", [], "0"
        for limit in (250, 49, 1):
            page = client.get(url, params={"after": cursor, "limit": limit}).json()
            assert len(page["data"]) == limit and page["has_more"] == (limit > 1)
            lines += [line["text"][:5] for line in page["data"]]
            cursor = page["next_cursor"]
        assert lines == [f"{number:05d}" for number in range(300)]
