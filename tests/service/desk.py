"""A service whose jobs nobody starts, and jobs whose stages a test runs in its own process, as far as it likes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fastapi.testclient import TestClient

from curator import parse_spec
from curator.frozen import open_plan
from curator.job import Job
from curator.job_directory import JobDirectory, JobRecord, new_id, now
from curator.pipeline import score, tokenize, weigh
from curator.publish import publish_dataset
from curator.stages.select import SelectStage
from service.app import build_app, make_services
from service.settings import Settings


class Here:
    """Runs the stages in this process, one task after the other; the last one for at most `limit` shards."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def pool(self, workers: Any, tasks: int) -> "Here":
        return self

    def map(self, stage: Any, tasks: Sequence[Any], *, on_result: Callable[[Any], None], **_: Any) -> list[Any]:
        stage.open()
        for task in tasks[: self.limit] if isinstance(stage, SelectStage) else tasks:
            on_result(stage.run(task, stage.load(task), lambda tokens: None))
        return []


class Hosted(NamedTuple):
    """A job as the service knows it, and as the library does."""

    id: str
    job: Job

    def run_until(self, shards: int | None) -> None:
        """Publish up to so many more shards; None finishes the dataset."""
        here: Any = Here(shards)
        tokenize(self.job, here)
        for name in self.job.spec.models:
            score(self.job, here, name, [])
        calibration = weigh(self.job, here, [])
        if shards is None:
            publish_dataset(self.job, calibration)

    def path(self, number: int) -> Path:
        return Path(self.job.curated.uri(number))


class Desk:
    """A service whose jobs nobody starts, and a key of each of two tenants."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.services = make_services(Settings(data_dir=folder, **settings))
        self.client = TestClient(build_app(self.services), follow_redirects=False)  # not entered: no watcher runs
        self.folder = folder
        self.headers = {
            tenant: {"Authorization": f"Bearer {self.services.keys.create(tenant, 'test', ['read'])[1]}"}
            for tenant in ("mine", "theirs")
        }

    def add(self, spec: dict[str, Any], output: str | None = None, kind: Any = "curate") -> str:
        job_id = new_id("job")
        directory = JobDirectory(self.folder / "jobs" / job_id)
        directory.create(
            JobRecord(
                id=job_id, kind=kind, tenant="mine", name="test", spec=spec,
                output=output or spec["output"]["uri"], created_at=now(),
            )
        )  # fmt: skip
        assert self.services.discovery.discover() == [job_id]
        return job_id

    def host(self, spec: dict[str, Any]) -> Hosted:
        parsed = parse_spec(spec)
        return Hosted(self.add(spec), Job(parsed, open_plan(parsed)))

    def get(self, job_id: str, what: str, tenant: str = "mine", headers: dict[str, str] | None = None, **params: Any) -> httpx.Response:  # fmt: skip # noqa: E501
        return self.client.get(  # type: ignore[no-any-return]
            f"/v1/jobs/{job_id}/{what}", params=params, headers=self.headers[tenant] | (headers or {})
        )


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].removeprefix("urn:curator:problem:")
