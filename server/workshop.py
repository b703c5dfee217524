"""One job, from its request to its files: what a worker does between taking a job and reporting how it ended."""

import errno
import gc
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.errors import (
    InvalidInputError,
    MediaError,
    OutOfMemoryError,
    StudioError,
    UnsafeContentError,
    is_out_of_memory,
)
from pipeline.model_progress import ModelProgress
from pipeline.spec import GenerationRequest, GenerationSpec, ModelFacts, explain, settle
from server.background import in_background
from server.files import RESULTS, FileStore, cut_text
from server.job import Fault, JobError, JobProgress, JobRequest, JobResult, LogLine, News, Outcome

if TYPE_CHECKING:
    from pipeline.generate import GenerationResult, Progress

log = logging.getLogger(__name__)

PREVIEWS = "previews"
MAX_WORDS_BYTES = 60  # of a result's name
PREVIEW_EVERY_S = 1.0
LOADING_POLL_S = 1.0
RESERVE_BYTES = 8 * 2**20  # enough for the database to write down how a job ended on a disk that is full

Publish = Callable[[News], None]  # raises to end the run
Model = tuple[Any, ModelFacts]
Generate = Callable[[GenerationSpec, Any, Path, Callable[["Progress"], None]], "GenerationResult"]


@dataclass(frozen=True)
class Workshop:
    """Everything a job needs besides its request. The model is loaded for the first job and stays.

    load: may take minutes; it runs in a thread of its own, and a job that waits for it can be stopped. how_far: where
    the loading is, if there is news. resolve: source of a file -> the file here. folder: where each job has a folder of
    its own, which outlives a crash.
    """

    load: Callable[[], Model]
    resolve: Callable[[str], Path]
    store: FileStore
    folder: Path
    generate: Generate
    check_media: Callable[[GenerationRequest], None]
    clock: Callable[[], float] = time.time
    how_far: Callable[[], ModelProgress | None] = lambda: None
    _loading: "list[Future[Model]]" = field(default_factory=list)

    def run(self, job_id: str, asked: JobRequest, earlier: News | None, publish: Publish) -> Outcome:
        """Do a job, going on from what an earlier worker left of it. Lets through what `publish` raises.

        earlier: the last news of that worker. What this one leaves is for `discard`, once the outcome is written down.
        """
        folder = self.folder / job_id
        reporter = Reporter(self.store, folder, self.clock, publish, earlier)
        try:
            self._reserve_space()
            folder.mkdir(parents=True, exist_ok=True)
            result = self._make(job_id, asked, folder, reporter)
        except Exception as error:  # noqa: BLE001 - the worker's edge: whatever happened ends this job and no other
            return Outcome(self._now(), error=self._tidy_up(job_id, error))
        return Outcome(self._now(), result=result)

    def discard(self, job_id: str) -> None:
        """Remove what a job that has ended left to go on from."""
        shutil.rmtree(self.folder / job_id, ignore_errors=True)

    def _make(self, job_id: str, asked: JobRequest, folder: Path, reporter: "Reporter") -> JobResult:
        reporter.tell("fetching")
        files = {name: self._fetch(name, asked) for name in ("reference_video", "image")}
        request = GenerationRequest.model_validate({**asked.fields, **files})
        self.check_media(request)
        reporter.tell("loading")
        pipe, facts = self._wait_for_model(reporter)
        # Seeded by the job's id: run again after a crash, it draws the same seed and makes the same video.
        spec = settle(request, facts, Random(job_id))
        made = self.generate(spec, pipe, folder, reporter)
        return self._keep(made, reporter)

    def _keep(self, made: "GenerationResult", reporter: "Reporter") -> JobResult:
        """Store what was made, all of it or nothing."""
        stem = name_result(made.settings)
        files = (made.video, made.comparison, made.poster)
        keys = reporter.reserve(f"{stem}.mp4", f"{stem}-comparison.mp4", f"{stem}.jpg")
        try:
            for file, key in zip(files, keys, strict=True):
                self.store.put(file, key)
        except Exception:
            for key in keys:
                self.store.delete(key)
            raise
        video_key, comparison_key, poster_key = keys
        return JobResult(
            video_key=video_key,
            comparison_key=comparison_key,
            poster_key=poster_key,
            size_bytes=sum(file.stat().st_size for file in files),
            settings=made.settings,
            inference_s=made.seconds,
        )

    def _wait_for_model(self, reporter: "Reporter") -> Model:
        """Give the model once it is loaded; after a failure the next job has it loaded anew."""
        if not self._loading:
            self._loading.append(in_background(self.load))
        loading = self._loading[0]
        while not wait([loading], timeout=LOADING_POLL_S).done:
            reporter.tell_model(self.how_far())
        if loading.exception() is not None:
            self._loading.clear()
        return loading.result()

    def _fetch(self, name: str, asked: JobRequest) -> Path:
        """Get an input here, and let an error name the field it was given in."""
        try:
            return self.resolve(getattr(asked, name))
        except StudioError as error:
            error.field = name
            raise

    def _tidy_up(self, job_id: str, error: Exception) -> JobError:
        """Put a failed run behind us, so that the next job has the machine to itself. Gives what to tell."""
        self.discard(job_id)
        reported = explain_failure(error)
        if reported.kind in ("internal", "out_of_memory", "disk_full"):
            log.error("Job %s failed.", job_id, exc_info=error)
        if reported.kind == "out_of_memory":
            _free_memory()
        if reported.kind == "disk_full":
            self._reserve.unlink(missing_ok=True)
        return reported

    @property
    def _reserve(self) -> Path:
        return self.folder / "reserve"

    def _reserve_space(self) -> None:
        if not self._reserve.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._reserve.write_bytes(bytes(RESERVE_BYTES))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)


