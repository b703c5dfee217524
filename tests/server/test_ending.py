"""Ctrl-C ends the programs soon, whatever they are doing; what they were doing goes on at the next start."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from pipeline import media
from server.assembly import open_files, open_queue
from server.job import JobRequest, JobStatus
from server.jobs import JobQueue
from server.settings import Settings
from tests.server.fake_generation import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOON_S = 15.0  # on a busy machine; the model would take ten minutes
# As the programs start themselves, with a model that takes its time.
PROGRAMS = {"app": "import app; leave(app.main(sys.argv[1:]))", "worker": "leave(assembly.run_worker(sys.argv[1:]))"}
SLOWLY = (
    "import sys, time; from server import assembly; from server.background import leave; "
    "assembly.make_load = lambda *given: lambda *asked: time.sleep(600); "
)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    settings = Settings(data_dir=tmp_path)
    with closing(open_queue(settings, open_files(settings))) as queue:
        yield queue


def submit(queue: JobQueue, folder: Path) -> str:
    clip, image = folder / "clip.mp4", folder / "start.png"
    media.write_video([Image.new("RGB", (64, 48), "navy")] * 8, clip, fps=8, height=48, width=64)
    Image.new("RGB", (64, 48), "orange").save(image)
    fields = {"prompt": "It glows.", "video_description": "A wall."}
    sources = [f"file:{queue.files.add(file, folder='uploads')}" for file in (clip, image)]
    return queue.submit(JobRequest(fields, *sources), owner="ann").job_id


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_while_a_job_waits_for_its_model(
    queue: JobQueue, tmp_path: Path, program: str, number: signal.Signals
) -> None:
    """Exit code 0 within seconds, and the job waits for whoever comes next."""
    job_id = submit(queue, tmp_path)
    options = ["--data-dir", str(tmp_path), *(["--port", "0"] if program == "app" else [])]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'server' / 'guard'}"}
    running = subprocess.Popen([sys.executable, "-c", SLOWLY + PROGRAMS[program], *options], env=environment)
    wait_until(lambda: (job := queue.get(job_id)) and job.progress and job.progress.stage == "loading", timeout_s=60)
    time.sleep(2)  # until the page, if there is one, is open

    running.send_signal(number)

    try:
        assert running.wait(SOON_S) == 0
    finally:
        running.kill()
        running.wait()
    with queue.database.read() as connection:
        held = connection.exec_driver_sql("select status, recovery_attempts from workflow_status").one()
    assert queue.get(job_id).status is JobStatus.RUNNING  # to whoever watches it has begun
    assert tuple(held) == ("ENQUEUED", 1)
