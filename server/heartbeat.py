"""Who is alive: a counter per worker that goes up, and a slot per worker on one machine that no two hold at once.

DBOS takes up the jobs of a worker that comes back under its old name. Those of one that never comes back are ours.
"""

import os
import socket
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout

from server import database as db

MAX_SLOTS = 64


@dataclass(frozen=True)
class Slot:
    """A worker's place: its name, and the lock that the system frees when the process ends in whatever way."""

    executor_id: str
    lock: FileLock


def claim_slot(folder: Path, gpu: str | None = None) -> Slot:
    """Take the first free slot of this data folder: the same name after a restart, never one that lives.

    gpu: the device's name, for several workers on one machine; none: what CUDA_VISIBLE_DEVICES says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = (gpu or os.environ.get("CUDA_VISIBLE_DEVICES") or "all").replace(",", "+")
    for number in range(MAX_SLOTS):
        lock = FileLock(folder / f"{device}-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        # The folder's own name: two containers may share a host's name, but not a folder and its locks.
        return Slot(f"{socket.gethostname()}/{_name_of(folder)}/{device}/{number}", lock)
    raise RuntimeError(f"{MAX_SLOTS} workers hold every slot in {folder}.")


def _name_of(folder: Path) -> str:
    """Give a random name that stays with the folder."""
    path = folder / "name"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8], encoding="ascii")
    return path.read_text(encoding="ascii")


@dataclass
class Watch:
    """Tells which workers have stopped counting, by this machine's clock alone: no two clocks are compared.

    What it did not see does not count: while the database was away nobody could count.
    """

    dead_after_s: float
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)  # executor -> its count, and when it was new
    _looked_s: float = 0.0

    def find_dead(self, beats: Mapping[str, int], now_s: float) -> list[str]:
        """Give the workers whose count has been the same for too long."""
        if now_s - self._looked_s > self.dead_after_s / 2:
            self._seen.clear()
        self._looked_s = now_s
        for executor_id, beat in beats.items():
            if executor_id not in self._seen or self._seen[executor_id][0] != beat:
                self._seen[executor_id] = (beat, now_s)
        return [executor_id for executor_id in beats if now_s - self._seen[executor_id][1] > self.dead_after_s]


def beat(database: db.JobDatabase, executor_id: str) -> None:
    """Count up for this worker."""
    own = db.workers.c.executor_id == executor_id
    with database.write() as connection:
        counted = connection.execute(sa.update(db.workers).where(own).values(beat=db.workers.c.beat + 1))
        if counted.rowcount == 0:
            connection.execute(sa.insert(db.workers).values(executor_id=executor_id, beat=0))


def read_beats(database: db.JobDatabase) -> dict[str, int]:
    """Give every worker's count."""
    with database.read() as connection:
        return {row.executor_id: row.beat for row in connection.execute(sa.select(db.workers))}


def bury(database: db.JobDatabase, executor_id: str) -> list[str]:
    """Put a dead worker's jobs back in the queue and forget it. Gives the ids.

    Should it live after all, it is told at its next report that the job is no longer its own.
    """
    taken = requeue(database, executor_id)
    with database.write() as connection:
        connection.execute(sa.delete(db.workers).where(db.workers.c.executor_id == executor_id))
    return taken


def requeue(
    database: db.JobDatabase, executor_id: str, *, only: Collection[str] | None = None, forgive: bool = False
) -> list[str]:
    """Put what a worker has taken and not ended back in the queue. Gives the ids.

    only: these and no others. forgive: do not count this run towards those a job may have.
    """
    with database.read() as connection:
        taken = [one for one in db.running_of(connection, database, executor_id) if only is None or one in only]
    # Not resume_workflow: that forgets the runs counted so far, and brings back what was cancelled.
    back = [one for one in taken if database.system.reenqueue_for_recovery(one, [executor_id], db.JOBS_QUEUE)]
    if forgive:
        with database.write() as connection:
            for workflow_id in back:
                db.forgive_attempt(connection, database, workflow_id)
    return back
