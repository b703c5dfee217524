"""The queue without a worker: what is submitted, seen, reordered, stopped, refused and deleted."""

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from pipeline.errors import StudioError
from server.database import NEWS, UnreachableError, told_plainly
from server.files import RESULTS
from server.heartbeat import requeue
from server.job import Fault, Job, JobError, JobProgress, JobStatus, Limits, News, decode, encode
from server.jobs import JobQueue, JobStateError, OtherRequestError, QueueFullError
from tests.server.fake_generation import make_files, make_request
from tests.server.postgres import run_postgres


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        """Give the seconds since 1970."""
        return self.now_s


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with run_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind: the queue must behave the same on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.sqlite"
    return f"{request.getfixturevalue('postgres_url')}_{abs(hash(tmp_path))}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(database_url: str, tmp_path: Path, clock: Clock) -> Iterator[JobQueue]:
    limits = Limits(active_per_owner=5, waiting=7)
    with closing(JobQueue(database_url, make_files(tmp_path), limits=limits, clock=clock)) as queue:
        yield queue


def order_of(queue: JobQueue, *jobs: Job) -> list[str]:
    """Give the prompts of waiting jobs in the order they will run."""
    now = [queue.get(job.job_id) for job in jobs]
    return [job.request.fields["prompt"] for job in sorted(now, key=lambda job: job.position)]


def add_result(queue: JobQueue, folder: Path) -> tuple[Job, str]:
    """Give a job of Ann's that has ended while its result was being stored, and the key of that."""
    job = queue.submit(make_request(), owner="ann")
    queue.cancel(job.job_id)
    (file := folder / "a.mp4").write_text("a video")
    key = queue.files.add(file, folder=RESULTS)
    begun_at = queue.now()
    news = News(begun_at, JobProgress("storing", 0, 1, begun_at), reserved=(key,))
    row = {"workflow_uuid": job.job_id, "key": NEWS, "value": json.dumps(encode(news))}
    with queue.database.write() as connection:
        connection.execute(sa.insert(queue.database.system.tables.workflow_events).values(row))
    return queue.get(job.job_id), key


def test_a_submitted_job_waits_and_keeps_its_request(queue: JobQueue) -> None:
    """What was asked comes back word for word, with its place in the queue and its time."""
    request = make_request(num_frames=9, seed=3)

    job = queue.submit(request, owner="ann", webhook_url="http://127.0.0.1/hook")

    assert job == queue.get(job.job_id)
    assert (job.status, job.position, job.request) == (JobStatus.WAITING, 0, request)
    assert job.created_at.timestamp() == 1_800_000_000
    assert (job.webhook_url, job.started_at, job.finished_at, job.error) == ("http://127.0.0.1/hook", None, None, None)


def test_jobs_outlive_the_process(queue: JobQueue, database_url: str, tmp_path: Path) -> None:
    """Whoever opens the database later finds the job."""
    job = queue.submit(make_request(), owner="ann")

    with closing(JobQueue(database_url, make_files(tmp_path))) as later:
        found = later.get(job.job_id)

    assert found == job


def test_an_unknown_job_is_none(queue: JobQueue) -> None:
    """An id nobody was given is no error."""
    assert queue.get("nobody") is None
    assert list(queue.changes("nobody")) == []
    assert queue.cancel("nobody") == "not_found"


def test_jobs_run_in_the_order_they_came(queue: JobQueue) -> None:
    """A position counts the requests ahead, also among jobs of one second."""
    jobs = [queue.submit(make_request(str(number)), owner=f"owner {number}") for number in range(5)]

    assert [queue.get(job.job_id).position for job in jobs] == [0, 1, 2, 3, 4]


def test_low_priority_runs_after_normal(queue: JobQueue) -> None:
    """A job of low priority lets later ones of normal priority pass."""
    patient = queue.submit(make_request("patient"), owner="ann", priority="low")
    normal = queue.submit(make_request("normal"), owner="ben")

    assert order_of(queue, patient, normal) == ["normal", "patient"]


@pytest.mark.parametrize(
    ("moved", "before", "expected"),
    [("c", "a", "caxb"), ("a", None, "bcxa"), ("a", "c", "baxc"), ("a", "a", "abxc")],
)
def test_an_owner_reorders_their_own_jobs(queue: JobQueue, moved: str, before: str | None, expected: str) -> None:
    """Jobs change places among an owner's own; a stranger between them keeps the same number ahead."""
    own = {name: queue.submit(make_request(name), owner="ann") for name in "ab"}
    stranger = queue.submit(make_request("x"), owner="ben")
    own["c"] = queue.submit(make_request("c"), owner="ann")

    queue.move(own[moved].job_id, "ann", own[before].job_id if before else None)

    assert order_of(queue, *own.values(), stranger) == list(expected)


