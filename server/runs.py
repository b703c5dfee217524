"""A generation under way: in a thread of its own, followed from another, stopped from a third.

The page's only way to a video. The model is loaded meanwhile in the background, so that the page opens at once.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError, StoppedError, StudioError
from pipeline.spec import GenerationRequest, ModelFacts, settle

if TYPE_CHECKING:
    from pipeline.generate import GenerationResult, Progress
    from pipeline.video_as_prompt import VideoAsPromptPipeline

log = logging.getLogger(__name__)

POLL_S = 0.2

Model = tuple["VideoAsPromptPipeline", ModelFacts]


@dataclass(frozen=True)
class News:
    """Where a run is: a stage of `pipeline.generate`, or "loading" while the model is not there yet."""

    stage: str
    step: int = 0
    total: int = 1
    seconds_left: float | None = None  # of the denoising; None: not known yet


Report = Callable[[News], None]  # raises StoppedError once the run was stopped
Work = Callable[[Report], "GenerationResult"]


class Run:
    """One generation. Made first, then followed by one caller; any thread may stop it, before or after it began."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._stopped = threading.Event()
        self._begun = threading.Event()
        self._news: SimpleQueue[News | None] = SimpleQueue()
        self._result: Future[GenerationResult] = Future()

    @property
    def is_stopped(self) -> bool:
        """Whether someone stopped it."""
        return self._stopped.is_set()

    @property
    def has_begun(self) -> bool:
        """Whether someone follows it."""
        return self._begun.is_set()

    def stop(self) -> None:
        """End the run at its next step."""
        self._stopped.set()

    def follow(self) -> Iterator[News]:
        """Start the run and give its news until it ends. Leaving early stops it."""
        self._begun.set()
        threading.Thread(target=self._do, daemon=True).start()
        try:
            yield from iter(self._news.get, None)
        finally:
            self.stop()

    def result(self) -> "GenerationResult":
        """Give what the run left. Raises StudioError with a sentence when it failed, StoppedError when stopped."""
        return self._result.result()

    def _report(self, news: News) -> None:
        if self._stopped.is_set():
            raise StoppedError
        self._news.put(news)

    def _do(self) -> None:
        try:
            self._result.set_result(self._work(self._report))
        except StudioError as error:
            self._result.set_exception(error)
        except Exception:
            log.exception("A generation failed.")
            message = "Something went wrong while making the video; the log of the program says what. Please try again."
            self._result.set_exception(StudioError(message))
        finally:
            self._news.put(None)


class Studio:
    """One model, and the folder its results go to."""

    def __init__(self, model: Future[Model], results_dir: Path) -> None:
        self.model = model
        self._results_dir = results_dir

    def prepare(self, request: GenerationRequest) -> Run:
        """Make a run of a request; nothing happens before it is followed."""
        return Run(lambda report: self._make_video(request, report))

    def _make_video(self, request: GenerationRequest, report: Report) -> "GenerationResult":
        pipe, facts = self._wait_for_model(report)
        # Imported late: it brings torch and diffusers, which the model's thread has loaded by now.
        from pipeline.generate import generate

        folder = self._results_dir / secrets.token_hex(8)
        folder.mkdir(parents=True)
        spec = settle(request, facts, Random())
        clock = StepClock(time.monotonic)
        return generate(spec, pipe, folder, lambda progress: report(clock.read(progress)))

    def _wait_for_model(self, report: Report) -> Model:
        while not self.model.done():
            report(News("loading"))
            try:
                return self.model.result(timeout=POLL_S)
            except NotYetError:
                continue
        report(News("loading"))
        return self.model.result()


class StepClock:
    """Turns a run's progress into news with an estimate of the time left, from the pace of the steps so far."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def read(self, progress: "Progress") -> News:
        """Give the news of this moment."""
        if progress.stage != "denoising":
            return News(progress.stage, progress.step, progress.total)
        now = self._clock()
        first_step, first_time = self._first = self._first or (progress.step, now)
        done = progress.step - first_step
        pace = (now - first_time) / done if done else None
        left = None if pace is None else pace * (progress.total - progress.step)
        return News(progress.stage, progress.step, progress.total, left)


def load_in_background(name: str, load: Callable[[str], Model] | None = None) -> Future[Model]:
    """Start loading a model. The future raises ModelError with a sentence when that fails."""
    future: Future[Model] = Future()
    # A daemon, so that Ctrl-C ends the program in the middle of reading 30 GB.
    threading.Thread(target=_load_into, args=(future, name, load or _load), daemon=True).start()
    return future


def _load(name: str) -> Model:
    # Imported here: torch and diffusers take several seconds, and the page should not wait for them.
    from pipeline.weights import load_model

    return load_model(name)


def _load_into(future: Future[Model], name: str, load: Callable[[str], Model]) -> None:
    try:
        future.set_result(load(name))
    except StudioError as error:
        future.set_exception(error)
    except Exception:
        log.exception("The model %s could not be loaded.", name)
        message = f"The model “{name}” could not be loaded; the log of the program says why."
        future.set_exception(ModelError(message, "model"))


def name_download(settings: Mapping[str, Any]) -> str:
    """Give a file name that tells one result from the next: the prompt's first words and the seed."""
    words = "".join(letter if letter.isalnum() else " " for letter in settings["prompt"].lower()).split()
    start = ["-".join(words[:6])[:60].strip("-")] if words else []
    return "-".join([*start, str(settings["seed"])]) + ".mp4"


def name_result(result: "GenerationResult") -> Path:
    """Give a result's file the name under which people will find it again, and give its new path."""
    return result.video.rename(result.video.with_name(name_download(result.settings)))
