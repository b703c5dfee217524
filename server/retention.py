"""What may go: finished jobs that are too old or too large together, uploads nobody uses, what served for a moment."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from server.files import INPUTS, PARTS, UPLOADS, FileStore
from server.job import Job, Retention
from server.jobs import JobQueue
from server.workshop import PREVIEWS

# However soon a sender wants a job gone: its client asks for the result, and a webhook is repeated for two hours.
SHORTEST_LIFE = timedelta(minutes=1)
SHORTEST_LIFE_WITH_WEBHOOK = timedelta(hours=3)
# What is fetched for a job is read when the job begins, an upload is done by then, and a preview is replaced.
SCRATCH_AGE = timedelta(days=1)


@dataclass(frozen=True)
class Retainer:
    """Keeps the data of a queue within its limits. folder: holds one folder per unfinished job."""

    queue: JobQueue
    folder: Path
    retention: Retention

    def run(self) -> None:
        """Remove what may go. Doing it twice at once does no harm."""
        now = self.queue.now()
        for job in choose_expired(self.queue.all_jobs(), self.retention, now):
            if self._is_unused(*job.keys):
                self.queue.forget(job)
        kept = self.queue.all_jobs()
        self._remove_scratch(kept, now)
        self._remove_old_uploads(now)
        self._remove_overdue_uploads(now)
        self._remove_folders(kept)

    def _is_unused(self, *keys: str) -> bool:
        """Say whether no job needs these files. Asked before each removal: many take long, and jobs come meanwhile."""
        return self.queue.needed_files().isdisjoint(keys)

    def _remove_scratch(self, jobs: Iterable[Job], now: datetime) -> None:
        """Remove what served for a moment. Never a result: one that no job knows may be known to another database."""
        known = {key for job in jobs for key in job.keys}
        for folder in (INPUTS, PARTS, PREVIEWS):
            for key in _find_older(self.queue.files, folder, now - SCRATCH_AGE):
                if key not in known:
                    self.queue.files.delete(key)

    def _remove_old_uploads(self, now: datetime) -> None:
        if self.retention.max_age_s is None:
            return
        for key in _find_older(self.queue.files, UPLOADS, now - timedelta(seconds=self.retention.max_age_s)):
            if self._is_unused(key):
                self.queue.files.delete(key)

    def _remove_overdue_uploads(self, now: datetime) -> None:
        """Remove what its sender wanted for a while only. A note outlives its time: the file may come late."""
        files = self.queue.files
        for key, ended_at in files.overdue(now).items():
            if self._is_unused(key):
                files.delete(key)
                if ended_at < now - SCRATCH_AGE:
                    files.forget_life(key, ended_at)

    def _remove_folders(self, jobs: Iterable[Job]) -> None:
        ended = {job.job_id for job in jobs if job.status.is_final}
        for folder in self.folder.iterdir() if self.folder.exists() else ():
            if folder.name in ended:
                shutil.rmtree(folder, ignore_errors=True)


def choose_expired(jobs: Iterable[Job], retention: Retention, now: datetime) -> list[Job]:
    """Choose the jobs to forget: those that ended too long ago, then the oldest until the rest is small enough.

    Too long is what the operator says, or what the sender does where that is shorter.
    """
    ended = sorted((job for job in jobs if job.finished_at), key=lambda job: job.finished_at or now)
    room = float("inf") if retention.max_size_bytes is None else retention.max_size_bytes
    age = timedelta.max if retention.max_age_s is None else timedelta(seconds=retention.max_age_s)
    expired, used = [], 0
    for job in reversed(ended):
        used += job.result.size_bytes if job.result else 0
        if used > room or now - (job.finished_at or now) > min(age, _wanted_life(job)):
            expired.append(job)
    return expired[::-1]


def _wanted_life(job: Job) -> timedelta:
    if job.request is None or job.request.keep_s is None:
        return timedelta.max
    shortest = SHORTEST_LIFE if job.webhook_url is None else SHORTEST_LIFE_WITH_WEBHOOK
    return max(shortest, timedelta(seconds=job.request.keep_s))


def _find_older(store: FileStore, folder: str, than: datetime) -> list[str]:
    return [file.key for file in store.stored(folder) if file.modified_at < than]