def test_only_ones_own_waiting_jobs_change_places(queue: JobQueue) -> None:
    """A stranger cannot move a job, nor can its owner put it before a stranger's, nor move one that has ended."""
    own, ended = (queue.submit(make_request(), owner="ann") for _ in range(2))
    stranger = queue.submit(make_request(), owner="ben")
    queue.cancel(ended.job_id)

    for job_id, owner, before in [
        (own.job_id, "ben", None),
        (own.job_id, "ann", stranger.job_id),
        (ended.job_id, "ann", None),
    ]:
        with pytest.raises(JobStateError, match="still waiting"):
            queue.move(job_id, owner, before)


def test_a_waiting_job_is_cancelled_at_once(queue: JobQueue) -> None:
    """It ends there and then, those behind move up, and a second cancel comes too late."""
    first, second = (queue.submit(make_request(), owner="ann") for _ in range(2))

    answer = queue.cancel(first.job_id)

    ended = queue.get(first.job_id)
    assert answer == "requested"
    assert (ended.status, ended.error.kind, ended.position) == (JobStatus.CANCELLED, "cancelled", None)
    assert ended.finished_at is not None
    assert queue.get(second.job_id).position == 0
    assert queue.cancel(first.job_id) == "already_finished"


def test_the_same_idempotency_key_gives_the_same_job(queue: JobQueue) -> None:
    """A repeated submit starts nothing new; another owner's key is another key."""
    first = queue.submit(make_request(), owner="ann", idempotency_key="once")

    again = queue.submit(make_request("other"), owner="ann", idempotency_key="once")
    other = queue.submit(make_request(), owner="ben", idempotency_key="once")

    assert again == first
    assert other.job_id != first.job_id


def test_an_idempotency_key_is_not_for_another_request(queue: JobQueue) -> None:
    """Two digests are two requests, and the first one stays as it was."""
    first, other = (dataclasses.replace(make_request(), digest=digest) for digest in ("1a", "2b"))
    job = queue.submit(first, owner="ann", idempotency_key="once")

    with pytest.raises(OtherRequestError, match="'once' was used for another request"):
        queue.submit(other, owner="ann", idempotency_key="once")

    assert queue.all_jobs() == [job]
    assert queue.submit(first, owner="ann", idempotency_key="once") == job
    assert queue.submit(other, owner="ann", idempotency_key="next") != job


def test_an_id_can_be_chosen(queue: JobQueue) -> None:
    """A caller may bring the id; the same id of the same owner is the same job."""
    job = queue.submit(make_request(), owner="ann", job_id="b0b00000-0000-4000-8000-000000000000")

    again = queue.submit(make_request(), owner="ann", job_id=job.job_id)

    assert again == job
    assert job.job_id == "b0b00000-0000-4000-8000-000000000000"


def test_an_owner_can_have_only_so_many_active_jobs(queue: JobQueue) -> None:
    """The last good one is the limit's; one more is refused with a sentence, until one has ended."""
    jobs = [queue.submit(make_request(), owner="ann") for _ in range(5)]

    with pytest.raises(QueueFullError) as refused:
        queue.submit(make_request(), owner="ann")
    queue.cancel(jobs[0].job_id)
    queue.submit(make_request(), owner="ann")

    assert refused.value.message == "You have 5 generations in the queue; wait until one has ended, or stop one."


def test_only_so_many_jobs_can_wait(queue: JobQueue) -> None:
    """The queue as a whole has a limit too."""
    for number in range(7):
        queue.submit(make_request(), owner=f"owner {number}")

    with pytest.raises(QueueFullError, match="7 generations are waiting, and no more fit"):
        queue.submit(make_request(), owner="ann")


def test_an_invalid_request_is_a_job_that_has_ended(queue: JobQueue) -> None:
    """Its submit does not fail: the result tells what was wrong."""
    error = JobError("invalid_input", "The prompt is missing.", (Fault("prompt", "The prompt is missing.", "missing"),))

    job = queue.submit_invalid(error, owner="ann")

    assert (job.status, job.error, job.position) == (JobStatus.FAILED, error, None)
    assert job.finished_at == job.created_at
    assert queue.cancel(job.job_id) == "already_finished"


def test_a_job_that_does_not_begin_in_time_ends(queue: JobQueue, clock: Clock) -> None:
    """It ends when its start timeout is over, even with no worker there, and not before."""
    job = queue.submit(make_request(), owner="ann", start_timeout_s=30)
    clock.now_s += 29.9
    before = queue.get(job.job_id)
    clock.now_s += 0.2

    after = queue.get(job.job_id)

    assert before.status is JobStatus.WAITING
    assert (after.status, after.error.kind) == (JobStatus.FAILED, "start_timeout")
    assert after.finished_at.timestamp() == pytest.approx(clock.now_s)


def test_an_owner_sees_their_jobs_newest_first(queue: JobQueue) -> None:
    """Others' jobs are not among them, and there is a limit."""
    jobs = [queue.submit(make_request(str(number)), owner="ann") for number in range(3)]
    queue.submit(make_request(), owner="ben")

    assert queue.jobs_of("ann") == [queue.get(job.job_id) for job in reversed(jobs)]
    assert [job.job_id for job in queue.jobs_of("ann", limit=1)] == [jobs[2].job_id]


