"""The worker on real DBOS: jobs run one by one, fail plainly, stop, and are taken up again after every kind of end."""

import dataclasses
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch

from pipeline.errors import (
    InvalidInputError,
    MediaError,
    ModelError,
    OutOfMemoryError,
    StudioError,
    Suggestion,
    UnsafeContentError,
)
from pipeline.generate import Progress
from pipeline.spec import ModelFacts
from server import database as db
from server.files import RESULTS, FileStore
from server.heartbeat import Watch, beat, claim_slot, read_beats
from server.job import Fault, Job, JobError, JobStatus
from server.jobs import JobQueue
from server.worker import MAX_RECOVERY_ATTEMPTS, Worker
from server.workshop import PREVIEWS, Workshop, explain_failure
from tests.server.fake_generation import (
    QUICK,
    FakeGeneration,
    make_files,
    make_request,
    make_workshop,
    wait_for_end,
    wait_until,
)
from tests.server.postgres import run_unsteady_postgres

StartWorker = Callable[..., Worker]


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return make_files(tmp_path)


@pytest.fixture
def queue(tmp_path: Path, files: FileStore) -> Iterator[JobQueue]:
    with closing(JobQueue(f"sqlite:///{tmp_path}/queue.sqlite", files)) as queue:
        yield queue


@pytest.fixture
def generation() -> FakeGeneration:
    return FakeGeneration()


@pytest.fixture
def workshop(tmp_path: Path, files: FileStore, generation: FakeGeneration) -> Workshop:
    return make_workshop(tmp_path, files, generation)


@pytest.fixture
def start_worker(
    queue: JobQueue, workshop: Workshop, tmp_path: Path, generation: FakeGeneration
) -> Iterator[StartWorker]:
    """Start a worker, with other parts where given; it is stopped at the end."""
    with ExitStack() as stack:

        def start(**changes: Any) -> Worker:
            parts = {"queue": queue, "workshop": workshop, "slots_dir": tmp_path / "slots", "rhythm": QUICK}
            worker = Worker(**(parts | changes))
            worker.start()
            stack.callback(generation.gate.set)
            stack.callback(worker.stop)
            return worker

        yield start


def read(files: FileStore, key: str) -> str:
    return files.local(key).read_text()


def hold_as(queue: JobQueue, job: Job, executor_id: str, attempts: int = 1) -> None:
    """Let a job look as it does while a worker of another machine has it."""
    flow = queue.database.workflows
    with queue.database.engine.begin() as connection:
        connection.execute(
            sa.update(flow)
            .where(flow.c.workflow_uuid == job.job_id)
            .values(status="PENDING", executor_id=executor_id, recovery_attempts=attempts, owner_xid="another")
        )


def test_a_job_becomes_three_files(
    start_worker: StartWorker, queue: JobQueue, files: FileStore, tmp_path: Path
) -> None:
    """Video, comparison and poster are in the file store under a telling name, and the job's own folder is gone."""
    job = queue.submit(make_request("The Balloon, rising!", seed=7, num_frames=9), owner="ann")
    start_worker()

    done = wait_for_end(queue, job.job_id)

    assert (done.status, done.error, done.position) == (JobStatus.SUCCEEDED, None, None)
    assert [read(files, key) for key in done.result.keys] == ["The Balloon, rising! from step 0"] * 3
    assert done.result.video_key.endswith("/the-balloon-rising-7.mp4")
    assert (done.result.settings["num_frames"], done.result.inference_s, done.result.size_bytes) == (9, 1.5, 96)
    assert done.created_at <= done.started_at <= done.finished_at
    assert not (tmp_path / "jobs" / job.job_id).exists()


def test_progress_and_log_are_seen_while_it_runs(
    start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration, files: FileStore
) -> None:
    """A poll tells the stage, the step, a line for each step so far, and where a picture of it is."""
    generation.gate.clear()
    job = queue.submit(make_request(), owner="ann")
    start_worker()
    wait_until(lambda: (now := queue.get(job.job_id)) and now.progress and now.progress.stage == "encoding")
    generation.gate.set()

    done = wait_for_end(queue, job.job_id)

    lines = ["fetching", "loading", "encoding", "denoising 1/3", "denoising 2/3", "denoising 3/3", "storing"]
    assert [line.message for line in done.logs] == lines
    assert queue.get(job.job_id, with_logs=False).logs == ()
    assert done.progress.first_step == 1
    assert files.content_type(done.progress.preview_key) == "image/webp"


