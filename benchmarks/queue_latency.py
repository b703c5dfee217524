"""How long the queue takes to answer, on both databases: `python -m benchmarks.queue_latency` prints a Markdown table.

Front and worker share this process, as in the app; the generation multiplies matrices with torch meanwhile, which is
what an app without a GPU does. PostgreSQL is started for the purpose, with fsync, and thrown away.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.generate import GenerationResult, Progress
from pipeline.spec import GenerationSpec
from server.job import Job, JobStatus, Limits
from server.jobs import JobQueue
from server.worker import Worker
from tests.server.fake_generation import make_files, make_request, make_workshop, wait_for_end, wait_until
from tests.server.postgres import run_postgres

OWNER = "benchmark"
STEP_S = 0.1
ROOMY = Limits(active_per_owner=10_000, waiting=10_000)

Times = dict[str, list[float]]


class TorchGeneration:
    """Keeps the processor busy in steps, and notes when it began and when it was stopped."""

    def __init__(self) -> None:
        self.steps = 1
        self.began_at = 0.0
        self.ended_at = 0.0

    def __call__(
        self, spec: GenerationSpec, pipe: Any, folder: Path, on_progress: Callable[[Progress], None]
    ) -> GenerationResult:
        """Multiply for as many steps as asked, and leave three files."""
        self.began_at = time.perf_counter()
        try:
            for step in range(self.steps):
                _multiply(STEP_S)
                on_progress(Progress("denoising", step + 1, self.steps))
        finally:
            self.ended_at = time.perf_counter()
        paths = [folder / name for name in ("output.mp4", "comparison.mp4", "poster.jpg")]
        for path in paths:
            path.write_bytes(b"made")
        return GenerationResult(*paths, spec.settings(), 1.0)


def _multiply(duration_s: float) -> None:
    matrix = torch.rand(512, 512)
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        matrix = torch.tanh(matrix @ matrix)


def measure(database_url: str, rounds: int) -> Times:
    """Give the seconds each thing took, each time."""
    times: Times = {}
    with _studio(database_url) as (queue, worker, generation):
        times["submit, nothing running"] = [_time_submit(queue) for _ in range(rounds)]
        times["cancel, waiting -> ended"] = [_time_cancel(queue, job) for job in _waiting(queue)]
        worker.start()
        times["submit -> start, idle worker (polls every 0.25 s)"] = [
            _time_start(queue, generation) for _ in range(rounds // 10)
        ]
        times["cancel, running -> stopped (steps of 0.1 s)"] = [
            _time_stop(queue, generation) for _ in range(rounds // 10)
        ]
        generation.steps = 10_000
        running = _start_one(queue)
        times["poll, while a generation runs"] = [_time_poll(queue, running) for _ in range(rounds)]
        times["submit, while a generation runs"] = [_time_submit(queue) for _ in range(rounds)]
        last = _waiting(queue)[0].job_id
        times["poll of the last of all these"] = [_time_poll(queue, last) for _ in range(rounds)]
        for job in _waiting(queue):
            queue.cancel(job.job_id)
        queue.cancel(running)
        times["idle, share of one processor"] = [_measure_idle(10.0)]
    return times


@contextmanager
def _studio(database_url: str) -> Iterator[tuple[JobQueue, Worker, TorchGeneration]]:
    with tempfile.TemporaryDirectory() as name:
        folder, generation = Path(name), TorchGeneration()
        files = make_files(folder)
        queue = JobQueue(database_url.replace("FOLDER", name), files, limits=ROOMY)
        worker = Worker(queue, make_workshop(folder, files, generation), folder / "slots")
        try:
            yield queue, worker, generation
        finally:
            worker.stop()
            queue.close()


def _time(do: Callable[[], object]) -> float:
    before = time.perf_counter()
    do()
    return time.perf_counter() - before


def _time_submit(queue: JobQueue) -> float:
    return _time(lambda: queue.submit(make_request(), owner=OWNER))


def _time_cancel(queue: JobQueue, job: Job) -> float:
    return _time(lambda: queue.cancel(job.job_id))


def _time_poll(queue: JobQueue, job_id: str) -> float:
    time.sleep(0.02)
    return _time(lambda: queue.get(job_id))


def _waiting(queue: JobQueue) -> list[Job]:
    return [job for job in queue.jobs_of(OWNER, limit=1000) if job.status is JobStatus.WAITING]


def _time_start(queue: JobQueue, generation: TorchGeneration) -> float:
    generation.steps = 1
    before = time.perf_counter()
    wait_for_end(queue, queue.submit(make_request(), owner=OWNER).job_id)
    time.sleep(0.05)
    return generation.began_at - before


def _start_one(queue: JobQueue) -> str:
    job_id = queue.submit(make_request(), owner=OWNER).job_id
    wait_until(lambda: (now := queue.get(job_id)) and now.progress and now.progress.stage == "denoising")
    return job_id


def _time_stop(queue: JobQueue, generation: TorchGeneration) -> float:
    generation.steps = 10_000
    job_id = _start_one(queue)
    before = time.perf_counter()
    queue.cancel(job_id)
    wait_until(lambda: generation.ended_at > before)
    return generation.ended_at - before


def _measure_idle(duration_s: float) -> float:
    time.sleep(1.0)
    before = time.process_time()
    time.sleep(duration_s)
    return (time.process_time() - before) / duration_s


def to_table(columns: dict[str, Times]) -> str:
    """Give the times as a Markdown table: p50 / p99 in milliseconds; the idle share in per cent."""
    lines = [f"| p50 / p99, ms | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for what in next(iter(columns.values())):
        cells = (_to_cell(what, times[what]) for times in columns.values())
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _to_cell(what: str, seconds: list[float]) -> str:
    if what.startswith("idle"):
        return f"{seconds[0]:.1%}"
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return f"{statistics.median(ordered) * 1000:.1f} / {last * 1000:.1f}"


def main() -> None:
    """Measure both databases and print the table."""
    parser = argparse.ArgumentParser(description="Measure the queue's latencies on SQLite and PostgreSQL.")
    parser.add_argument("--rounds", type=int, default=200, help="how often to measure each (default: 200)")
    rounds = parser.parse_args().rounds
    sqlite = measure("sqlite:///FOLDER/queue.sqlite", rounds)
    with run_postgres(safe=True) as url:
        postgres = measure(url, rounds)
    sys.stdout.write(to_table({"SQLite": sqlite, "PostgreSQL": postgres}) + "\n")


if __name__ == "__main__":
    main()
