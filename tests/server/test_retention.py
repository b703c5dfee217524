"""What may go: by age, by size, what a crash left; never what is still in use."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.files import INPUTS, PARTS, RESULTS, UPLOADS, FileStore
from server.job import Job, JobError, JobRequest, JobResult, JobStatus, Retention
from server.jobs import JobQueue
from server.retention import Retainer, choose_expired
from server.workshop import PREVIEWS
from tests.server.fake_generation import make_files, make_request

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DAY_S = 86_400.0


def ended(name: str, days_ago: float, size_bytes: int) -> Job:
    moment = NOW - timedelta(days=days_ago)
    result = JobResult("v", "c", "p", size_bytes, {}, 1.0)
    return Job(name, "ann", JobStatus.SUCCEEDED, None, None, None, (), result, None, moment, moment, moment)


WAITING = dataclasses.replace(ended("w", 99, 0), status=JobStatus.WAITING, result=None, finished_at=None)


@pytest.mark.parametrize(
    ("retention", "expired"),
    [
        (Retention(), ""),
        (Retention(max_age_s=3 * DAY_S), ""),
        (Retention(max_age_s=3 * DAY_S - 1), "a"),
        (Retention(max_size_bytes=60), ""),
        (Retention(max_size_bytes=59), "a"),
        (Retention(max_size_bytes=29), "ab"),
        (Retention(max_size_bytes=0), "abc"),
        (Retention(max_age_s=1.5 * DAY_S, max_size_bytes=60), "ab"),
    ],
)
def test_the_oldest_go_first(retention: Retention, expired: str) -> None:
    """Too old goes; then the oldest, until the rest is small enough. What has not ended never goes."""
    jobs = [ended("b", 2, 20), ended("c", 1, 10), WAITING, ended("a", 3, 30)]

    chosen = choose_expired(jobs, retention, NOW)

    assert [job.job_id for job in chosen] == list(expired)


class Clock:
    """The real time, moved ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        """Give the seconds since 1970."""
        return time.time() + self.ahead_s


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return make_files(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, files: FileStore, clock: Clock) -> Iterator[JobQueue]:
    with closing(JobQueue(f"sqlite:///{tmp_path}/queue.sqlite", files, clock=clock)) as queue:
        yield queue


def store(files: FileStore, tmp_path: Path, folder: str) -> str:
    path = tmp_path / "some.mp4"
    path.write_text("some")
    return files.add(path, folder=folder)


def test_jobs_and_uploads_go_when_they_are_too_old(
    queue: JobQueue, files: FileStore, clock: Clock, tmp_path: Path
) -> None:
    """Both stay for as long as the operator said, and then both go."""
    job = queue.submit_invalid(JobError("invalid_input", "No."), owner="ann")
    upload = store(files, tmp_path, UPLOADS)
    retainer = Retainer(queue, tmp_path / "jobs", Retention(max_age_s=7 * DAY_S))
    clock.ahead_s = 6.9 * DAY_S
    retainer.run()
    before = queue.get(job.job_id), files.exists(upload)
    clock.ahead_s = 7.1 * DAY_S

    retainer.run()

    assert before == (job, True)
    assert (queue.get(job.job_id), files.exists(upload)) == (None, False)


def test_the_files_of_a_waiting_job_stay(queue: JobQueue, files: FileStore, clock: Clock, tmp_path: Path) -> None:
    """However old they are: the job still needs them."""
    video, image = (store(files, tmp_path, UPLOADS) for _ in range(2))
    job = queue.submit(JobRequest(make_request().fields, f"file:{video}", f"file:{image}"), owner="ann")
    clock.ahead_s = 1000 * DAY_S

    Retainer(queue, tmp_path / "jobs", Retention(max_age_s=DAY_S, max_size_bytes=0)).run()

    assert queue.get(job.job_id) == job
    assert files.exists(video)
    assert files.exists(image)


@pytest.mark.parametrize("wish_s", [None, 60.0])
def test_the_files_of_a_job_that_comes_meanwhile_stay(
    queue: JobQueue,
    files: FileStore,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wish_s: float | None,
) -> None:
    """Looking through the files takes long; what is submitted until one's turn comes counts."""
    old, needed = (store(files, tmp_path, UPLOADS) for _ in range(2))
    for key in (old, needed):
        if wish_s is not None:
            files.limit_life(key, queue.now() + timedelta(seconds=wish_s))
    clock.ahead_s = 2 * DAY_S
    find = files.overdue if wish_s else files.stored

    def find_and_submit(*args: Any) -> Any:
        found = find(*args)
        if queue.all_jobs() == []:
            queue.submit(JobRequest(make_request().fields, f"file:{needed}", "http://a.example/b.png"), owner="ann")
        return found

    monkeypatch.setattr(files, find.__name__, find_and_submit)

    Retainer(queue, tmp_path / "jobs", Retention(max_age_s=None if wish_s else DAY_S)).run()

    assert [files.exists(key) for key in (old, needed)] == [False, True]


def test_results_that_no_job_knows_stay(queue: JobQueue, files: FileStore, clock: Clock, tmp_path: Path) -> None:
    """Another database may know them: one that was lost, one to be brought back, another studio's."""
    unknown = store(files, tmp_path, RESULTS)
    clock.ahead_s = 1000 * DAY_S

    Retainer(queue, tmp_path / "jobs", Retention(max_age_s=DAY_S, max_size_bytes=0)).run()

    assert files.exists(unknown)


