"""The values of the queue: what is asked, how far it is, and how it ended. Frozen, and JSON at every border."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from pipeline.errors import Suggestion

Value = TypeVar("Value")

FILE_SCHEME = "file:"  # of a source that is in the file store: its key follows

Priority = Literal["normal", "low"]

ErrorKind = Literal[
    "invalid_input", "internal", "out_of_memory", "start_timeout", "cancelled", "worker_lost", "disk_full"
]


class JobStatus(StrEnum):
    """Where a job is. It never goes back; the last three are final."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (JobStatus.WAITING, JobStatus.RUNNING)


@dataclass(frozen=True)
class Fault:
    """One thing wrong with one input. `type` is a word such as "missing", "value_error", "file_download_error"."""

    field: str | None
    message: str
    type: str


@dataclass(frozen=True)
class JobError:
    """Why a job has no result: a kind for programs, a sentence for people, and the inputs to blame.

    suggestion: what to change for it to work, after running out of memory.
    """

    kind: ErrorKind
    message: str
    faults: tuple[Fault, ...] = ()
    suggestion: Suggestion | None = None


@dataclass(frozen=True)
class JobRequest:
    """What a person asks for, before its files are here.

    fields: those of a GenerationRequest by our names, without `reference_video` and `image`. These two are sources:
    "file:" and a key of the file store, or an http(s) URL; they are resolved inside the job. keep_s: how long after its
    end the sender wants it kept at most; None: as long as everything else. digest: of what was sent, where it may be
    sent again under the same idempotency key.
    """

    fields: Mapping[str, Any]
    reference_video: str
    image: str
    keep_s: float | None = None
    digest: str | None = None

    @property
    def sources(self) -> Mapping[str, str]:
        """Give the two sources by field."""
        return {"reference_video": self.reference_video, "image": self.image}

    @property
    def keys(self) -> set[str]:
        """Give the keys of the sources that are in the file store."""
        found = (source for source in self.sources.values() if source.startswith(FILE_SCHEME))
        return {source.removeprefix(FILE_SCHEME) for source in found}


@dataclass(frozen=True)
class LogLine:
    """One line of a job's log. `level` is one of DEBUG, INFO, WARN, ERROR."""

    message: str
    level: str
    timestamp: datetime


@dataclass(frozen=True)
class JobProgress:
    """Where a running job is: `step` of `total` within a stage; `preview_key` is a picture in the file store.

    steps_began_at: when this run took its first denoising step, and `first_step` which one that was, for an estimate
    of the time left: a resumed run does not begin at 1.
    """

    stage: str
    step: int
    total: int
    started_at: datetime
    steps_began_at: datetime | None = None
    first_step: int | None = None
    preview_key: str | None = None


@dataclass(frozen=True)
class JobResult:
    """What a job left, as keys of the file store, and the settings that make it again."""

    video_key: str
    comparison_key: str
    poster_key: str
    size_bytes: int
    settings: Mapping[str, Any]
    inference_s: float

    @property
    def keys(self) -> tuple[str, str, str]:
        """Give the keys of all its files."""
        return self.video_key, self.comparison_key, self.poster_key


@dataclass(frozen=True)
class Job:
    """A request on its way. `position` counts the requests ahead of a waiting one; `error` tells why it ended badly."""

    job_id: str
    owner: str
    status: JobStatus
    position: int | None
    request: JobRequest | None
    progress: JobProgress | None
    logs: tuple[LogLine, ...]
    result: JobResult | None
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    webhook_url: str | None = None
    reserved: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Give the keys of all files it has in the file store, or may have where its end was not written down."""
        preview = (self.progress.preview_key,) if self.progress and self.progress.preview_key else ()
        return tuple(dict.fromkeys((*(self.result.keys if self.result else ()), *self.reserved, *preview)))


@dataclass(frozen=True)
class News:
    """What a running job reports each time: stored as one value, so that a poll reads one row.

    reserved: the keys of its result, known before a file is: what a crash leaves half stored still belongs to a job.
    """

    begun_at: datetime
    progress: JobProgress
    logs: tuple[LogLine, ...] = ()
    reserved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with a result or with an error."""

    finished_at: datetime
    result: JobResult | None = None
    error: JobError | None = None


@dataclass(frozen=True)
class Limits:
    """How much may wait: jobs of one owner that have not ended, and waiting jobs of everybody."""

    active_per_owner: int = 20
    waiting: int = 200


@dataclass(frozen=True)
class Retention:
    """How long finished jobs stay: until too old, or until all results together are too large. None: no limit."""

    max_age_s: float | None = None
    max_size_bytes: int | None = None


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def encode(value: Any) -> Any:
    """Give one of these values as plain JSON values."""
    return _adapter(type(value)).dump_python(value, mode="json")


def decode(kind: type[Value], data: Any) -> Value:
    """Make a value of this kind from what `encode` gave."""
    value: Value = _adapter(kind).validate_python(data)
    return value
