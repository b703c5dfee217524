"""A worker to be killed: `python -m tests.server.crash_worker DATABASE_URL FILES FOLDER`, until SIGTERM.

It is the product's worker with a generation of 0.25 s, which keeps its state in the job's folder as the real one does,
and writes each step it does into FOLDER/steps.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.spec import GenerationSpec, ModelFacts
from server.files import FileStore
from server.jobs import JobQueue
from server.worker import Rhythm, Worker, work_until_told
from server.workshop import Workshop

STEPS, STEP_S = 5, 0.05
RHYTHM = Rhythm(poll_s=0.05, tend_s=0.2, heartbeat_s=0.5, dead_after_s=3.0)


def main(database_url: str, files: Path, folder: Path) -> None:
    logging.basicConfig(level=logging.WARNING, filename=folder / "log")
    store = FileStore(files, folder / "cache")
    steps = (folder / "steps").open("a", buffering=1)

    def generate(spec: GenerationSpec, pipe: Any, job: Path, report: Callable[[Any], None]) -> Any:
        state = job / "state"
        for step in range(int(state.read_text()) if state.exists() else 0, STEPS):
            time.sleep(STEP_S)
            state.with_suffix(".new").write_text(str(step + 1))
            state.with_suffix(".new").replace(state)
            steps.write(f"{spec.prompt} {step + 1}\n")
            report(SimpleNamespace(stage="denoising", step=step + 1, total=STEPS, preview=None, note=""))
        names = {"video": "output.mp4", "comparison": "comparison.mp4", "poster": "poster.jpg"}
        for name in names.values():
            (job / name).write_text(spec.prompt)
        return SimpleNamespace(
            **{part: job / name for part, name in names.items()}, settings=spec.settings(), seconds=STEPS * STEP_S
        )

    workshop = Workshop(
        load=lambda: (None, ModelFacts("fake")),
        resolve=lambda source: Path(source),
        store=store,
        folder=folder / "jobs",
        generate=generate,
        check_media=lambda request: None,
    )
    work_until_told(Worker(JobQueue(database_url, store), workshop, folder / "slots", rhythm=RHYTHM))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
