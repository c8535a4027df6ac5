"""What users do to jobs: submit, cancel, resume, delete.

Submitting with an idempotency key reserves the key, makes the directory, then adds the job and keeps the answer. A
service that dies in between leaves a reservation that the next request with the same key takes over, with the same id:
a key never makes two jobs.
"""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from curator import storage, tracing
from curator.errors import CuratorError, Superseded
from curator.job_directory import JobDirectory, JobKind, JobRecord, Status, default_output, new_id, now
from service.admission import AdmittedSpec, overlaps
from service.database import add_if_absent, lock_for_transaction, reading, writing
from service.problems import Problem
from service.settings import Settings
from service.store import Job, Store
from service.tables import idempotency

_RESERVATION_S = 30.0
_INSERT_LOCK = 0x696E7365
_DELETED = ".deleted-"
_RETRY_LATER = {"Retry-After": "1"}
_log = logging.getLogger("curator.service")

Admit = Callable[[str], AdmittedSpec]
"""Takes the output that the job gets if its spec names none; returns the spec to run, or raises Problem."""

Answer = Callable[[Job, int | None], dict[str, Any]]
"""Takes a job and its place in the queue; returns what the request is answered."""


class Submissions:
    """Changes of jobs that users ask for."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._said: set[str] = set()

    # -------------------------------------------------------------------------------------------- submitting

    def submit(
        self,
        tenant: str,
        kind: JobKind,
        admit: Admit,
        body_sha256: str,
        key: str | None,
        answer: Answer,
    ) -> tuple[dict[str, Any], bool]:
        """Queue a job, once per idempotency key.

        Returns:
            The answer to give, and whether it is the stored one of an earlier request.

        Raises:
            Problem: 422 for a key with another body, 409 while a request with this key is at work, 429 for a full
                queue, and whatever `admit` raises; none of them leaves anything behind.
        """
        job_id = new_id("job")
        if key is not None:
            job_id, stored = self._reserve(tenant, key, body_sha256, job_id)
            if stored is not None:
                return stored, True
            made = self._store.job(job_id, tenant)  # the answer was lost with the database, or before it was kept
            if made is not None:
                return self._answer_again(made, key, answer), True
        try:
            root = self._settings.output_root
            output = default_output(self._settings.data_dir, job_id) if root is None else storage.join(root, job_id)
            admitted = admit(output)
            self._check_apart(admitted, tenant)
            record = JobRecord(
                id=job_id, kind=kind, tenant=tenant, name=admitted.name, spec=admitted.content, output=admitted.output,
                idempotency_key=key, body_sha256=body_sha256, created_at=now(), traceparent=tracing.traceparent(),
            )  # fmt: skip
            return self._add(record, answer), False
        except Problem:
            if key is not None:
                self._release(tenant, key, job_id)
            raise

    def _reserve(self, tenant: str, key: str, body_sha256: str, job_id: str) -> tuple[str, dict[str, Any] | None]:
        mine = (idempotency.c.tenant == tenant) & (idempotency.c.key == key)
        values = {"tenant": tenant, "key": key, "body_sha256": body_sha256, "job_id": job_id}
        with writing(self._store.engine) as connection:
            if add_if_absent(connection, idempotency, values | {"reserved_at": time.time()}):
                return job_id, None
            row = connection.execute(sa.select(idempotency).where(mine)).one_or_none()
            if row is not None and row.body_sha256 != body_sha256:
                raise Problem(
                    422, "idempotency_key_reused",
                    f"the Idempotency-Key {key!r} was used for another body; send a new key for a new job",
                )  # fmt: skip
            if row is not None and row.answer is not None:
                return row.job_id, row.answer
            if row is None or time.time() - row.reserved_at < _RESERVATION_S or not self._inherit(connection, row):
                detail = f"a request with the Idempotency-Key {key!r} is still at work; ask again in a moment"
                raise Problem(409, "in_flight", detail, headers=_RETRY_LATER)
            return row.job_id, None

    def _inherit(self, connection: Connection, row: Any) -> bool:
        """Take over the reservation of a service that died; False if another request was faster."""
        same = (idempotency.c.tenant == row.tenant) & (idempotency.c.key == row.key)
        same &= idempotency.c.reserved_at == row.reserved_at
        return connection.execute(idempotency.update().where(same).values(reserved_at=time.time())).rowcount == 1

    def _release(self, tenant: str, key: str, job_id: str) -> None:
        mine = (idempotency.c.tenant == tenant) & (idempotency.c.key == key) & (idempotency.c.job_id == job_id)
        with writing(self._store.engine) as connection:
            connection.execute(idempotency.delete().where(mine, idempotency.c.answer.is_(None)))

    def _keep_answer(self, connection: Connection, job: Job, key: str, content: dict[str, Any]) -> None:
        mine = (idempotency.c.tenant == job.tenant) & (idempotency.c.key == key) & (idempotency.c.job_id == job.id)
        connection.execute(idempotency.update().where(mine).values(answer=content))

    def _check_apart(self, admitted: AdmittedSpec, tenant: str) -> None:
        """Refuse an output of one's own choice that another job has, or that lies in or above it."""
        jobs_dir = str(self._settings.jobs_dir)
        if Path(admitted.output).is_relative_to(jobs_dir):
            return
        taken = overlaps(admitted.output, self._store.outputs_in_use(tenant, but=jobs_dir))
        if taken is not None:
            detail = f"output.uri: {admitted.output!r} is another job's; choose another place, or wait for its end"
            raise Problem(409, "output_taken", detail)

    def _answer_again(self, job: Job, key: str | None, answer: Answer) -> dict[str, Any]:
        content = answer(job, self._store.queue_positions([job]).get(job.id))
        if key is not None:
            with writing(self._store.engine) as connection:
                self._keep_answer(connection, job, key, content)
        return content

    def _check_room(self, connection: Connection, tenant: str, more: int = 0) -> int:
        """Refuse what this transaction has queued, and `more`, if there is no room; returns how many of it wait."""
        counts = {}
        limits = ((None, self._settings.max_queued_jobs), (tenant, self._settings.tenant_queued_jobs))
        for whose, limit in limits:
            counts[whose] = self._store.waiting(connection, whose, limit)
            if counts[whose] + more > limit:
                who = "the service has" if whose is None else "you have"
                detail = f"{who} {limit} jobs waiting, as many as may wait; submit again when some have started"
                raise Problem(429, "queue_full", detail, headers={"Retry-After": "30"})
        return counts[tenant]

    def _add(self, record: JobRecord, answer: Answer) -> dict[str, Any]:
        """Make the directory, then in one transaction the job and the answer that its key gives from now on."""
        path = self._settings.jobs_dir / record.id
        JobDirectory(path).create(record)
        try:
            with writing(self._store.engine) as connection:
                lock_for_transaction(connection, _INSERT_LOCK)
                job = self._store.insert(connection, record)
                content = answer(job, self._check_room(connection, record.tenant))
                if record.idempotency_key is not None:
                    self._keep_answer(connection, job, record.idempotency_key, content)
            _log.info("job %s is queued", job.id, extra={"job": job.id, "attempt": job.attempt, "epoch": job.epoch})
            return content
        except IntegrityError:  # found by the watcher, or left by a service that died here
            found = self._store.job(record.id)
            assert found is not None
            return self._answer_again(found, record.idempotency_key, answer)
        except Problem:
            shutil.rmtree(path, ignore_errors=True)
            raise

    # -------------------------------------------------------------------------------------------- changing

    def cancel(self, job: Job) -> Job:
        """Stop a job: at once while it waits, else within seconds; asking twice is the same as asking once."""
        while job.status not in ("cancelling", "cancelled"):
            if job.terminal:
                detail = f"job {job.id} is {job.status}; only a job that has not ended can be cancelled"
                raise Problem(409, "ended", detail)
            never_ran = job.started_at is None  # else there is something to keep, which the watcher sees to
            to: Status = "cancelled" if never_ran else "cancelling"
            changed = self._store.move(job, to, epoch=job.epoch + 1)
            if changed is not None:
                self._tell(changed, {"status": to})
                return changed
            job = self._again(job)
        return job

    def resume(self, job: Job) -> Job:
        """Queue a cancelled or failed job again; it goes on from its receipts."""
        changed = None
        while changed is None:
            if job.status == "queued":
                return job
            if job.status not in ("cancelled", "failed"):
                detail = f"job {job.id} is {job.status}; only a cancelled or failed job can be resumed"
                raise Problem(409, "not_resumable", detail)
            with reading(self._store.engine) as connection:
                self._check_room(connection, job.tenant, more=1)
            changed = self._store.move(
                job, "queued", epoch=job.epoch + 1, attempt=job.attempt + 1, error=None, finished_at=None,
                progress=None, relaunches=0, queued_at=time.time(),
            )  # fmt: skip
            job = changed or self._again(job)
        self._tell(job, {"status": "queued"}, attempt=job.attempt)
        return job

    def delete(self, job: Job) -> None:
        """Remove an ended job with its directory, and its output where the service had chosen the place."""
        if not job.terminal:
            raise Problem(409, "not_ended", f"job {job.id} is {job.status}; cancel it first")
        doomed = job.directory.with_name(_DELETED + job.id)
        with writing(self._store.engine) as connection:  # a crash after the renaming is made good by finish_deletions
            if not self._store.delete(connection, job):
                raise Problem(409, "not_ended", f"job {job.id} has just been changed; look at it again")
            if job.directory.exists():
                job.directory.rename(doomed)
        self._bury(doomed)

    def finish_deletions(self) -> None:
        """Complete what a service was deleting when it died."""
        for doomed in self._settings.jobs_dir.glob(_DELETED + "*"):
            try:
                with writing(self._store.engine) as connection:
                    self._store.forget(connection, doomed.name.removeprefix(_DELETED))
                self._bury(doomed)
            except (CuratorError, OSError) as error:  # such as an object store that is away: again next time
                if str(error) not in self._said:
                    self._said.add(str(error))
                    _log.error("%s cannot be removed yet: %s", doomed, error)

    def _bury(self, doomed: Path) -> None:
        root = self._settings.output_root
        if root is not None:  # there, a folder with a job's id is the service's choice
            storage.remove_folder(storage.join(root, doomed.name.removeprefix(_DELETED)))
        shutil.rmtree(doomed, ignore_errors=True)

    def _again(self, job: Job) -> Job:
        found = self._store.job(job.id)
        if found is None:
            raise Problem(404, "no_job", f"there is no job {job.id!r}")
        return found

    def _tell(self, job: Job, state: dict[str, Any], attempt: int | None = None) -> None:
        names = {"job": job.id, "attempt": job.attempt, "epoch": job.epoch}
        _log.info("job %s is %s, as was asked", job.id, job.status, extra=names)
        try:
            JobDirectory(job.directory).advance(job.epoch, state, attempt=attempt)
        except Superseded:  # changed again since, and told by whoever did that
            _log.info("job %s has moved on from epoch %d", job.id, job.epoch)
        except (CuratorError, OSError) as error:  # the change stands in the database; the watcher writes it down later
            _log.error("job %s: %s", job.id, error, extra=names)
