"""The worker: takes one job at a time, and looks after the queue meanwhile. Inside the app, or alone: `--help`.

A front without a worker runs one that takes no jobs: it settles what no worker has to be there for.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS
from dbos._serialization import DBOSPortableJSONSerializer

from server import database as db
from server.background import leave
from server.heartbeat import Slot, Watch, beat, bury, claim_slot, read_beats, requeue
from server.job import Job, JobError, News, Outcome, Retention, encode
from server.jobs import JobQueue
from server.retention import Retainer
from server.workshop import Workshop

log = logging.getLogger(__name__)

MAX_RECOVERY_ATTEMPTS = 3  # so a job that kills its worker runs four times
REPORTS_AT_ONCE = 16
COPY_AGE = timedelta(days=1)  # what a job reads or a page shows was read long before

# After a failed report of a job's end: ten tries in about two hours, the first repeat within a minute.
REPORT_DELAYS_S = (15, 30, 60, 120, 300, 600, 900, 1800, 3600)


@dataclass(frozen=True)
class Rhythm:
    """How often a worker does what it does, in seconds. dead_after_s: of silence, until others take its jobs."""

    poll_s: float = 0.25
    tend_s: float = 1.0
    heartbeat_s: float = 10.0
    dead_after_s: float = 60.0
    retain_s: float = 600.0
    report_delays_s: tuple[float, ...] = REPORT_DELAYS_S


DEFAULT_RHYTHM = Rhythm()
KEEP_ALL = Retention()


class WorkerStoppingError(BaseException):
    """The worker is to stop. No Exception, so that nothing on the way takes it for a job's failure."""


