"""A queue on real DBOS with a generation that takes no time: what the tests of queue, worker and crash share."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.generate import GenerationResult, Progress
from pipeline.spec import GenerationSpec, ModelFacts
from server.files import FileStore
from server.job import Job, JobRequest, JobStatus
from server.jobs import JobQueue
from server.worker import Rhythm
from server.workshop import Workshop

QUICK = Rhythm(poll_s=0.05, tend_s=0.1, heartbeat_s=0.2, dead_after_s=1.0, retain_s=600.0, report_delays_s=(0.1, 0.1))


class FakePreview:
    """What a LatentPreview does, without latents."""

    def frames(self) -> list[Image.Image]:
        """Two small pictures."""
        return [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]


class FakeGeneration:
    """Writes its prompt into three files, step by step. It waits before a step while its gate is closed."""

    def __init__(self, steps: int = 3) -> None:
        self.steps = steps
        self.gate = threading.Event()
        self.gate.set()
        self.made: list[GenerationSpec] = []
        self.failure: Exception | None = None

    def __call__(
        self, spec: GenerationSpec, pipe: Any, folder: Path, on_progress: Callable[[Progress], None]
    ) -> GenerationResult:
        """Do what pipeline.generate.generate does, as far as a queue can tell."""
        on_progress(Progress("encoding"))
        state = folder / "state"
        done = int(state.read_text()) if state.exists() else 0
        for step in range(done, self.steps):
            assert self.gate.wait(20)
            state.write_text(str(step + 1))
            on_progress(Progress("denoising", step + 1, self.steps, FakePreview()))
        if self.failure is not None:
            raise self.failure
        for name in ("output.mp4", "comparison.mp4", "poster.jpg"):
            (folder / name).write_text(f"{spec.prompt} from step {done}")
        self.made.append(spec)
        return GenerationResult(
            folder / "output.mp4", folder / "comparison.mp4", folder / "poster.jpg", spec.settings(), 1.5
        )


def make_files(folder: Path) -> FileStore:
    return FileStore(folder / "files", folder / "cache")


def make_workshop(
    folder: Path, files: FileStore, generation: Callable[..., GenerationResult], **changes: Any
) -> Workshop:
    parts: dict[str, Any] = {
        "load": lambda: (None, ModelFacts("fake", num_inference_steps=3)),
        "resolve": lambda source: Path("/nowhere") / source.removeprefix("file:"),
        "store": files,
        "folder": folder / "jobs",
        "generate": generation,
        "check_media": lambda request: None,
    }
    return Workshop(**(parts | changes))


def make_request(prompt: str = "The balloon rises.", **fields: Any) -> JobRequest:
    return JobRequest({"prompt": prompt, "video_description": "A clip.", **fields}, "file:clip.mp4", "file:start.png")


def wait_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Give the condition's first true value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"still not so after {timeout_s} s")


def wait_for_end(queue: JobQueue, job_id: str, timeout_s: float = 20.0) -> Job:
    def ended() -> Job | None:
        job = queue.get(job_id)
        return job if job and job.status.is_final else None

    return wait_until(ended, timeout_s)


def wait_for_step(queue: JobQueue, job_id: str, step: int) -> Job:
    def there() -> Job | None:
        job = queue.get(job_id)
        return job if job and job.status is JobStatus.RUNNING and job.progress and job.progress.step >= step else None

    return wait_until(there)
