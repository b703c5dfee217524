"""Nothing is lost: the real app is killed with SIGKILL at random moments while a program submits to it over HTTP.

The model is the tiny random one, through the real pipeline; everything else is what people run.
"""

import base64
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from pipeline import media
from tests.server.postgres import run_postgres

ROOT = Path(__file__).parents[2]
GUARD = ROOT / "tests" / "server" / "guard"
REQUESTS = "/fal/queue/fal-ai/video-as-prompt"
COUNT = 20
DEADLINE_S = 300.0

pytestmark = pytest.mark.slow


class Programs:
    """The app and workers as processes, each with a data folder of its own, to be killed and started again."""

    def __init__(self, folder: Path, *options: object) -> None:
        self._folder = folder
        self._options = [str(option) for option in (*options, "--model", make_model(folder))]
        self._port = free_port()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.web = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", trust_env=False, timeout=30)

    def start_app(self, *options: str) -> None:
        """Start the app, and wait until it answers."""
        self._start("app", "app.py", "--port", str(self._port), *options)
        wait_until(lambda: self._answers("/docs"))

    def start_worker(self, name: str) -> None:
        """Start a worker that has no page."""
        self._start(name, "-m", "server.worker")

    def kill(self, name: str) -> None:
        """End a program without giving it a chance to do anything about it."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def submit(self, number: int, body: dict[str, Any]) -> str:
        """Submit a request, again and again until it is answered, and give its id."""
        ids: list[str] = []

        def is_taken() -> bool:
            try:
                answer = self.web.post(REQUESTS, json=body, headers={"Idempotency-Key": f"request {number}"})
            except httpx.TransportError:
                return False
            ids.append(answer.raise_for_status().json()["request_id"])
            return True

        wait_until(is_taken)
        return ids[0]

    def status(self, request_id: str) -> str:
        """Give a request's state in the words of the API, or "away" while nobody answers."""
        try:
            return str(self.web.get(f"{REQUESTS}/requests/{request_id}/status").json()["status"])
        except httpx.TransportError:
            return "away"

    def end(self) -> None:
        """End all that still runs."""
        self.web.close()
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait(60)

    def _start(self, name: str, *command: str) -> None:
        # With the guard on its path, a program that would send a packet beyond this machine fails.
        environment = os.environ | {"PYTHONPATH": str(GUARD), "OMP_NUM_THREADS": "1"}
        program = [sys.executable, *command, "--data-dir", str(self._folder / name), *self._options]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(program, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def _answers(self, path: str) -> bool:
        try:
            return self.web.get(path).is_success
        except httpx.TransportError:
            return False


RunPrograms = Callable[..., Programs]


@pytest.fixture
def run_programs(tmp_path: Path) -> Iterator[RunPrograms]:
    """Make programs that share options; none of them runs on after the test."""
    made: list[Programs] = []

    def run(*options: object) -> Programs:
        made.append(Programs(tmp_path, *options))
        return made[-1]

    yield run
    for programs in made:
        programs.end()


@pytest.fixture
def body(tmp_path: Path) -> dict[str, Any]:
    """A request with its files inside."""
    clip, image = tmp_path / "clip.mp4", tmp_path / "start.png"
    frames = [Image.new("RGB", (64, 48), (20 * index, 90, 160)) for index in range(8)]
    media.write_video(frames, clip, fps=8, height=48, width=64)
    Image.new("RGB", (64, 48), "orange").save(image)
    return {
        "prompt": "The square glows.",
        "video_description": "A wall changes its colour.",
        "video_url": as_data_uri(clip, "video/mp4"),
        "image_url": as_data_uri(image, "image/png"),
        "num_frames": 5,
        "aspect_ratio": "16:9",
    }


@pytest.fixture
def chance() -> random.Random:
    """Random moments, other ones each time; a failure shows the seed."""
    seed = random.SystemRandom().getrandbits(32)
    sys.stdout.write(f"seed {seed}\n")
    return random.Random(seed)


def make_model(folder: Path) -> Path:
    """Copy the tiny checkpoint, and let it render small and in few steps."""
    copy = folder / "tiny"
    shutil.copytree(ROOT / "tests" / "golden" / "tiny_vap", copy)
    index = copy / "model_index.json"
    options = {"render_size": [32, 48], "num_inference_steps": 12}
    index.write_text(json.dumps(json.loads(index.read_text()) | options))
    return copy


def as_data_uri(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_so: Callable[[], bool], pause_s: float = 0.1) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(pause_s)


def wait_for_results(programs: Programs, ids: list[str], *, at_least: int) -> None:
    """Ask twice a second, and not for what has ended: the answers take their time from the videos."""
    ended: set[str] = set()

    def are_there() -> bool:
        ended.update(some for some in ids if some not in ended and programs.status(some) == "COMPLETED")
        return len(ended) >= at_least

    wait_until(are_there, pause_s=0.5)


def assert_each_has_a_result(programs: Programs, ids: list[str]) -> None:
    """Wait for all to end; each has a video of its own that can be downloaded, with a seed of its own in it."""
    wait_for_results(programs, ids, at_least=COUNT)
    answers = [programs.web.get(f"{REQUESTS}/requests/{request_id}") for request_id in ids]

    assert [answer.status_code for answer in answers] == [200] * COUNT
    urls = [answer.json()["video"]["url"] for answer in answers]
    assert len(set(ids)) == len(set(urls)) == COUNT
    assert all(programs.web.get(url).content[4:8] == b"ftyp" for url in urls)


def test_no_request_is_lost_by_the_app(run_programs: RunPrograms, body: dict[str, Any], chance: random.Random) -> None:
    """The app, worker inside, is killed four times, the first while requests come in: 20 results, each once."""
    programs = run_programs()
    programs.start_app()
    ids = [programs.submit(number, body) for number in range(COUNT // 2)]
    programs.kill("app")
    programs.start_app()
    ids += [programs.submit(number, body) for number in range(COUNT // 2, COUNT)]

    for kills in range(1, 4):
        wait_for_results(programs, ids, at_least=3 * kills)
        time.sleep(chance.uniform(0.0, 1.0))
        programs.kill("app")
        programs.start_app()

    assert_each_has_a_result(programs, ids)


def test_no_request_is_lost_by_two_workers_and_a_front(
    run_programs: RunPrograms, body: dict[str, Any], chance: random.Random, tmp_path: Path
) -> None:
    """On PostgreSQL, front and workers are killed in turn while they work: 20 results, each once."""
    with run_postgres() as url:
        programs = run_programs("--database-url", url, "--files-url", tmp_path / "files")
        programs.start_app("--no-worker")
        for name in ("first", "second"):
            programs.start_worker(name)
        ids = [programs.submit(number, body) for number in range(COUNT)]

        for finished, name in ((2, "first"), (4, "app"), (6, "second")):
            wait_for_results(programs, ids, at_least=finished)
            time.sleep(chance.uniform(0.0, 1.0))
            programs.kill(name)
            if name == "app":
                programs.start_app("--no-worker")
            else:
                programs.start_worker(name)

        assert_each_has_a_result(programs, ids)
        programs.end()