class Worker:
    """Takes jobs from a queue until it is stopped. One per process: DBOS knows no more."""

    def __init__(
        self,
        queue: JobQueue,
        workshop: Workshop | None,
        slots_dir: Path,
        *,
        on_finished: Callable[[Job], None] | None = None,
        retention: Retention = KEEP_ALL,
        rhythm: Rhythm = DEFAULT_RHYTHM,
    ) -> None:
        """workshop: where jobs are done; none: they are left to others, and only what follows their end is done.

        slots_dir: of workers, or of fronts: a name must not change from one to the other.
        on_finished: told of each ended job that has a webhook URL, at least once, again while it raises.
        """
        self._queue = queue
        self._workshop = workshop
        self._slots_dir = slots_dir
        self._on_finished = on_finished
        self._retainer = Retainer(queue, workshop.folder, retention) if workshop else None
        self._rhythm = rhythm
        self._stopping = threading.Event()
        self._at_work = threading.Lock()  # held while a job runs
        self._current: str | None = None
        self._idle_before: set[str] = set()
        self._tenders: list[threading.Thread] = []
        self._slot: Slot | None = None

    @property
    def executor_id(self) -> str:
        """Give the name this worker's jobs are held under."""
        if self._slot is None:
            raise RuntimeError("The worker was not started.")
        return self._slot.executor_id

    def start(self) -> None:
        """Begin taking jobs, first those this worker left unfinished when it last ended."""
        self._slot = claim_slot(self._slots_dir)
        self._stopping.clear()
        beat(self._queue.database, self.executor_id)
        DBOS(
            config={
                "name": db.APPLICATION,
                "system_database_url": self._queue.database.url,
                "application_version": db.APPLICATION_VERSION,
                "executor_id": self.executor_id,
                "serializer": DBOSPortableJSONSerializer(),
                "log_level": "WARNING",
                "run_migrations": False,  # the queue did
            }
        )
        self._register_queues()
        self._register_workflows()
        DBOS.listen_queues([db.JOBS_QUEUE, db.FINISHED_QUEUE] if self._workshop else [db.FINISHED_QUEUE])
        DBOS.launch()
        self._start_tending()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Stop at the running job's next step and hand it back; whoever takes it goes on from its saved state.

        timeout_s: how long to wait for that step, and for what tends the queue. After that the job is taken up when
        this worker comes back, or by others when it has been silent for too long.
        """
        self._stopping.set()
        until = time.monotonic() + timeout_s
        handed_back = self._at_work.acquire(timeout=timeout_s)
        for tender in self._tenders:
            tender.join(max(0.0, until - time.monotonic()))
        DBOS.destroy(destroy_registry=True)
        if handed_back:
            self._at_work.release()
            self._hand_back()
        if self._slot is not None:
            self._slot.lock.release()

    def _hand_back(self) -> None:
        """Put what this worker took back in the queue, and sign off. Without the database it is as after a crash."""
        try:
            requeue(self._queue.database, self.executor_id, forgive=True)
            with self._queue.database.write() as connection:
                connection.execute(sa.delete(db.workers).where(db.workers.c.executor_id == self.executor_id))
        except db.UnreachableError:
            log.warning("The database cannot be reached; another worker takes over when it is back, or this one does.")

    def _register_queues(self) -> None:
        """Tell DBOS the limits of each queue, before it starts: it looks for new ones once a second only."""
        register, poll_s = self._queue.database.client.register_queue, self._rhythm.poll_s
        register(db.JOBS_QUEUE, worker_concurrency=1, polling_interval_sec=poll_s)
        register(db.FINISHED_QUEUE, worker_concurrency=REPORTS_AT_ONCE, polling_interval_sec=poll_s)

    def _register_workflows(self) -> None:
        """Tell DBOS what to call for a row of each queue, at first and again after a crash."""
        if self._workshop is not None:
            self._register_jobs(self._workshop)

        @DBOS.workflow(name=db.FINISHED_WORKFLOW)
        def report_finished(job_id: str, attempt: int) -> None:
            self._report_finished(job_id, attempt)

    def _register_jobs(self, workshop: Workshop) -> None:
        @DBOS.step(name="make_video")
        def make_video(job_id: str) -> dict[str, Any]:
            return self._make_video(workshop, job_id)

        @DBOS.workflow(name=db.RUN_WORKFLOW, max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
        def run_job(job_id: str) -> dict[str, Any]:
            with self._taking(job_id):
                outcome = make_video(job_id)
                workshop.discard(job_id)  # not before the step is recorded: a crash until then starts it again
                return outcome

    @contextmanager
    def _taking(self, job_id: str) -> Iterator[None]:
        with self._at_work:
            if self._stopping.is_set():
                raise WorkerStoppingError
            self._current = job_id
            try:
                yield
            finally:
                self._current = None

    def _make_video(self, workshop: Workshop, job_id: str) -> dict[str, Any]:
        job, earlier = self._look_up(job_id)
        if job is None or job.request is None:
            gone = JobError("internal", "The request of this generation is gone from the database.")
            return encode(Outcome(self._queue.now(), error=gone))
        try:
            return encode(workshop.run(job_id, job.request, earlier, self._publish))
        except BaseException:  # cancelled, or to stop: only what has ended for good needs nothing to go on from
            with suppress(db.UnreachableError):
                now = self._queue.get(job_id, with_logs=False)
                if now is None or now.status.is_final:
                    workshop.discard(job_id)
            raise

    def _look_up(self, job_id: str) -> tuple[Job | None, News | None]:
        """Give a job and the last news of an earlier run, as soon as the database can be reached."""
        while True:
            try:
                return self._queue.get(job_id), self._queue.news_of(job_id)
            except db.UnreachableError:
                log.warning("The database cannot be reached; job %s waits for it.", job_id)
            if self._stopping.wait(self._rhythm.tend_s):
                raise WorkerStoppingError

    def _publish(self, news: News) -> None:
        """Write a running job's news. DBOS raises here when the job was cancelled, or is another worker's by now."""
        if self._stopping.is_set():
            raise WorkerStoppingError
        DBOS.set_event(db.NEWS, encode(news))

    def _report_finished(self, job_id: str, attempt: int) -> None:
        """Tell of a job's end, and queue another try for later when that fails."""
        job = self._queue.get(job_id)
        if job is None or self._on_finished is None:
            return
        try:
            self._on_finished(job)
        except Exception:  # any failure of a report means the same: later again
            if attempt < len(self._rhythm.report_delays_s):
                self._queue.repeat_report(job_id, attempt + 1, delay_s=self._rhythm.report_delays_s[attempt])
            log.warning("Nobody took the end of job %s, attempt %d.", job_id, attempt + 1, exc_info=True)

    def _start_tending(self) -> None:
        """Begin to look after the queue. Removing files may take long, and the heart must beat meanwhile."""
        watch = Watch(self._rhythm.dead_after_s)
        quick = [
            Chore(self._rhythm.tend_s, self._queue.expire_overdue),
            Chore(self._rhythm.tend_s, self._queue.enqueue_reports),
            Chore(self._rhythm.heartbeat_s, lambda: self._watch_workers(watch)),
        ]
        slow = [Chore(self._rhythm.retain_s, self._clear_copies)]
        if self._retainer:
            slow.append(Chore(self._rhythm.retain_s, self._retainer.run))
        self._tenders = [threading.Thread(target=self._tend, args=(chores,), daemon=True) for chores in (quick, slow)]
        for tender in self._tenders:
            tender.start()

    def _clear_copies(self) -> None:
        """Remove what this machine has copied of the files: whoever deletes one reaches his own machine only."""
        self._queue.files.clear_copies(self._queue.now() - COPY_AGE)

    def _tend(self, chores: list["Chore"]) -> None:
        while not self._stopping.wait(min(chore.due_in(time.monotonic()) for chore in chores)):
            for chore in chores:
                chore.run_if_due(time.monotonic())

    def _watch_workers(self, watch: Watch) -> None:
        beat(self._queue.database, self.executor_id)
        others = {one: count for one, count in read_beats(self._queue.database).items() if one != self.executor_id}
        for dead in watch.find_dead(others, time.monotonic()):
            taken = bury(self._queue.database, dead)
            log.warning("The worker %s is silent; %d of its jobs go to others.", dead, len(taken))
        self._requeue_stranded()

    def _requeue_stranded(self) -> None:
        """Take up again what this worker holds but does not do, as when the end of a job could not be written down.

        Only what was so a heartbeat ago as well: a job just taken has not begun yet.
        """
        with self._queue.database.read() as connection:
            held = db.running_of(connection, self._queue.database, self.executor_id)
        idle = {one for one, queue_name in held.items() if queue_name == db.JOBS_QUEUE and one != self._current}
        if stranded := idle & self._idle_before:
            requeue(self._queue.database, self.executor_id, only=stranded)
            log.warning("The end of job %s could not be written down; it runs again.", ", ".join(stranded))
        self._idle_before = idle


def work_until_told(worker: Worker) -> None:
    """Run a worker until the process is asked to end (SIGTERM, Ctrl-C). Must be called from the main thread."""
    told = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda number, frame: told.set())
    worker.start()
    told.wait()
    worker.stop()


class Chore:
    """Something to do every so often, which tries again next time when it failed."""

    def __init__(self, every_s: float, do: Callable[[], object]) -> None:
        self._every_s = every_s
        self._do = do
        self._due_s = time.monotonic() + every_s

    def due_in(self, now_s: float) -> float:
        """Give the seconds until it is due, at least 0."""
        return max(0.0, self._due_s - now_s)

    def run_if_due(self, now_s: float) -> None:
        """Do it if it is time."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        try:
            self._do()
        except db.UnreachableError as error:
            log.warning("%s (%s)", error.message, error.__cause__)
        except Exception:  # the thread's edge: what goes wrong here must not end it
            log.exception("A chore of the queue failed; it is tried again in %g s.", self._every_s)


if __name__ == "__main__":
    from server.assembly import run_worker  # which builds on this module

    leave(run_worker(sys.argv[1:]))
