"""The figures of a service, read back by Prometheus' own parser; and jobs to be counted, which no driver runs."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from curator.job_directory import JobDirectory, JobRecord, new_id, now
from service.context import Services
from service.database import writing
from service.store import Job

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: bytes) -> Figures:
    """Every sample by name and labels."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(services: Any, name: str, **labels: str) -> float:
    """One of them, as opened services show it now."""
    return read(services.metrics.expose(services.readiness.checks()))[name, frozenset(labels.items())]


def submit(services: Services) -> Job:
    record = JobRecord(
        id=new_id("job"), kind="curate", tenant="default", name="n", spec={}, output="/nowhere", created_at=now()
    )  # fmt: skip
    JobDirectory(services.settings.jobs_dir / record.id).create(record)
    with writing(services.store.engine) as connection:
        services.store.insert(connection, record)
    return found(services, record.id)


def found(services: Services, job_id: str) -> Job:
    job = services.store.job(job_id)
    assert job is not None
    return job


def take(services: Services) -> Job:
    """Begin the next job, as a service does that dies right afterwards."""
    job = services.store.claim("elsewhere:1:x", 0.0, 100, None)
    assert job is not None
    services.metrics.job_started(job)
    JobDirectory(job.directory).advance(job.epoch, {"status": "validating"})
    return job
