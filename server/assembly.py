"""Settings -> files, queue, worker and API: what the app and a worker alone put together in the same way."""

import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StudioError
from pipeline.spec import GenerationRequest, GenerationSpec
from server.calls import ApiServices
from server.fetch import Caller, FetchRules, SourceResolver
from server.files import FileStore
from server.job import Limits, Retention
from server.jobs import JobQueue
from server.keys import KEYS_FILE, KeyRing
from server.settings import Settings, WorkerSettings, prepare_environment, read_settings
from server.signing import load_signer
from server.studio import Studio, Uploads, load_secret
from server.webhooks import Webhooks
from server.worker import Worker, work_until_told
from server.workshop import Model, Workshop

if TYPE_CHECKING:
    from pipeline.generate import GenerationResult, Progress

SIGNING_FILE = "signing.key"
DAY_S = 86_400.0
GIB = 2**30
MAX_UPLOAD_BYTES = 200 * 2**20


def open_files(settings: Settings) -> FileStore:
    """Open the file store: uploads, results, previews."""
    return FileStore(settings.files_url or settings.data_dir / "files", settings.data_dir / "cache")


def open_queue(settings: Settings, files: FileStore) -> JobQueue:
    """Open the queue. Raises StudioError with a sentence when its database cannot be used."""
    url = settings.database_url or f"sqlite:///{settings.data_dir / 'queue.sqlite'}"
    limits = Limits(active_per_owner=settings.max_active_jobs, waiting=settings.max_waiting_jobs)
    return JobQueue(url, files, limits=limits)


def make_worker(settings: Settings, queue: JobQueue, load: Callable[[], Model] | None = None) -> Worker:
    """Make the worker of this process. load: gives the model, for an app that has begun to load it already."""
    caller = Caller(_rules(settings))
    workshop = Workshop(
        load=load or (lambda: _load_model(settings.model)),
        resolve=SourceResolver(caller, queue.files).resolve,
        store=queue.files,
        folder=settings.data_dir / "jobs",
        generate=_generate_safely if settings.force_safety_checker else _generate,
        check_media=_check_media_safely if settings.force_safety_checker else _check_media,
    )
    return Worker(
        queue,
        workshop,
        settings.data_dir / "workers",
        on_finished=Webhooks(load_signer(settings.data_dir / SIGNING_FILE), caller, queue.files).deliver,
        retention=Retention(
            max_age_s=None if settings.keep_days is None else settings.keep_days * DAY_S,
            max_size_bytes=None if settings.keep_gb is None else int(settings.keep_gb * GIB),
        ),
    )


def make_api(settings: Settings, queue: JobQueue) -> ApiServices:
    """Give what the API stands on."""
    return ApiServices(
        queue=queue,
        files=queue.files,
        keys=KeyRing(settings.data_dir / KEYS_FILE, may_be_open=settings.serves_itself_only),
        signer=load_signer(settings.data_dir / SIGNING_FILE),
        scratch_dir=settings.data_dir / "scratch",
        rules=_rules(settings),
        public_url=settings.public_url,
        cors_origins=settings.origins,
        max_upload_bytes=MAX_UPLOAD_BYTES,
    )


def make_studio(settings: Settings, api: ApiServices, model: Future[Model] | None) -> Studio:
    """Give what the page stands on. model: None where workers elsewhere make the videos."""
    return Studio(
        queue=api.queue,
        uploads=Uploads(api.files),
        keys=api.keys,
        model_name=settings.model,
        model=model,
        browser_secret=load_secret(settings.data_dir / "browser.key"),
        public_url=settings.public_url,
    )


def run_worker(arguments: Sequence[str]) -> int:
    """Work until SIGTERM or Ctrl-C. A setting that cannot work ends with a sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = read_settings(arguments, WorkerSettings)
        prepare_environment(settings)
        queue = open_queue(settings, open_files(settings))
    except StudioError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    work_until_told(make_worker(settings, queue))
    queue.close()
    return 0


def _rules(settings: Settings) -> FetchRules:
    return FetchRules(allow_private=settings.allow_private_urls)


# Imported late: torch and diffusers take several seconds, and neither a page nor a waiting worker needs them.


def _load_model(name: str) -> Model:
    from pipeline.weights import load_model

    return load_model(name)


def _generate(
    spec: GenerationSpec, pipe: Any, folder: Path, on_progress: Callable[["Progress"], None]
) -> "GenerationResult":
    from pipeline.generate import generate

    return generate(spec, pipe, folder, on_progress)


def _check_media(request: GenerationRequest) -> None:
    from pipeline.check import check_inputs

    check_inputs(request)


# The operator's word is above the request's; the settings of the result then say that it was checked.


def _generate_safely(
    spec: GenerationSpec, pipe: Any, folder: Path, on_progress: Callable[["Progress"], None]
) -> "GenerationResult":
    return _generate(replace(spec, enable_safety_checker=True), pipe, folder, on_progress)


def _check_media_safely(request: GenerationRequest) -> None:
    _check_media(request.model_copy(update={"enable_safety_checker": True}))