def test_jobs_run_one_at_a_time(start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration) -> None:
    """While one runs, the next waits with nothing ahead of it."""
    generation.gate.clear()
    first, second = (queue.submit(make_request(text), owner="ann") for text in ("first", "second"))
    start_worker()
    wait_until(lambda: queue.get(first.job_id).status is JobStatus.RUNNING)
    waiting = queue.get(second.job_id)

    generation.gate.set()
    wait_for_end(queue, second.job_id)

    assert (waiting.status, waiting.position) == (JobStatus.WAITING, 0)
    assert [spec.prompt for spec in generation.made] == ["first", "second"]


def test_a_running_job_is_cancelled_at_its_next_step(
    start_worker: StartWorker,
    queue: JobQueue,
    generation: FakeGeneration,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It leaves no video and no folder, the next job runs, and nobody finds a traceback in the log."""
    generation.gate.clear()
    stopped, following = (queue.submit(make_request(text), owner="ann") for text in ("stopped", "following"))
    start_worker()
    wait_until(lambda: (now := queue.get(stopped.job_id)) and now.progress and now.progress.stage == "encoding")

    answer = queue.cancel(stopped.job_id)
    generation.gate.set()

    assert answer == "requested"
    assert wait_for_end(queue, following.job_id).status is JobStatus.SUCCEEDED
    assert [spec.prompt for spec in generation.made] == ["following"]
    ended = queue.get(stopped.job_id)
    assert (ended.status, ended.error.kind, ended.result) == (JobStatus.CANCELLED, "cancelled", None)
    assert not (tmp_path / "jobs" / stopped.job_id).exists()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (MemoryError(), "out_of_memory", "ran out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "out_of_memory", "fewer frames"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory", "lower resolution"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "disk of the machine"),
        (ZeroDivisionError("a bug"), "internal", "the log of the program"),
        (ModelError("There is no such model.", "model"), "internal", "There is no such model."),
    ],
)
def test_a_failure_ends_its_job_and_the_next_runs(
    start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration, failure: Exception, kind: str, message: str
) -> None:
    """Whatever happens to one job, it ends with a plain reason and the worker goes on."""
    generation.failure = failure
    failing = queue.submit(make_request(), owner="ann")
    start_worker()
    failed = wait_for_end(queue, failing.job_id)

    generation.failure = None
    following = queue.submit(make_request(), owner="ann")

    assert (failed.status, failed.error.kind) == (JobStatus.FAILED, kind)
    assert message in failed.error.message
    assert wait_for_end(queue, following.job_id).status is JobStatus.SUCCEEDED


def test_what_would_work_comes_with_the_error(
    start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration
) -> None:
    """A run that is out of memory says what to try, in words and for programs; so it stands in the database."""
    way_out = Suggestion({"resolution": "480p"}, "Try 480p")
    generation.failure = OutOfMemoryError("The machine ran out of memory. Try 480p.", way_out)
    job = queue.submit(make_request(), owner="ann")
    start_worker()

    error = wait_for_end(queue, job.job_id).error

    assert error == JobError("out_of_memory", "The machine ran out of memory. Try 480p.", suggestion=way_out)


def test_a_note_of_a_run_stands_in_its_log(
    start_worker: StartWorker, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs read there before the first step what the job is expected to take."""
    make = FakeGeneration.__call__

    def with_note(self: FakeGeneration, spec: Any, pipe: Any, folder: Path, on_progress: Callable[..., None]) -> Any:
        on_progress(Progress("reading", note="Estimate: 90 s"))
        return make(self, spec, pipe, folder, on_progress)

    monkeypatch.setattr(FakeGeneration, "__call__", with_note)
    job = queue.submit(make_request(), owner="ann")
    start_worker()

    lines = [line.message for line in wait_for_end(queue, job.job_id).logs]

    assert lines.index("Estimate: 90 s") < lines.index("denoising 1/3")


def test_invalid_fields_are_named(start_worker: StartWorker, queue: JobQueue) -> None:
    """Each fault has its field, its sentence and the word programs know it by."""
    job = queue.submit(make_request(num_frames=2, fps="many"), owner="ann")
    start_worker()

    error = wait_for_end(queue, job.job_id).error

    assert error.kind == "invalid_input"
    assert error.faults == (
        Fault("num_frames", "The number of frames is 2; it can be from 5 to 121.", "greater_than_equal"),
        Fault("fps", "The frame rate is 'many'; it must be a whole number.", "int_parsing"),
    )


def test_a_file_that_cannot_be_had_is_named(
    start_worker: StartWorker, queue: JobQueue, tmp_path: Path, files: FileStore, generation: FakeGeneration
) -> None:
    """What the resolver raises is told at the input it was for, with the resolver's own word for it."""

    class DownloadError(StudioError):
        fault_type = "file_download_error"

    def resolve(source: str) -> Path:
        if source == "file:start.png":
            raise DownloadError("The picture could not be fetched.")
        return tmp_path

    job = queue.submit(make_request(), owner="ann")
    start_worker(workshop=make_workshop(tmp_path, files, generation, resolve=resolve))

    error = wait_for_end(queue, job.job_id).error

    assert error.faults == (Fault("image", "The picture could not be fetched.", "file_download_error"),)


@pytest.mark.parametrize(
    ("error", "fault_type"),
    [
        (UnsafeContentError("prompt", "No."), "content_policy_violation"),
        (MediaError("image", "No."), "image_load_error"),
        (MediaError("reference_video", "No."), "unsupported_video_format"),
        (InvalidInputError("prompt", "No."), "value_error"),
    ],
)
def test_an_error_about_an_input_has_a_word(error: InvalidInputError, fault_type: str) -> None:
    """The API tells programs by this word what is wrong."""
    assert explain_failure(error).faults == (Fault(error.field, "No.", fault_type),)


def test_a_full_disk_is_known_by_any_name() -> None:
    """SQLite says it in words, and either may be the cause of something else."""
    error = RuntimeError("saving failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")

    kinds = [explain_failure(error).kind, explain_failure(RuntimeError("database or disk is full")).kind]

    assert kinds == ["disk_full", "disk_full"]


def test_a_full_disk_gives_up_its_reserve(
    start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration, tmp_path: Path
) -> None:
    """Some space is kept back so that the database can write down how the job ended; the next job restores it."""
    generation.failure = OSError(errno.ENOSPC, "No space left on device")
    job = queue.submit(make_request(), owner="ann")
    start_worker()
    wait_for_end(queue, job.job_id)
    freed = not (tmp_path / "jobs" / "reserve").exists()

    generation.failure = None
    wait_for_end(queue, queue.submit(make_request(), owner="ann").job_id)

    assert freed
    assert (tmp_path / "jobs" / "reserve").exists()


def test_the_model_is_loaded_once_and_not_before_it_is_needed(
    start_worker: StartWorker, queue: JobQueue, tmp_path: Path, files: FileStore, generation: FakeGeneration
) -> None:
    """A worker that starts is ready at once; two jobs share the model."""
    loads: list[str] = []

    def load() -> Any:
        loads.append("once")
        return None, ModelFacts("fake")

    start_worker(workshop=make_workshop(tmp_path, files, generation, load=load))
    before = list(loads)

    for _ in range(2):
        wait_for_end(queue, queue.submit(make_request(), owner="ann").job_id)

    assert (before, loads) == ([], ["once"])


def test_a_worker_stops_while_its_model_loads(
    start_worker: StartWorker, queue: JobQueue, tmp_path: Path, files: FileStore, generation: FakeGeneration
) -> None:
    """It does not wait for 30 GB; the job is handed back and done at the next start."""
    gate = threading.Event()

    def load() -> Any:
        gate.wait()
        return None, ModelFacts("large")

    job = queue.submit(make_request(), owner="ann")
    worker = start_worker(workshop=make_workshop(tmp_path, files, generation, load=load))
    wait_until(lambda: (now := queue.get(job.job_id)) and now.progress and now.progress.stage == "loading")
    began = time.monotonic()

    worker.stop()

    assert time.monotonic() - began < 5
    assert generation.made == []
    gate.set()
    start_worker()
    assert wait_for_end(queue, job.job_id).status is JobStatus.SUCCEEDED


def test_a_job_that_waits_for_the_model_can_be_cancelled(
    start_worker: StartWorker, queue: JobQueue, tmp_path: Path, files: FileStore, generation: FakeGeneration
) -> None:
    """Whoever waits behind it need not know; the model that was being loaded is theirs."""
    gate, loads = threading.Event(), []

    def load() -> Any:
        loads.append("once")
        gate.wait()
        return None, ModelFacts("large")

    stopped, following = (queue.submit(make_request(text), owner="ann") for text in ("stopped", "following"))
    start_worker(workshop=make_workshop(tmp_path, files, generation, load=load))
    wait_until(lambda: (now := queue.get(stopped.job_id)) and now.progress and now.progress.stage == "loading")

    queue.cancel(stopped.job_id)
    wait_until(lambda: queue.get(following.job_id).status is JobStatus.RUNNING)
    gate.set()

    assert wait_for_end(queue, following.job_id).status is JobStatus.SUCCEEDED
    assert loads == ["once"]


def test_a_model_that_failed_to_load_is_tried_again_by_the_next_job(
    start_worker: StartWorker, queue: JobQueue, tmp_path: Path, files: FileStore, generation: FakeGeneration
) -> None:
    """The hub may have been away for a minute."""
    answers = iter([ModelError("The hub is away.", "model"), (None, ModelFacts("large"))])

    def load() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    first, second = (queue.submit(make_request(text), owner="ann") for text in ("first", "second"))
    start_worker(workshop=make_workshop(tmp_path, files, generation, load=load))

    assert wait_for_end(queue, first.job_id).error.message == "The hub is away."
    assert wait_for_end(queue, second.job_id).status is JobStatus.SUCCEEDED


def test_a_stopped_worker_hands_its_job_back(
    start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration, files: FileStore
) -> None:
    """The job goes on from its last saved step, with the same seed, and to its watchers it never went back."""
    generation.gate.clear()
    job = queue.submit(make_request("kept"), owner="ann")
    worker = start_worker()
    wait_until(lambda: (now := queue.get(job.job_id)) and now.progress and now.progress.stage == "encoding")
    generation.gate.set()
    worker.stop()
    between = queue.get(job.job_id)

    start_worker()
    done = wait_for_end(queue, job.job_id)

    assert (between.status, between.position) == (JobStatus.RUNNING, None)
    assert [file.key for file in files.stored(PREVIEWS)] == [done.progress.preview_key]
    assert read(files, done.result.video_key) == "kept from step 1"
    assert [line.level for line in done.logs].count("WARN") == 1
    assert done.started_at == between.started_at


@pytest.mark.slow
def test_a_worker_ends_while_the_database_is_away(
    start_worker: StartWorker, files: FileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says that it could not sign off, and its place is free."""
    with run_unsteady_postgres() as postgres, closing(JobQueue(postgres.url, files)) as queue:
        worker = start_worker(queue=queue)
        postgres.stop()

        worker.stop()

    assert "cannot be reached; another worker takes over" in caplog.text
    assert claim_slot(tmp_path / "slots").executor_id == worker.executor_id


def test_the_jobs_of_a_silent_worker_go_to_another(
    start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker whose heart stops, on whatever machine, loses its job to one that lives."""
    job = queue.submit(make_request("orphan"), owner="ann")
    hold_as(queue, job, "machine/that/died")
    beat(queue.database, "machine/that/died")

    start_worker()
    done = wait_for_end(queue, job.job_id)

    assert done.status is JobStatus.SUCCEEDED
    assert list(read_beats(queue.database)) != []
    assert "machine/that/died" not in read_beats(queue.database)
    assert "The worker machine/that/died is silent" in caplog.text


def test_a_job_that_kills_its_workers_ends(
    start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration
) -> None:
    """After four runs that each killed the worker it ends with a plain reason, and the next job runs."""
    poison, following = (queue.submit(make_request(text), owner="ann") for text in ("poison", "following"))
    hold_as(queue, poison, "dead", attempts=MAX_RECOVERY_ATTEMPTS + 1)
    beat(queue.database, "dead")

    start_worker()
    ended = wait_for_end(queue, poison.job_id)

    assert (ended.status, ended.error.kind) == (JobStatus.FAILED, "worker_lost")
    assert wait_for_end(queue, following.job_id).status is JobStatus.SUCCEEDED
    assert [spec.prompt for spec in generation.made] == ["following"]


def test_a_job_whose_end_could_not_be_written_runs_again(start_worker: StartWorker, queue: JobQueue) -> None:
    """What a worker holds in the database but does not do is taken up after two heartbeats."""
    worker = start_worker()
    job = queue.submit(make_request(), owner="ann", priority="low")
    hold_as(queue, job, worker.executor_id)

    assert wait_for_end(queue, job.job_id).status is JobStatus.SUCCEEDED


def test_a_start_timeout_does_not_touch_a_job_that_has_begun(
    start_worker: StartWorker, queue: JobQueue, generation: FakeGeneration
) -> None:
    """The time allowed is for the start; one behind it that does not start in time ends."""
    generation.gate.clear()
    begun = queue.submit(make_request(), owner="ann", start_timeout_s=5)
    late = queue.submit(make_request(), owner="ann", start_timeout_s=0.2, webhook_url="http://127.0.0.1/")
    told: list[Job] = []
    start_worker(on_finished=told.append)

    wait_until(lambda: told)
    generation.gate.set()

    assert (told[0].job_id, told[0].error.kind) == (late.job_id, "start_timeout")
    assert wait_for_end(queue, begun.job_id).status is JobStatus.SUCCEEDED


def test_a_front_ends_what_nobody_begins_and_tells_of_it(
    start_worker: StartWorker, queue: JobQueue, tmp_path: Path
) -> None:
    """Without any worker; it leaves alone what may still wait."""
    told: list[Job] = []
    start_worker(workshop=None, slots_dir=tmp_path / "fronts", on_finished=told.append)
    waiting = queue.submit(make_request(), owner="ann", start_timeout_s=600)
    late = queue.submit(make_request(), owner="ann", start_timeout_s=0.2, webhook_url="http://127.0.0.1/")

    wait_until(lambda: told)

    assert [(job.job_id, job.error.kind) for job in told] == [(late.job_id, "start_timeout")]
    assert queue.get(waiting.job_id).status is JobStatus.WAITING


def test_an_end_is_reported_until_somebody_takes_it(
    start_worker: StartWorker, queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """A report that fails is tried again later; each job is told of in its final state, and only those with a URL."""
    tries: list[Job] = []

    def take_the_third(job: Job) -> None:
        tries.append(job)
        if len(tries) < 3:
            raise OSError("nobody there")

    start_worker(on_finished=take_the_third)
    quiet = queue.submit(make_request(), owner="ann")
    job = queue.submit(make_request(), owner="ann", webhook_url="http://127.0.0.1/hook")

    wait_until(lambda: len(tries) == 3)

    assert wait_for_end(queue, quiet.job_id).status is JobStatus.SUCCEEDED
    assert tries == [queue.get(job.job_id)] * 3
    assert "Nobody took the end" in caplog.text


def test_what_ended_before_the_worker_came_is_reported(start_worker: StartWorker, queue: JobQueue) -> None:
    """A job stopped while no worker was there is told of by the first that comes."""
    job = queue.submit(make_request(), owner="ann", webhook_url="http://127.0.0.1/hook")
    queue.cancel(job.job_id)
    told: list[Job] = []

    start_worker(on_finished=told.append)

    wait_until(lambda: told)
    assert [(one.job_id, one.status) for one in told] == [(job.job_id, JobStatus.CANCELLED)]


def test_a_deleted_job_takes_its_files_along(start_worker: StartWorker, queue: JobQueue, files: FileStore) -> None:
    """Row, result and preview go together."""
    job = queue.submit(make_request(), owner="ann")
    start_worker()
    done = wait_for_end(queue, job.job_id)

    queue.delete(job.job_id, "ann")

    assert queue.get(job.job_id) is None
    assert len(done.keys) == 4
    assert not any(files.exists(key) for key in done.keys)


@pytest.mark.parametrize("has_workshop", [True, False])
def test_copies_of_files_elsewhere_go(start_worker: StartWorker, tmp_path: Path, *, has_workshop: bool) -> None:
    """A worker and a front each clear their own machine, whoever deletes a file; what was just used stays."""
    files = FileStore(f"memory://{tmp_path.name}", tmp_path / "cache")
    (clip := tmp_path / "a.mp4").write_text("a clip")
    old, new = (files.local(files.add(clip, folder=RESULTS)) for _ in range(2))
    os.utime(old.parent, (0, 0))
    parts = {} if has_workshop else {"workshop": None, "slots_dir": tmp_path / "fronts"}

    with closing(JobQueue(f"sqlite:///{tmp_path}/queue.sqlite", files)) as queue:
        worker = start_worker(queue=queue, rhythm=dataclasses.replace(QUICK, retain_s=0.1), **parts)
        wait_until(lambda: not old.exists())
        worker.stop()

    assert new.exists()


def test_two_workers_of_one_folder_have_two_names(tmp_path: Path) -> None:
    """A name is free again when its worker has ended, so that it comes back to its jobs."""
    first, second = claim_slot(tmp_path), claim_slot(tmp_path)
    first.lock.release()

    third = claim_slot(tmp_path)
    other_gpu = claim_slot(tmp_path, gpu="GPU-1,GPU-2")

    assert first.executor_id == third.executor_id != second.executor_id
    assert other_gpu.executor_id.endswith("/GPU-1+GPU-2/0")
    for slot in (second, third, other_gpu):
        slot.lock.release()


def test_a_worker_is_dead_when_its_count_stands_still() -> None:
    """What counts is how long, by the watcher's own clock, the count has been the same."""
    watch = Watch(dead_after_s=60)

    found = [
        watch.find_dead(beats, now)
        for beats, now in [
            ({"a": 1, "b": 1}, 100),
            ({"a": 1, "b": 1}, 130),
            ({"a": 2, "b": 1}, 160),
            ({"a": 2, "b": 1}, 161),
            ({"a": 2, "b": 2}, 191),
            ({"a": 2, "b": 2}, 221),
        ]
    ]

    assert found == [[], [], [], ["b"], [], ["a"]]


def test_nobody_dies_of_a_database_that_was_away() -> None:
    """Nobody could count meanwhile; whoever is still silent afterwards is dead."""
    watch = Watch(dead_after_s=60)

    found = [watch.find_dead({"a": 1}, now) for now in (100, 110, 200, 230, 260, 261)]

    assert found == [[], [], [], [], [], ["a"]]


def test_nothing_of_dbos_is_logged(
    start_worker: StartWorker, queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that starts, works and stops says nothing."""
    with caplog.at_level(logging.INFO):
        worker = start_worker()
        wait_for_end(queue, queue.submit(make_request(), owner="ann").job_id)
        worker.stop()

    assert [record for record in caplog.records if record.name.startswith("dbos")] == []


def test_dbos_calls_its_own_queue_statuses_what_we_think(queue: JobQueue) -> None:
    """The words we read in its table are its words; a version that changes them shows here."""
    from dbos._sys_db import WorkflowStatusString

    known = {"SUCCESS", "ENQUEUED", "DELAYED", "PENDING", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "ERROR"}

    assert {status.value for status in WorkflowStatusString} == known
    assert set(db.UNFINISHED) < known
