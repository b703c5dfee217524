"""What the page stands on: the queue it shares with the API, the files people give it, and who they are."""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.check import check_inputs
from pipeline.lora_shelf import NO_LORAS, LoraShelf
from pipeline.model_progress import ModelProgress
from pipeline.spec import GenerationRequest, ModelFacts
from server.files import UPLOADS, FileStore, UnknownFileError
from server.form import SOURCES
from server.job import FILE_SCHEME, Job, JobRequest
from server.jobs import JobQueue
from server.keys import KeyRing
from server.signing import Signer

if TYPE_CHECKING:
    from pipeline.planner import Planner
    from server.loading import BackgroundModel

SECRET_LETTERS = 16
MAX_REMEMBERED_UPLOADS = 500


@dataclass(frozen=True)
class Studio:
    """The page's way to everything else.

    model: the one of this process's worker; None where workers elsewhere make the videos. how_far: where its loading
    is, if there is news. planner: what knows the cost of a request, once there is one. browser_secret: what browsers
    keep for us is scrambled with it, which hides it and proves nothing; signer: marks what they cannot make up.
    on_submit: told of each new job by its id. about_space: what visitors should know of the Space that this runs on.
    guidance_scale: the one to begin with, the model's own.
    """

    queue: JobQueue
    uploads: "Uploads"
    keys: KeyRing
    model_name: str
    model: "BackgroundModel | None"
    browser_secret: str
    signer: Signer
    public_url: str | None = None
    how_far: Callable[[], ModelProgress | None] = lambda: None
    planner: "Callable[[], Planner | None]" = lambda: None
    loras: LoraShelf = NO_LORAS
    on_submit: Callable[[str], None] = lambda job_id: None
    about_space: str = ""
    guidance_scale: float = ModelFacts.guidance_scale

    @property
    def files(self) -> FileStore:
        """Give the store that everything made lies in."""
        return self.queue.files

    def check(self, request: GenerationRequest) -> None:
        """Look at what a request names before it waits. Raises InvalidInputError, MediaError."""
        self.loras.find(request.lora)
        check_inputs(request)

    def submit(self, request: GenerationRequest, owner: str) -> Job:
        """Store a request's files and put it in the queue. Raises QueueFullError."""
        fields = request.model_dump(mode="json", exclude=set(SOURCES), exclude_unset=True)
        sources = {name: FILE_SCHEME + self.uploads.keep(Path(getattr(request, name))) for name in SOURCES}
        job = self.queue.submit(JobRequest(fields, sources["reference_video"], sources["image"]), owner=owner)
        self.on_submit(job.job_id)
        return job

    def find(self, job_id: str | None) -> Job | None:
        """Give a job, whoever asks: its id cannot be guessed. Raises UnreachableError, even where no job is named."""
        return self.queue.get(job_id or "", with_logs=False)

    def find_files(self, asked: JobRequest) -> dict[str, Path]:
        """Give the files of a request that are still here; those that came by URL never were."""
        found = {}
        for name in SOURCES:
            source = getattr(asked, name)
            if source.startswith(FILE_SCHEME):
                try:
                    found[name] = self.files.local(source.removeprefix(FILE_SCHEME))
                except UnknownFileError:
                    continue
        return found


class Uploads:
    """Puts files of the page into the store: each once, however often it is used."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        # Gradio names an uploaded file by its content: the same path is the same file.
        self._keys: dict[Path, str] = {}

    def keep(self, path: Path) -> str:
        """Give the key of a file, which is stored unless it was before."""
        key = self._keys.get(path)
        if key is None or not self._files.exists(key):
            if len(self._keys) >= MAX_REMEMBERED_UPLOADS:
                self._keys.clear()
            key = self._keys[path] = self._files.add(path, folder=UPLOADS)
        return key


def new_visitor() -> str:
    """Give an id for a browser that comes for the first time; nobody can guess it."""
    return secrets.token_urlsafe(24)


def owner_of(login: str | None, visitor: str | None) -> str | None:
    """Give the owner of what a visitor makes: who is logged in, else the browser. An API key may name the former."""
    if login:
        return login
    return f"browser:{visitor}" if visitor else None


def load_secret(path: Path) -> str:
    """Read the secret that browsers scramble our notes with, made on first use: it has to outlive a restart."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(SECRET_LETTERS // 2), encoding="ascii")
        fresh.replace(path)
    return path.read_text(encoding="ascii")


def request_settings(job: Job) -> Mapping[str, Any]:
    """Give the settings to make a job's video again: those of its result, which hold the seed, else as asked."""
    if job.result is not None:
        return job.result.settings
    return job.request.fields if job.request else {}
