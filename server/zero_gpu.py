"""ZeroGPU: a Space that owns no GPU and is lent one for each run, in a process of its own.

What the package `spaces` does, as read in version 0.51.3: a decorated function runs in a fork of this process, in which
CUDA works, and only there. What goes in and comes out is pickled; of errors only Gradio's own come through. A generator
sends what it yields, and ends at its next yield when it is closed here. The lent time counts for the visitor whose
Gradio request is known where the function is called, else for the Space itself, which has little.

Our worker is outside of any Gradio event, so it is told which request a job came with. A job that came without, by the
API or before a restart, runs on the Space's own share.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

import gradio as gr
import psutil
from gradio.context import LocalContext
from PIL import Image

from pipeline.errors import InvalidInputError, StoppedError, StudioError
from pipeline.machine import GIB, Machine, look_at_ram
from pipeline.spec import GenerationSpec
from server.background import in_background
from server.loading import Gauge

if TYPE_CHECKING:
    from pipeline.generate import GenerationResult, Progress

log = logging.getLogger(__name__)

MAX_DURATION_S = 1600  # the platform counts half a card's seconds 1.5 times: 40 min, a PRO account's day
START_S = 15  # for the fork, and to bring the weights to the card
MARGIN = 1.3  # a run that outlasts what was asked for is ended by the platform
PREVIEW_EVERY_S = 1.0
MAX_REMEMBERED = 1000

# Half of, and a whole RTX PRO 6000 Blackwell. Dense bf16 TFLOP/s from its data sheet; no run here has measured them.
CARDS = {"large": (48 * GIB, 250.0), "xlarge": (96 * GIB, 500.0)}


def card_size(model: str) -> str:
    """Give which of the platform's two sizes a model needs: whatever is not nano needs a whole card."""
    return "large" if model == "nano" else "xlarge"


def look_at_lent_machine(model: str, folder: Path) -> Machine:
    """Give the machine that a run has: memory and disk of this one, and the card that is lent. folder: on the disk.

    Not by `look_at_machine`: outside of a run `spaces` only pretends that there is a card.
    """
    size = card_size(model)
    card_bytes, tflops = CARDS[size]
    name = "a lent RTX PRO 6000" if size == "xlarge" else "a lent half of an RTX PRO 6000"
    return Machine("cuda", name, card_bytes, (12, 0), 1, look_at_ram(), psutil.disk_usage(str(folder)).free, tflops)


class Visitors:
    """Remembers with which Gradio request a job came, as long as this process lives."""

    def __init__(self) -> None:
        self._requests: dict[str, tuple[Any, Any]] = {}

    def remember(self, job_id: str) -> None:
        """Remember the request of the Gradio event that this is called in, if it is called in one."""
        request = LocalContext.request.get(None)
        if request is None:
            return
        while len(self._requests) >= MAX_REMEMBERED:
            del self._requests[next(iter(self._requests))]
        self._requests[job_id] = (request, LocalContext.blocks.get(None))

    @contextmanager
    def stand_in(self, job_id: str) -> Iterator[None]:
        """Let `spaces` find the request of a job, while the context lasts."""
        request, blocks = self._requests.pop(job_id, (None, None))
        as_before = LocalContext.request.set(request), LocalContext.blocks.set(blocks)
        try:
            yield
        finally:
            LocalContext.request.reset(as_before[0])
            LocalContext.blocks.reset(as_before[1])


@dataclass(frozen=True)
class Pictures:
    """A preview on its way out of the fork: drawn already, since latents on its card cannot leave it."""

    pictures: list[Image.Image]

    def frames(self) -> list[Image.Image]:
        """Give what LatentPreview would."""
        return self.pictures


