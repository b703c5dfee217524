"""Settings -> files, queue, worker and API: what the app and a worker alone put together in the same way."""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInputError, ModelError, StudioError
from pipeline.importing import importing
from pipeline.lora_shelf import NO_LORAS, LoraShelf
from pipeline.model_progress import OnModel
from pipeline.ranks import is_follower
from pipeline.spec import NATIVE_ATTENTION, GenerationRequest, GenerationSpec, ModelFacts
from server.calls import ApiServices
from server.certificates import load_certificate
from server.fetch import Caller, FetchRules, SourceResolver
from server.files import FileStore
from server.job import Limits, Retention
from server.jobs import JobQueue
from server.keys import KEYS_FILE, KeyRing
from server.loading import BackgroundModel, Gauge
from server.settings import Settings, WorkerSettings, bind, prepare_environment, read_settings
from server.signing import load_signer
from server.space import describe_space, is_zero_gpu
from server.studio import Studio, Uploads, load_secret
from server.tls_front import TlsFront
from server.webhooks import Webhooks
from server.worker import Worker, work_until_told
from server.workshop import Model, Workshop

if TYPE_CHECKING:
    from pipeline.generate import GenerationResult, Progress
    from pipeline.machine import Machine
    from pipeline.planner import Planner
    from server.zero_gpu import LentGpu

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


def check_machine(settings: Settings) -> None:
    """Raise InvalidInputError for a setting this machine cannot follow: its folder of LoRAs, its attention."""
    LoraShelf(settings.lora_dir).names()
    if settings.attention != NATIVE_ATTENTION and settings.worker:
        from pipeline.attention import check_attention

        check_attention(settings.attention)


def make_worker(
    settings: Settings, queue: JobQueue, load: Callable[[], Model] | None = None, gauge: Gauge | None = None
) -> Worker:
    """Make the worker of this process.

    load: gives the model, for an app that has begun to load it already and shows in `gauge` how far that is.
    """
    shown, loras = gauge or Gauge(), LoraShelf(settings.lora_dir)
    lent_gpu = _make_lent_gpu(settings, shown) if is_zero_gpu() else None

    def generate(
        spec: GenerationSpec, pipe: Any, folder: Path, on_progress: Callable[["Progress"], None]
    ) -> "GenerationResult":
        # The operator's word is above the request's; the settings of the result then say that it was checked.
        checked = replace(spec, enable_safety_checker=True) if settings.force_safety_checker else spec
        if lent_gpu is not None:
            return lent_gpu.generate(checked, pipe, folder, on_progress)
        return _generate(checked, pipe, folder, on_progress, shown.planner, loras)

    def check_media(request: GenerationRequest) -> None:
        loras.find(request.lora)
        (_check_media_safely if settings.force_safety_checker else _check_media)(request)

    caller = Caller(_rules(settings))
    workshop = Workshop(
        load=load or (lambda: make_load(settings, shown)(settings.model, shown.show)),
        how_far=lambda: shown.progress,
        resolve=SourceResolver(caller, queue.files).resolve,
        store=queue.files,
        folder=settings.data_dir / "jobs",
        generate=generate,
        check_media=check_media,
    )
    return Worker(
        queue,
        workshop,
        settings.data_dir / "workers",
        on_finished=_make_webhooks(settings, queue).deliver,
        retention=Retention(
            max_age_s=None if settings.keep_days is None else settings.keep_days * DAY_S,
            max_size_bytes=None if settings.keep_gb is None else int(settings.keep_gb * GIB),
        ),
    )


def make_tender(settings: Settings, queue: JobQueue) -> Worker:
    """Make what a front without a worker runs: it ends what waited too long, and tells of ends."""
    return Worker(queue, None, settings.data_dir / "fronts", on_finished=_make_webhooks(settings, queue).deliver)


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


def make_studio(
    settings: Settings, api: ApiServices, model: BackgroundModel | None, gauge: Gauge | None = None
) -> Studio:
    """Give what the page stands on.

    model: None where workers elsewhere make the videos. gauge: how far it is on its way.
    """
    return Studio(
        queue=api.queue,
        uploads=Uploads(api.files),
        keys=api.keys,
        model_name=settings.model,
        model=model,
        browser_secret=load_secret(settings.data_dir / "browser.key"),
        signer=api.signer,
        public_url=settings.public_url,
        how_far=lambda: gauge.progress if gauge else None,
        planner=lambda: gauge.planner if gauge else None,
        loras=LoraShelf(settings.lora_dir),
        on_submit=gauge.visitors.remember if gauge and gauge.visitors else lambda job_id: None,
        about_space=describe_space(settings),
        guidance_scale=_own_guidance(settings),
    )