class Reporter:
    """Turns a run's progress into the job's news: stage, step, a log line each, and now and then a picture."""

    def __init__(
        self,
        store: FileStore,
        folder: Path,
        clock: Callable[[], float],
        publish: Publish,
        earlier: News | None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock
        self._publish = publish
        now = self._now()
        shown = earlier.progress.preview_key if earlier else None
        start = JobProgress("waiting", 0, 1, now, preview_key=shown)
        self._news = replace(earlier, progress=start) if earlier else News(now, start)
        self._previewed = 0.0
        if earlier:
            self._log("The program that made this video ended; going on.", "WARN")

    def __call__(self, progress: "Progress") -> None:
        """Take what `pipeline.generate` reports."""
        begins = progress.stage == "denoising" and self._news.progress.steps_began_at is None
        now = self._news.progress
        if begins:
            now = replace(now, steps_began_at=self._now(), first_step=progress.step)
        key = self._draw(progress)
        line = f"{progress.stage} {progress.step}/{progress.total}" if progress.step else progress.stage
        line = progress.note or line
        self._tell(replace(now, stage=progress.stage, step=progress.step, total=progress.total, preview_key=key), line)

    def tell(self, stage: str) -> None:
        """Report a stage that `pipeline.generate` knows nothing of."""
        self._tell(replace(self._news.progress, stage=stage, step=0, total=1), stage)

    def reserve(self, *names: str) -> tuple[str, ...]:
        """Report that files are stored now, and give their keys: those of the earlier run where it came as far."""
        if not self._news.reserved:
            self._news = replace(self._news, reserved=tuple(self._store.reserve(RESULTS, name) for name in names))
        self.tell("storing")
        return self._news.reserved

    def tell_model(self, progress: ModelProgress | None) -> None:
        """Report how far the model is, with a line in the log for each hundredth.

        None reports the same again: whoever publishes it ends the run if it was stopped meanwhile.
        """
        if progress is None:
            self._publish(self._news)
            return
        now = self._news.progress
        share = (progress.stage, progress.done * 100 // max(progress.total, 1))
        is_new = share != (now.stage, now.step * 100 // max(now.total, 1))
        line = f"{progress.stage} {progress.amount}" if is_new else None
        self._tell(replace(now, stage=progress.stage, step=progress.done, total=progress.total), line)

    def _tell(self, progress: JobProgress, line: str | None) -> None:
        before, after = self._news.progress.preview_key, progress.preview_key
        self._news = replace(self._news, progress=progress)
        if line is not None:
            self._log(line, "INFO")
        unused = before
        try:
            self._publish(self._news)
        except BaseException:
            unused = after  # nobody will ever hear of the new one
            raise
        finally:
            if unused is not None and before != after:
                self._store.delete(unused)

    def _log(self, message: str, level: str) -> None:
        self._news = replace(self._news, logs=(*self._news.logs, LogLine(message, level, self._now())))

    def _draw(self, progress: "Progress") -> str | None:
        """Store a moving picture of the latents, at most once a second. Gives the key of the newest."""
        shown = self._news.progress.preview_key
        if progress.preview is None or self._clock() - self._previewed < PREVIEW_EVERY_S:
            return shown
        self._previewed = self._clock()
        first, *others = progress.preview.frames()
        path = self._folder / "preview.webp"
        first.save(path, save_all=True, append_images=others, duration=125, loop=0, quality=60)
        return self._store.add(path, folder=PREVIEWS)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def name_result(settings: Mapping[str, Any]) -> str:
    """Give a file name, without its extension, that tells one result from the next: the first words and the seed.

    Short enough to be kept as it is: clean_name would cut the seed.
    """
    words = "".join(letter if letter.isalnum() else " " for letter in settings["prompt"].lower()).split()
    beginning = cut_text("-".join(words[:6]), MAX_WORDS_BYTES).rstrip("-")
    return f"{beginning}-{settings['seed']}".lstrip("-")


def explain_failure(error: Exception) -> JobError:
    """Turn what a run raised into a kind, a sentence for a person, and the inputs to blame."""
    causes = list(_chain(error))
    if isinstance(error, OutOfMemoryError):
        return JobError("out_of_memory", error.message, suggestion=error.suggestion)
    if any(is_out_of_memory(cause) for cause in causes):
        message = "The machine ran out of memory; try fewer frames or a lower resolution."
        return JobError("out_of_memory", message)
    if any(_is_disk_full(cause) for cause in causes):
        return JobError("disk_full", "The disk of the machine that makes the videos is full; tell its operator.")
    match error:
        case ValidationError():
            types = [finding["type"] for finding in error.errors(include_url=False)]
            found = explain(error)
            faults = tuple(Fault(e.field, e.message, t) for e, t in zip(found, types, strict=True))
            return JobError("invalid_input", " ".join(fault.message for fault in faults), faults)
        case StudioError() if error.field in GenerationRequest.model_fields or isinstance(error, InvalidInputError):
            return JobError("invalid_input", error.message, (Fault(error.field, error.message, fault_type(error)),))
        case StudioError():
            return JobError("internal", error.message)
        case _:
            message = "Something went wrong while making the video; the log of the program says what. Please try again."
            return JobError("internal", message)


def fault_type(error: StudioError) -> str:
    """Give the word programs know a fault by: the error's own `fault_type` where it has one."""
    own = getattr(error, "fault_type", None)
    if isinstance(own, str):
        return own
    if isinstance(error, UnsafeContentError):
        return "content_policy_violation"
    if isinstance(error, MediaError):
        return "image_load_error" if error.field == "image" else "unsupported_video_format"
    return "value_error"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "database or disk is full" in str(error)


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