@dataclass(frozen=True)
class Failure:
    """An error on its way out of the fork. Rebuilt from its parts: most of ours do not survive pickling as they are."""

    kind: type[BaseException]
    text: str
    parts: dict[str, Any]

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Take an error apart. Of one that is not ours only the words leave the fork; its log has the rest."""
        if isinstance(error, StudioError):
            return cls(type(error), str(error), dict(vars(error)))
        log.error("A run on a lent GPU failed.", exc_info=error)
        return cls(RuntimeError, f"{type(error).__name__}: {error}", {})

    def rebuild(self) -> BaseException:
        """Put it together again."""
        error = self.kind.__new__(self.kind, self.text)
        vars(error).update(self.parts)
        return error


class LentGpu:
    """Runs generations on GPUs that ZeroGPU lends. Must be made before the page is launched."""

    def __init__(self, model: str, gauge: Gauge, visitors: Visitors, run: Callable[..., "GenerationResult"]) -> None:
        """run: as `profiles.generate_as_planned`; it is called in the fork."""
        import spaces  # type: ignore[import-not-found]  # only Spaces have it

        self._gauge, self._visitors, self._run = gauge, visitors, run
        self._pipe: Any = None
        self._lend = spaces.GPU(duration=self.duration_s, size=card_size(model))(self._stream)

    def generate(
        self, spec: GenerationSpec, pipe: Any, folder: Path, on_progress: Callable[["Progress"], None]
    ) -> "GenerationResult":
        """Make a video as `generate` does. folder: named by the job's id.

        Raises InvalidInputError when no GPU is lent for that long, StudioError with the platform's words when none is
        lent at all, and what `generate` raises.
        """
        self._refuse_too_long(spec)
        self._pipe = pipe  # not an argument: the fork has it in its memory, pickling it would copy it
        try:
            # The reports come in between: the context must be the worker's but for the two that `spaces` looks at.
            with self._visitors.stand_in(folder.name), closing(self._lend(spec, folder)) as news:
                outcome = _follow(news, on_progress)
        except gr.Error as error:
            words = str(error.message)  # not its own formatting, which may give HTML
            raise StudioError(f"ZeroGPU did not make this video: {words}") from error
        if isinstance(outcome, Failure):
            raise outcome.rebuild()
        return outcome

    def duration_s(self, spec: GenerationSpec, folder: Path) -> int:
        """Give the seconds to ask for, at most what the platform lends. Takes what the decorated function takes."""
        return min(MAX_DURATION_S, math.ceil(START_S + MARGIN * self._estimate_s(spec)))

    def _estimate_s(self, spec: GenerationSpec) -> float:
        planner = self._gauge.planner
        if planner is None:
            raise StudioError("The model was loaded without a plan for this machine.")
        return planner.plan(spec).estimate.seconds

    def _refuse_too_long(self, spec: GenerationSpec) -> None:
        seconds = self._estimate_s(spec)
        if START_S + seconds > MAX_DURATION_S:
            message = (
                f"This would take about {seconds / 60:.0f} min, and ZeroGPU lends a GPU for at most "
                f"{MAX_DURATION_S // 60} min; try fewer steps or fewer frames."
            )
            raise InvalidInputError("num_inference_steps", message)

    def _stream(self, spec: GenerationSpec, folder: Path) -> Iterator[Any]:
        """Make the video, in the fork: yields each report, then the result or a Failure. Closed early, it stops."""
        news: SimpleQueue[Any] = SimpleQueue()
        is_closed, portable = Event(), Portable()

        def report(progress: "Progress") -> None:
            if is_closed.is_set():
                raise StoppedError
            news.put(Told(portable.pack(progress)))

        running = in_background(lambda: self._run(spec, self._pipe, folder, report, self._gauge.planner))
        running.add_done_callback(news.put)
        try:
            while isinstance(item := news.get(), Told):
                yield item
            yield _outcome(running)
        finally:
            is_closed.set()
            wait([running])  # the GPU is given back after this, so nothing may still use it


@dataclass(frozen=True)
class Told:
    """A report on its way out of the fork."""

    progress: "Progress"


class Portable:
    """Makes reports fit to leave the fork, with a preview now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drawn_s = -math.inf

    def pack(self, progress: "Progress") -> "Progress":
        """Give a report with its preview drawn, or without one where the last is less than a second old."""
        if progress.preview is None:
            return progress
        if self._clock() - self._drawn_s < PREVIEW_EVERY_S:
            return replace(progress, preview=None)
        self._drawn_s = self._clock()
        return replace(progress, preview=Pictures(progress.preview.frames()))  # type: ignore[arg-type]


def _follow(
    news: "Iterator[Told | GenerationResult | Failure]", on_progress: Callable[["Progress"], None]
) -> "GenerationResult | Failure":
    """Pass reports on, to the end, after which the GPU is given back. Gives how it ended."""
    taken_back = {"message": "The lent GPU was taken back before the video was done; please try again.", "field": None}
    outcome: GenerationResult | Failure = Failure(StudioError, "taken back", taken_back)
    for item in news:
        if isinstance(item, Told):
            on_progress(item.progress)
        else:
            outcome = item
    return outcome


def _outcome(running: "Future[GenerationResult]") -> "GenerationResult | Failure":
    error = running.exception()
    return Failure.of(error) if error else running.result()