def test_only_an_ended_job_of_ones_own_is_deleted(queue: JobQueue) -> None:
    """A waiting one, a stranger's and one that is gone are refused with a sentence each."""
    job = queue.submit(make_request(), owner="ann")
    with pytest.raises(JobStateError, match="stop it first"):
        queue.delete(job.job_id, "ann")
    queue.cancel(job.job_id)
    with pytest.raises(JobStateError, match="no such generation"):
        queue.delete(job.job_id, "ben")

    queue.delete(job.job_id, "ann")

    assert queue.get(job.job_id) is None
    assert queue.jobs_of("ann") == []
    with pytest.raises(JobStateError, match="no such generation"):
        queue.delete(job.job_id, "ann")


def test_a_job_that_was_taken_never_waits_again(queue: JobQueue) -> None:
    """Also when its worker died before it told of anything: whoever watched has seen it begin."""
    taken, waiting = (queue.submit(make_request(), owner="ann") for _ in range(2))
    flow = queue.database.workflows
    with queue.database.write() as connection:
        held = {"status": "PENDING", "executor_id": "dead", "recovery_attempts": 1}
        connection.execute(sa.update(flow).where(flow.c.workflow_uuid == taken.job_id).values(held))
    seen = [queue.get(taken.job_id)]

    requeue(queue.database, "dead")
    seen.append(queue.get(taken.job_id))

    assert [(job.status, job.position) for job in seen] == [(JobStatus.RUNNING, None)] * 2
    assert queue.get(waiting.job_id).status is JobStatus.WAITING


@pytest.mark.parametrize("field", ["reference_video", "image"])
def test_a_video_that_another_job_needs_is_not_deleted(queue: JobQueue, tmp_path: Path, field: str) -> None:
    """Whoever has that one in the queue: it can be deleted once that has ended."""
    made, key = add_result(queue, tmp_path)
    using = dataclasses.replace(make_request(), **{field: f"file:{key}"})
    following = queue.submit(using, owner="ben")
    with pytest.raises(JobStateError, match="uses this video; delete it after"):
        queue.delete(made.job_id, "ann")
    before = queue.get(made.job_id), queue.files.exists(key)
    queue.cancel(following.job_id)

    queue.delete(made.job_id, "ann")

    assert before == (made, True)
    assert (queue.get(made.job_id), queue.files.exists(key)) == (None, False)


def test_files_whose_job_did_not_tell_of_them_go_with_it(queue: JobQueue, tmp_path: Path) -> None:
    """A worker that dies while it stores a result has told the keys by then."""
    job, key = add_result(queue, tmp_path)

    queue.delete(job.job_id, "ann")

    assert not queue.files.exists(key)


def test_changes_come_at_once_and_end_with_the_job(queue: JobQueue) -> None:
    """A follower sees the job as it is, each change, and the end, and is then let go."""
    ahead, job = (queue.submit(make_request(), owner="ann") for _ in range(2))
    changes = queue.changes(job.job_id)

    seen = [next(changes)]
    queue.cancel(ahead.job_id)
    seen.append(next(changes))
    queue.cancel(job.job_id)
    seen.extend(changes)

    assert [(job.status, job.position) for job in seen] == [
        (JobStatus.WAITING, 1),
        (JobStatus.WAITING, 0),
        (JobStatus.CANCELLED, None),
    ]


def test_a_job_survives_json(queue: JobQueue) -> None:
    """Every value of the queue can be written down and read again."""
    error = JobError("invalid_input", "No.", (Fault(None, "No.", "value_error"),))
    job = dataclasses.replace(queue.submit(make_request(), owner="ann"), error=error)

    assert decode(Job, encode(job)) == job


def test_sqlite_writes_ahead(tmp_path: Path) -> None:
    """The write-ahead log lets a poll be answered while a job writes its progress."""
    JobQueue(f"sqlite:///{tmp_path}/queue.sqlite", make_files(tmp_path)).close()

    with closing(sqlite3.connect(tmp_path / "queue.sqlite")) as connection:
        mode = connection.execute("PRAGMA journal_mode").fetchone()

    assert mode == ("wal",)


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.sqlite", "postgresql://ann:secret@127.0.0.1:1/queue"])
def test_a_database_out_of_reach_is_a_sentence(tmp_path: Path, url: str) -> None:
    """It names the place and never the password."""
    with pytest.raises(StudioError, match="cannot be used") as refused:
        JobQueue(url, make_files(tmp_path))

    assert "secret" not in refused.value.message


def test_a_database_that_is_away_is_a_sentence() -> None:
    """What its driver says goes into the cause; a person reads that it may be tried again."""
    driver_error = OperationalError("SELECT 1", {}, Exception("connection refused"))

    with pytest.raises(UnreachableError, match="try again shortly") as told, told_plainly():
        raise driver_error

    assert told.value.__cause__ is driver_error
