"""Nothing is lost: real processes are killed with SIGKILL at random moments, and every job still ends once."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from server.files import FileStore
from server.job import JobStatus
from server.jobs import JobQueue
from tests.server.crash_front import LEAST
from tests.server.fake_generation import wait_until
from tests.server.postgres import run_postgres

ROOT = Path(__file__).parents[2]
GUARD = ROOT / "tests" / "server" / "guard"
DEADLINE_S = 120.0

pytestmark = pytest.mark.slow


class Fleet:
    """Fronts and workers as processes around one database; any of them can be killed and started again."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.database_url = database_url
        self.folder = folder
        self.files = folder / "files"
        self._enough = folder / "enough"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start_front(self) -> None:
        """Begin to submit, so that there is always work."""
        self._start("front", "tests.server.crash_front", self.database_url, self.files, self._enough)

    def start_worker(self, name: str) -> None:
        """Begin to work, in a folder of the worker's own."""
        (self.folder / name).mkdir(exist_ok=True)
        self._start(name, "tests.server.crash_worker", self.database_url, self.files, self.folder / name)

    def kill(self, name: str) -> None:
        """End a process without giving it a chance to do anything about it."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def end_front(self) -> int:
        """Let the front end by itself, and give its exit code."""
        self._enough.touch()
        return self._running["front"].wait(DEADLINE_S)

    @property
    def submitted(self) -> int:
        """How many jobs the front says it submitted, once it has ended."""
        return int(self._enough.read_text())

    def stop(self) -> list[int]:
        """Ask all that still run to end, and give their exit codes."""
        for process in self._running.values():
            process.terminate()
        return [process.wait(DEADLINE_S) for process in self._running.values()]

    def steps_done(self, name: str) -> int:
        """Count what a worker did over all its lives."""
        steps = self.folder / name / "steps"
        return len(steps.read_text().splitlines()) if steps.exists() else 0

    def wait_for_work(self, name: str) -> None:
        """Wait until a worker does a step it had not done before."""
        before = self.steps_done(name)
        wait_until(lambda: self.steps_done(name) > before, DEADLINE_S)

    def _start(self, name: str, module: str, *arguments: object) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        # With the guard on its path, a program that would send a packet beyond this machine fails.
        environment = os.environ | {"PYTHONPATH": str(GUARD)}
        self._running[name] = subprocess.Popen(command, cwd=ROOT, env=environment)


RunFleet = Callable[[str], Fleet]


@pytest.fixture
def run_fleet(tmp_path: Path) -> Iterator[RunFleet]:
    """Make a fleet around a database; nothing of it runs on after the test."""
    fleets: list[Fleet] = []

    def run(database_url: str) -> Fleet:
        fleets.append(Fleet(database_url, tmp_path))
        return fleets[-1]

    yield run
    for fleet in fleets:
        fleet.stop()


@pytest.fixture
def chance() -> random.Random:
    """Random moments, other ones each time; a failure shows the seed."""
    seed = random.SystemRandom().getrandbits(32)
    sys.stdout.write(f"seed {seed}\n")
    return random.Random(seed)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    with run_postgres() as url:
        yield url


def count_results(fleet: Fleet) -> None:
    """Wait for all jobs to end, and hold the results against what was asked for."""
    store = FileStore(fleet.files, fleet.folder / "cache")
    with closing(JobQueue(fleet.database_url, store)) as queue:
        wait_until(lambda: all(job.status.is_final for job in queue.all_jobs()), DEADLINE_S)
        jobs = queue.all_jobs()

    assert len(jobs) == fleet.submitted >= LEAST
    assert {(job.status, job.error) for job in jobs} == {(JobStatus.SUCCEEDED, None)}
    made = [store.local(job.result.video_key).read_text() for job in jobs]
    assert sorted(made) == sorted(f"job-{number}" for number in range(len(jobs)))
    assert len({job.result.video_key for job in jobs}) == len(jobs)


def steps_repeated(fleet: Fleet, *workers: str) -> int:
    """Count the steps that were done more than once."""
    steps = [line for name in workers for line in (fleet.folder / name / "steps").read_text().splitlines()]
    return len(steps) - len(set(steps))


def test_no_job_is_lost_on_sqlite(run_fleet: RunFleet, tmp_path: Path, chance: random.Random) -> None:
    """One worker killed four times and the front once: all results, each once, going on from saved steps."""
    fleet = run_fleet(f"sqlite:///{tmp_path}/queue.sqlite")
    fleet.start_front()
    fleet.start_worker("worker")
    fleet.wait_for_work("worker")
    fleet.kill("front")
    fleet.start_front()

    for _ in range(4):
        time.sleep(chance.uniform(0.1, 1.2))
        fleet.kill("worker")
        fleet.start_worker("worker")
        fleet.wait_for_work("worker")

    assert fleet.end_front() == 0
    count_results(fleet)
    assert fleet.stop() == [0, 0]
    assert steps_repeated(fleet, "worker") <= 4  # a kill costs at most the step that was not yet saved


def test_no_job_is_lost_on_postgres(postgres_url: str, run_fleet: RunFleet, chance: random.Random) -> None:
    """Two workers and a front of their own, killed in turn; one never comes back, and the other takes its job."""
    fleet = run_fleet(postgres_url)
    fleet.start_front()
    for name in ("first", "second"):
        fleet.start_worker(name)
    for name in ("first", "second"):
        fleet.wait_for_work(name)
    fleet.kill("front")
    fleet.start_front()

    for name in ("first", "second"):
        time.sleep(chance.uniform(0.1, 0.6))
        fleet.kill(name)
        fleet.start_worker(name)
        fleet.wait_for_work(name)
    time.sleep(chance.uniform(0.1, 0.6))
    fleet.kill("second")

    assert fleet.end_front() == 0
    count_results(fleet)
    assert fleet.stop() == [0, 0]
