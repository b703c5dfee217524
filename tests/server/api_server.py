"""The API as tests run it: a real server on loopback over the real queue and worker; only the generation is a fake."""

import base64
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from pipeline.errors import MediaError
from pipeline.generate import GenerationResult, Progress
from pipeline.spec import GenerationRequest, GenerationSpec, ModelFacts
from server.api import api_routes
from server.calls import ApiServices
from server.fetch import Caller, FetchRules, SourceResolver
from server.files import FileStore
from server.jobs import JobQueue
from server.keys import KEYS_FILE, KeyRing
from server.signing import load_signer
from server.webhooks import Webhooks
from server.worker import Rhythm, Worker
from server.workshop import Workshop
from tests.server.guard import sitecustomize as guard

APP = "fal-ai/video-as-prompt"

# Enough for `file_kind` to know them by; nothing decodes them here.
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"video " * 100
PNG = b"\x89PNG\r\n\x1a\n" + b"picture " * 100
BROKEN_PNG = PNG + b"broken"

FAST = Rhythm(poll_s=0.02, tend_s=0.05, heartbeat_s=5.0, report_delays_s=(0.1, 0.1, 0.1))


def data_uri(data: bytes, kind: str) -> str:
    """Give data as a URI that carries it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def wait_until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something to become true."""
    ends_at = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < ends_at, "It never became so."
        time.sleep(0.01)


@dataclass
class FakeGeneration:
    """Stands in for the GPU run. Holds each run at its first step until `gate` is set; then takes `step_s` per step."""

    steps: int = 3
    step_s: float = 0.01
    gate: threading.Event = field(default_factory=threading.Event)
    specs: list[GenerationSpec] = field(default_factory=list)

    def __call__(
        self, spec: GenerationSpec, pipe: Any, folder: Path, on_progress: Callable[[Progress], None]
    ) -> GenerationResult:
        """Make files that only look like a video."""
        self.specs.append(spec)
        on_progress(Progress("denoising", 0, self.steps))
        while not self.gate.wait(0.02):
            on_progress(Progress("denoising", 0, self.steps))
        for step in range(1, self.steps + 1):
            time.sleep(self.step_s)
            on_progress(Progress("denoising", step, self.steps))
        video, comparison, poster = (folder / name for name in ("a.mp4", "b.mp4", "c.jpg"))
        video.write_bytes(MP4 + str(spec.seed).encode())
        comparison.write_bytes(MP4)
        poster.write_bytes(b"\xff\xd8\xff")
        return GenerationResult(video, comparison, poster, spec.settings(), 0.5)

    def check_media(self, request: GenerationRequest) -> None:
        """Refuse one picture."""
        if request.image.read_bytes() == BROKEN_PNG:
            raise MediaError("image", "The picture is broken.")


@dataclass(frozen=True)
class ApiServer:
    """A running server."""

    url: str
    services: ApiServices
    generation: FakeGeneration


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """Run an app on a free loopback port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join()


def make_services(
    folder: Path, *, allow_private: bool = True, database_url: str | None = None, files_url: str | None = None
) -> ApiServices:
    """Give what the API stands on, in one folder, unless URLs say that database or files are elsewhere."""
    files = FileStore(files_url or folder / "files", folder / "cache")
    return ApiServices(
        queue=JobQueue(database_url or f"sqlite:///{folder / 'queue.sqlite'}", files),
        files=files,
        keys=KeyRing(folder / KEYS_FILE),
        signer=load_signer(folder / "signing.key"),
        scratch_dir=folder / "scratch",
        rules=FetchRules(allow_private=allow_private, timeout_s=10.0),
    )


@contextmanager
def run_server(
    folder: Path, *, database_url: str | None = None, files_url: str | None = None, **changes: Any
) -> Iterator[ApiServer]:
    """Run the API with a queue and a worker, all as make_services has it. changes: of the services."""
    services = replace(make_services(folder, database_url=database_url, files_url=files_url), **changes)
    generation = FakeGeneration()
    generation.gate.set()
    caller = Caller(services.rules, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    workshop = Workshop(
        load=lambda: (None, ModelFacts("fake")),
        resolve=SourceResolver(caller, services.files).resolve,
        store=services.files,
        folder=folder / "work",
        generate=generation,
        check_media=generation.check_media,
    )
    webhooks = Webhooks(services.signer, caller, services.files)
    worker = Worker(services.queue, workshop, folder / "slots", on_finished=webhooks.deliver, rhythm=FAST)
    with ExitStack() as stack:
        stack.callback(services.queue.close)
        worker.start()
        stack.callback(worker.stop)
        stack.callback(generation.gate.set)
        url = stack.enter_context(serve(FastAPI(routes=api_routes(services))))
        yield ApiServer(url, services, generation)


class idle_server:  # noqa: N801 - reads as a function where it is used
    """A server without a worker, for what no generation is needed for. changes: of its services."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self._services = replace(make_services(folder), **changes)
        self._serving = serve(FastAPI(routes=api_routes(self._services)))

    def __enter__(self) -> httpx.Client:
        self._client = httpx.Client(base_url=self._serving.__enter__(), trust_env=False)
        return self._client

    def __exit__(self, *args: Any) -> None:
        self._client.close()
        self._serving.__exit__(*args)
        self._services.queue.close()


def forbid_foreign_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any connection of this process beyond loopback an error."""
    monkeypatch.setattr(socket.socket, "connect", guard.connect)
    monkeypatch.setattr(socket, "getaddrinfo", guard.lookup)