@pytest.mark.parametrize("folder", [INPUTS, PARTS, PREVIEWS])
def test_what_was_fetched_for_a_moment_goes_after_a_day(
    queue: JobQueue, files: FileStore, clock: Clock, tmp_path: Path, folder: str
) -> None:
    """Copies of what lies elsewhere, unfinished uploads and pictures nobody sees have no limit to wait for."""
    key = store(files, tmp_path, folder)
    retainer = Retainer(queue, tmp_path / "jobs", Retention())
    clock.ahead_s = 0.9 * DAY_S
    retainer.run()
    before = files.exists(key)
    clock.ahead_s = 1.1 * DAY_S

    retainer.run()

    assert (before, files.exists(key)) == (True, False)


def test_the_folders_of_ended_jobs_go(queue: JobQueue, tmp_path: Path) -> None:
    """What a job kept to go on from is of no use after its end; a waiting one's stays."""
    waiting, stopped = (queue.submit(make_request(), owner="ann").job_id for _ in range(2))
    queue.cancel(stopped)
    for name in (waiting, stopped):
        (tmp_path / "jobs" / name).mkdir(parents=True)

    Retainer(queue, tmp_path / "jobs", Retention()).run()

    assert [folder.name for folder in (tmp_path / "jobs").iterdir()] == [waiting]


def wished(seconds: float, webhook_url: str | None = None) -> Job:
    """A job that ended a day ago, whose sender wants it kept for so long."""
    job = ended("a", 1, 10)
    return dataclasses.replace(
        job, request=dataclasses.replace(make_request(), keep_s=seconds), webhook_url=webhook_url
    )


@pytest.mark.parametrize(
    ("seconds", "webhook_url", "ended_s_ago", "goes"),
    [
        (DAY_S, None, DAY_S, False),
        (DAY_S, None, DAY_S + 1, True),
        (1.0, None, 60.0, False),  # its client still asks for the result
        (1.0, None, 61.0, True),
        (1.0, "http://hook", 3 * 3600.0, False),  # and this one is still told
        (1.0, "http://hook", 3 * 3600.0 + 1, True),
    ],
)
def test_a_sender_may_want_less(seconds: float, webhook_url: str | None, ended_s_ago: float, goes: bool) -> None:
    """A job goes when its sender does not want it any more, whatever the limits, and never more than a moment early."""
    job = dataclasses.replace(wished(seconds, webhook_url), finished_at=NOW - timedelta(seconds=ended_s_ago))

    assert (choose_expired([job], Retention(), NOW) == [job]) is goes
    assert (choose_expired([job], Retention(max_age_s=1e6), NOW) == [job]) is goes
    assert choose_expired([job], Retention(max_age_s=1.0), NOW) == [job]


def test_an_upload_goes_when_its_time_is_over(queue: JobQueue, files: FileStore, clock: Clock, tmp_path: Path) -> None:
    """Not before, not while a job waits for it, and also when it arrives after its time."""
    wanted, other = (store(files, tmp_path, UPLOADS) for _ in range(2))
    late = files.reserve(UPLOADS, "late.mp4")
    for key in (wanted, late):
        files.limit_life(key, queue.now() + timedelta(hours=1))
    job = queue.submit(JobRequest(make_request().fields, f"file:{wanted}", f"file:{other}"), owner="ann")
    retainer = Retainer(queue, tmp_path / "jobs", Retention())
    clock.ahead_s = 3601

    retainer.run()
    while_waiting = files.exists(wanted)
    files.take(tmp_path / "some.mp4", late)
    queue.cancel(job.job_id)
    retainer.run()

    assert while_waiting
    assert [files.exists(key) for key in (wanted, late, other)] == [False, False, True]


def test_a_note_of_a_time_goes_a_day_after_it(queue: JobQueue, files: FileStore, clock: Clock, tmp_path: Path) -> None:
    """Else they would pile up."""
    files.limit_life(files.reserve(UPLOADS, "a.mp4"), queue.now())
    retainer = Retainer(queue, tmp_path / "jobs", Retention())
    clock.ahead_s = 1.1 * DAY_S

    retainer.run()

    assert files.overdue(queue.now()) == {}


def test_a_result_that_a_waiting_job_uses_stays(queue: JobQueue, tmp_path: Path) -> None:
    """The job that made it stays with it, until the other has ended."""
    made = dataclasses.replace(ended("a", 9, 10), result=None)
    result = JobResult("results/" + "a" * 32 + "/v.mp4", "c", "p", 10, {}, 1.0)
    made = dataclasses.replace(made, result=result)
    waiting = queue.submit(JobRequest(make_request().fields, f"file:{result.video_key}", "file:x"), owner="ann")
    forgotten: list[Job] = []

    class Queue:
        """The queue, with one more job in it."""

        files = queue.files
        now = staticmethod(queue.now)
        forget = staticmethod(forgotten.append)

        needed_files = staticmethod(queue.needed_files)

        def all_jobs(self) -> list[Job]:
            """Give both."""
            return [made, *queue.all_jobs()]

    retainer = Retainer(Queue(), tmp_path / "jobs", Retention(max_age_s=DAY_S))  # type: ignore[arg-type]
    retainer.run()
    before = list(forgotten)
    queue.cancel(waiting.job_id)

    retainer.run()

    assert (before, forgotten) == ([], [made])
