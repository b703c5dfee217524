"""JobQueue: the one queue behind the page and the API. All it takes in survives a crash. worker.py does the jobs."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from dbos import EnqueueOptions

from pipeline.errors import StudioError
from server import database as db
from server.files import FileStore
from server.job import (
    Job,
    JobError,
    JobRequest,
    JobStatus,
    Limits,
    News,
    Outcome,
    Priority,
    decode,
    encode,
)
from server.job_rows import make_job

CancelAnswer = Literal["requested", "already_finished", "not_found"]

CHANGES_POLL_S = 0.15
REPORTS_PER_LOOK = 50
MAX_REPORTS = 10
DEFAULT_LIMITS = Limits()


class QueueFullError(StudioError):
    """As much waits already as may wait."""


class OtherRequestError(StudioError):
    """An idempotency key came again, with another request."""


class JobStateError(StudioError):
    """What was asked for cannot be done to this job, or there is no such job."""


@dataclass(frozen=True)
class _Entry:
    """A row to be written."""

    job_id: str
    owner: str
    request: JobRequest | None
    webhook_url: str | None
    idempotency_key: str | None = None
    start_timeout_s: float | None = None
    verdict: Outcome | None = None


class JobQueue:
    """Jobs by their id: submitted, looked at, reordered, stopped. Any number of these may share a database."""

    def __init__(
        self,
        database_url: str,
        files: FileStore,
        *,
        limits: Limits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the database, creating it where it is missing. clock: seconds since 1970.

        Raises StudioError with a sentence when that fails.
        """
        self.database = db.open_database(database_url)
        self.files = files
        self.clock = clock
        self._limits = limits

    def close(self) -> None:
        """Give the database's connections back."""
        self.database.close()

    def submit(
        self,
        request: JobRequest,
        *,
        owner: str,
        priority: Priority = "normal",
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        start_timeout_s: float | None = None,
        job_id: str | None = None,
    ) -> Job:
        """Put a request in the queue, to survive whatever happens from here on.

        The same idempotency key or job id of the same owner gives the job that is there already.
        Raises QueueFullError when the owner, or everybody together, has enough in the queue; OtherRequestError when the
        key was used for a request of another digest; UnreachableError, as any method here, while the database is out of
        reach.
        """
        entry = _Entry(job_id or str(uuid.uuid4()), owner, request, webhook_url, idempotency_key, start_timeout_s)
        with self.database.write() as connection:
            db.take_turn(connection)
            job_id = self._find_known(connection, entry)
            if job_id is None:
                self._check_limits(connection, owner)
                self._enqueue(connection, entry, priority)
        job = self._require(job_id or entry.job_id)
        known = job.request.digest if job.request else None
        if idempotency_key is not None and known and request.digest and known != request.digest:
            raise OtherRequestError(
                f"The idempotency key {idempotency_key!r} was used for another request already; give each its own."
            )
        return job

    def submit_invalid(
        self,
        error: JobError,
        *,
        owner: str,
        webhook_url: str | None = None,
        request: JobRequest | None = None,
        job_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Record a request that cannot be run as a job that has ended already: its submit does not fail.

        The same idempotency key or job id of the same owner gives the job that is there already.
        """
        verdict = Outcome(self.now(), error=error)
        entry = _Entry(job_id or str(uuid.uuid4()), owner, request, webhook_url, idempotency_key, verdict=verdict)
        with self.database.write() as connection:
            db.take_turn(connection)
            job_id = self._find_known(connection, entry)
            if job_id is None:
                self._insert(connection, entry)
        return self._require(job_id or entry.job_id)

    def get(self, job_id: str, *, with_logs: bool = True) -> Job | None:
        """Give a job as it is now."""
        row = self._select(job_id)
        if row is None:
            return None
        if row.status == "ENQUEUED" and row.start_by_ms is not None and row.start_by_ms < self._now_ms():
            self.expire_overdue()
            return self._read(job_id, with_logs=with_logs)
        return make_job(row, with_logs=with_logs)

    def jobs_of(self, owner: str, limit: int = 50) -> list[Job]:
        """Give an owner's jobs, newest first, without their logs."""
        statement = self.database.all_jobs.where(db.jobs.c.owner == owner)
        with self.database.read() as connection:
            rows = connection.execute(statement.order_by(db.jobs.c.number.desc()).limit(limit)).all()
        return [make_job(row, with_logs=False) for row in rows]

    def cancel(self, job_id: str) -> CancelAnswer:
        """Stop a job: a waiting one at once, a running one at its next step. It yields no video."""
        job = self._read(job_id, with_logs=False)
        if job is None:
            return "not_found"
        if job.status.is_final:
            return "already_finished"
        with db.told_plainly():
            self.database.client.cancel_workflow(job_id)
        return "requested" if self._require(job_id).status is JobStatus.CANCELLED else "already_finished"

    def move(self, job_id: str, owner: str, before: str | None) -> None:
        """Put a waiting job before another of the same owner, or last of these; nobody else's place changes.

        Raises JobStateError when one of the two does not wait.
        """
        with self.database.write() as connection:
            db.take_turn(connection)
            places = db.waiting_places(connection, self.database, owner)
            order = [waiting for waiting, _ in places]
            if job_id not in order or (before is not None and before not in order):
                raise JobStateError("Only your own generations that are still waiting can change places.")
            if job_id == before:
                return
            order.remove(job_id)
            order.insert(len(order) if before is None else order.index(before), job_id)
            for moved, (waiting, priority) in zip(order, places, strict=True):
                if moved != waiting:
                    db.set_place(connection, self.database, moved, priority)

    def delete(self, job_id: str, owner: str) -> None:
        """Remove a job that has ended, and its files.

        Raises JobStateError when the owner has no such job, it has not ended, or its video is needed for another.
        """
        job = self._read(job_id, with_logs=False)
        if job is None or job.owner != owner:
            raise JobStateError("There is no such generation; it may have been deleted already.")
        if not job.status.is_final:
            raise JobStateError("A generation that has not ended cannot be deleted; stop it first.")
        if not self.needed_files().isdisjoint(job.keys):
            raise JobStateError("A generation in the queue uses this video; delete it after that one has ended.")
        self.forget(job)

    def changes(self, job_id: str) -> Iterator[Job]:
        """Give a job at once and after each change, until it has ended. Nothing for an unknown id."""
        before = None
        while job := self.get(job_id):
            if job != before:
                yield job
            if job.status.is_final:
                return
            before = job
            time.sleep(CHANGES_POLL_S)

    # For the worker and for retention.

    def expire_overdue(self) -> int:
        """End the jobs whose start timeout has run out before anybody began them. Gives how many."""
        now_ms = self._now_ms()
        error = JobError("start_timeout", "The generation did not begin within the time its sender allowed.")
        verdict = json.dumps(encode(Outcome(self.now(), error=error)))
        overdue = sa.select(db.jobs.c.job_id).where(db.jobs.c.start_by_ms < now_ms, db.jobs.c.verdict.is_(None))
        flow = self.database.workflows
        overdue = overdue.join(flow, flow.c.workflow_uuid == db.jobs.c.job_id).where(db.is_untouched(self.database))
        with self.database.read() as connection:
            ids = connection.execute(overdue).scalars().all()
        if not ids:
            return 0
        with self.database.write() as connection:
            ended = [db.end_unless_begun(connection, self.database, late, verdict, now_ms) for late in ids]
        return sum(ended)

    def enqueue_reports(self) -> None:
        """Queue a report for each ended job somebody waits to hear of, and has not been queued one for."""
        flow = self.database.workflows
        ended = sa.or_(flow.c.status.not_in(db.UNFINISHED), db.jobs.c.verdict.is_not(None))
        due = sa.select(db.jobs.c.job_id).outerjoin(flow, flow.c.workflow_uuid == db.jobs.c.job_id)
        with self.database.read() as connection:
            ids = connection.execute(due.where(db.jobs.c.report_due, ended).limit(REPORTS_PER_LOOK)).scalars().all()
        for job_id in ids:
            with self.database.write() as connection:
                mine = sa.update(db.jobs).where(db.jobs.c.job_id == job_id, db.jobs.c.report_due)
                if connection.execute(mine.values(report_due=False)).rowcount:
                    self._enqueue_report(connection, job_id, 0, delay_s=None)

    def repeat_report(self, job_id: str, attempt: int, *, delay_s: float) -> None:
        """Queue another report of a job's end for later."""
        with self.database.write() as connection:
            self._enqueue_report(connection, job_id, attempt, delay_s=delay_s)

    def news_of(self, job_id: str) -> News | None:
        """Give the last news of a job's earlier run."""
        row = self._select(job_id)
        return None if row is None or row.value is None else decode(News, json.loads(row.value))

    def now(self) -> datetime:
        """Give the time by this queue's clock."""
        return datetime.fromtimestamp(self.clock(), UTC)

    def forget(self, job: Job) -> None:
        """Remove an ended job and its files. Files first: what a crash leaves half removed is removed next time."""
        for key in job.keys:
            self.files.delete(key)
        with self.database.write() as connection:
            connection.execute(sa.delete(db.jobs).where(db.jobs.c.job_id == job.job_id))
        reports = [f"{job.job_id}:finished:{attempt}" for attempt in range(MAX_REPORTS)]
        with db.told_plainly():
            self.database.client.delete_workflows([job.job_id, *reports])

    def all_jobs(self) -> list[Job]:
        """Give every job there is, oldest first, without their logs."""
        with self.database.read() as connection:
            rows = connection.execute(self.database.all_jobs.order_by(db.jobs.c.number)).all()
        return [make_job(row, with_logs=False) for row in rows]

    def needed_files(self) -> set[str]:
        """Give the keys of the files that jobs which have not ended are to use."""
        flow = self.database.workflows
        unfinished = sa.select(db.jobs.c.request).join(flow, flow.c.workflow_uuid == db.jobs.c.job_id)
        unfinished = unfinished.where(flow.c.status.in_(db.UNFINISHED), db.jobs.c.request.is_not(None))
        with self.database.read() as connection:
            texts = connection.execute(unfinished).scalars().all()
        return {key for text in texts for key in decode(JobRequest, json.loads(text)).keys}

    def _find_known(self, connection: sa.Connection, entry: _Entry) -> str | None:
        same = db.jobs.c.job_id == entry.job_id
        if entry.idempotency_key is not None:
            same = sa.or_(same, db.jobs.c.idempotency_key == entry.idempotency_key)
        known = sa.select(db.jobs.c.job_id).where(db.jobs.c.owner == entry.owner, same)
        return connection.execute(known).scalars().first()

    def _check_limits(self, connection: sa.Connection, owner: str) -> None:
        active, waiting = db.count_jobs(connection, self.database, owner)
        if active >= self._limits.active_per_owner:
            raise QueueFullError(f"You have {active} generations in the queue; wait until one has ended, or stop one.")
        if waiting >= self._limits.waiting:
            raise QueueFullError(f"{waiting} generations are waiting, and no more fit; please try again later.")

    def _enqueue(self, connection: sa.Connection, entry: _Entry, priority: Priority) -> None:
        number = self._insert(connection, entry)
        self.database.client.enqueue_in_transaction(
            connection,
            {
                "workflow_name": db.RUN_WORKFLOW,
                "queue_name": db.JOBS_QUEUE,
                "workflow_id": entry.job_id,
                "app_version": db.APPLICATION_VERSION,
                "priority": number + (db.LOW_PRIORITY_OFFSET if priority == "low" else 0),
            },
            entry.job_id,
        )

    def _enqueue_report(self, connection: sa.Connection, job_id: str, attempt: int, *, delay_s: float | None) -> None:
        options: EnqueueOptions = {
            "workflow_name": db.FINISHED_WORKFLOW,
            "queue_name": db.FINISHED_QUEUE,
            "workflow_id": f"{job_id}:finished:{attempt}",
            "app_version": db.APPLICATION_VERSION,
        }
        if delay_s is not None:
            options["delay_seconds"] = delay_s
        self.database.client.enqueue_in_transaction(connection, options, job_id, attempt)

    def _insert(self, connection: sa.Connection, entry: _Entry) -> int:
        """Write our row. Gives its number, which is the job's place in the order."""
        now_ms = self._now_ms()
        start_by_ms = None if entry.start_timeout_s is None else now_ms + int(entry.start_timeout_s * 1000)
        row = {
            "job_id": entry.job_id,
            "owner": entry.owner,
            "idempotency_key": entry.idempotency_key,
            "request": None if entry.request is None else json.dumps(encode(entry.request)),
            "webhook_url": entry.webhook_url,
            "report_due": entry.webhook_url is not None,
            "start_by_ms": start_by_ms,
            "created_ms": now_ms,
            "verdict": None if entry.verdict is None else json.dumps(encode(entry.verdict)),
        }
        return connection.execute(sa.insert(db.jobs).values(row).returning(db.jobs.c.number)).scalar_one()

    def _select(self, job_id: str) -> sa.Row[Any] | None:
        with self.database.read() as connection:
            return connection.execute(self.database.one_job, {"job_id": job_id}).one_or_none()

    def _read(self, job_id: str, *, with_logs: bool = True) -> Job | None:
        row = self._select(job_id)
        return None if row is None else make_job(row, with_logs=with_logs)

    def _require(self, job_id: str) -> Job:
        job = self._read(job_id)
        if job is None:
            raise JobStateError("The generation was deleted in the meantime.")
        return job

    def _now_ms(self) -> int:
        return int(self.clock() * 1000)