def _own_guidance(settings: Settings) -> float:
    """Give the model's own guidance; where it is not known, here or at all, that of the released one."""
    from pipeline.models import find_model
    from pipeline.planner import read_facts

    try:
        source = find_model(settings.model) if settings.worker else None
        return read_facts(source.name, source.folder).guidance_scale if source else ModelFacts.guidance_scale
    except ModelError:  # which the page tells once the model is wanted
        return ModelFacts.guidance_scale


def make_tls_front(settings: Settings, queue: JobQueue) -> AbstractContextManager[object]:
    """Give the door for fal's own host names, which is open while its context lasts; none where none is asked for.

    Raises StudioError when its port is taken, or its certificate cannot be read.
    """
    if settings.fal_proxy_port is None:
        return nullcontext()
    if settings.fal_proxy_port == settings.port != 0:
        message = f"The page itself has port {settings.port}; give --fal-proxy-port another one."
        raise InvalidInputError("fal_proxy_port", message)
    certificate = load_certificate(settings.data_dir, datetime.now(UTC))
    listener = bind(settings.host, settings.fal_proxy_port, "fal_proxy_port")
    return TlsFront(make_api(settings, queue), certificate, listener)


def run_worker(arguments: Sequence[str]) -> int:
    """Work until SIGTERM or Ctrl-C. A setting that cannot work ends with a sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = read_settings(arguments, WorkerSettings)
        if is_follower():  # one of several processes of `torchrun`; another one takes the jobs
            follow(settings)
            return 0
        prepare_environment(settings)
        check_machine(settings)
        queue = open_queue(settings, open_files(settings))
    except StudioError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    work_until_told(make_worker(settings, queue))
    queue.close()
    return 0


def _make_webhooks(settings: Settings, queue: JobQueue) -> Webhooks:
    return Webhooks(load_signer(settings.data_dir / SIGNING_FILE), Caller(_rules(settings)), queue.files)


def _rules(settings: Settings) -> FetchRules:
    return FetchRules(allow_private=settings.allow_private_urls)


# Imported late: torch and diffusers take several seconds, and neither a page nor a waiting worker needs them.


def make_load(settings: Settings, gauge: Gauge) -> Callable[[str, OnModel], Model]:
    """Give what loads a model as its planner says, which the gauge then shows."""

    def load(name: str, on_progress: OnModel) -> Model:
        with importing("diffusers"):
            from pipeline.encoding_cache import EncodingCache
            from pipeline.planner import make_planner
            from pipeline.weights import load_model

        machine = _look_at_lent_machine(settings) if is_zero_gpu() else None
        planner = make_planner(name, settings.profile, settings.data_dir, machine)
        gauge.planner = planner
        # What is lent is there during a run only: until then the weights wait where they were read.
        pipe, facts = load_model(
            name,
            on_progress,
            planner,
            placed=not is_zero_gpu(),
            attention=settings.attention,
            ring_degree=settings.ring_degree,
        )
        pipe.encoding_cache = EncodingCache(settings.data_dir / "encodings")
        return pipe, facts

    return load


def follow(settings: Settings) -> None:
    """Take part in the videos of the process that serves, or takes the jobs, until it ends."""
    with importing("diffusers"):
        from pipeline.weights import follow_leader

    with suppress(KeyboardInterrupt):
        follow_leader(settings.model, settings.attention, settings.ring_degree)


def _generate(
    spec: GenerationSpec,
    pipe: Any,
    folder: Path,
    on_progress: Callable[["Progress"], None],
    planner: "Planner | None",
    loras: LoraShelf = NO_LORAS,
) -> "GenerationResult":
    from pipeline.profiles import generate_as_planned

    if planner is None:
        raise StudioError("The model was loaded without a plan for this machine.")
    return generate_as_planned(spec, pipe, folder, on_progress, planner, loras)


def _make_lent_gpu(settings: Settings, gauge: Gauge) -> "LentGpu":
    """Let a GPU be lent for each run, on behalf of the visitors that the gauge then knows."""
    from server.zero_gpu import LentGpu, Visitors

    gauge.visitors = Visitors()
    generate = partial(_generate, loras=LoraShelf(settings.lora_dir))
    return LentGpu(settings.model, gauge, gauge.visitors, generate)


def _look_at_lent_machine(settings: Settings) -> "Machine":
    from server.zero_gpu import look_at_lent_machine

    return look_at_lent_machine(settings.model, settings.data_dir)


def _check_media(request: GenerationRequest) -> None:
    from pipeline.check import check_inputs

    check_inputs(request)


def _check_media_safely(request: GenerationRequest) -> None:
    _check_media(request.model_copy(update={"enable_safety_checker": True}))
