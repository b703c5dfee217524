"""Rows of the database -> Job: DBOS's words for a state become ours here."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from server.job import Job, JobError, JobRequest, JobStatus, News, Outcome, decode

STATUSES = {
    "ENQUEUED": JobStatus.WAITING,
    "DELAYED": JobStatus.WAITING,
    "PENDING": JobStatus.RUNNING,
    "CANCELLED": JobStatus.CANCELLED,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": JobStatus.FAILED,
    "ERROR": JobStatus.FAILED,
}
ENDED_WITHOUT_OUTCOME = {
    "CANCELLED": JobError("cancelled", "The generation was stopped."),
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": JobError(
        "worker_lost",
        "The program that makes the videos ended again and again during this generation, perhaps because the machine "
        "ran out of memory; try fewer frames or a lower resolution.",
    ),
    "ERROR": JobError("internal", "Something went wrong while making the video; the log of the program says what."),
}


def make_job(row: sa.Row[Any], *, with_logs: bool) -> Job:
    """Make a Job of a row that `JobDatabase.all_jobs` selects."""
    news = None if row.value is None else decode(News, json.loads(row.value))
    job = Job(
        job_id=row.job_id,
        owner=row.owner,
        status=JobStatus.WAITING,
        position=None,
        request=None if row.request is None else decode(JobRequest, json.loads(row.request)),
        progress=news.progress if news else None,
        logs=news.logs if news and with_logs else (),
        result=None,
        error=None,
        created_at=_moment(row.created_ms),
        started_at=news.begun_at if news else None,
        finished_at=None if row.completed_at is None else _moment(row.completed_at),
        webhook_url=row.webhook_url,
        reserved=news.reserved if news else (),
    )
    if row.verdict is not None:
        return _close(job, decode(Outcome, json.loads(row.verdict)))
    if row.status == "SUCCESS":
        return _close(job, decode(Outcome, json.loads(row.output)))
    if row.status == "ENQUEUED" and row.recovery_attempts > 0:
        # Its worker died and another will take it: to whoever watches, it has begun and never goes back.
        return replace(job, status=JobStatus.RUNNING)
    position = row.position if row.status == "ENQUEUED" else None
    return replace(job, status=STATUSES[row.status], position=position, error=ENDED_WITHOUT_OUTCOME.get(row.status))


def _close(job: Job, outcome: Outcome) -> Job:
    status = JobStatus.SUCCEEDED if outcome.result else JobStatus.FAILED
    return replace(job, status=status, result=outcome.result, error=outcome.error, finished_at=outcome.finished_at)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
