"""The official clients, unchanged, against a running server: Python's fal-client and JavaScript's @fal-ai/client."""

import asyncio
import base64
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import fal_client
import fal_client.client
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipeline.spec import GenerationRequest
from server.fal_hook import sitecustomize as hook
from server.keys import KEYS_FILE, KeyRing
from server.snippets import curl_snippet, javascript_snippet, python_snippet
from tests.server.api_server import (
    APP,
    BROKEN_PNG,
    MP4,
    PNG,
    ApiServer,
    forbid_foreign_packets,
    idle_server,
    run_server,
    wait_until,
)
from tests.server.guard import sitecustomize as guard
from tests.server.postgres import run_postgres

# fal-client never closes the connections of its uploads.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

JS = Path(__file__).parent / "js"
HOOK = Path(hook.__file__).parent
GUARD = Path(guard.__file__).parent
# For curl, a proxy that nobody runs stands between it and every other host.
DEAD = "http://127.0.0.1:9"
GUARDED = {"PYTHONPATH": str(GUARD), "http_proxy": DEAD, "https_proxy": DEAD, "no_proxy": "127.0.0.1"}
WHO_GUARDS = "import socket; print('guarded' if socket.getaddrinfo.__name__ == 'lookup' else 'not guarded')"

TEXTS = {"prompt": "A statue floats away.", "video_description": "A man floats away."}
PYTHON_DATA_URIS = {
    "video_url": fal_client.encode(MP4, "video/mp4"),
    "image_url": fal_client.encode(PNG, "image/png"),
}
INPUT = {**TEXTS, **PYTHON_DATA_URIS}


# What a program cannot do without, on both databases.
on_both = pytest.mark.parametrize("shared_server", ["sqlite", "postgresql"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def shared_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One server for this file, or one for each database. It is on SQLite where a test does not say."""
    database: AbstractContextManager[str | None] = nullcontext()
    if getattr(request, "param", "sqlite") == "postgresql":
        database = run_postgres()
    with database as url, run_server(tmp_path_factory.mktemp("studio"), database_url=url) as server:
        yield server


@pytest.fixture
def server(shared_server: ApiServer) -> Iterator[ApiServer]:
    """The server, whose generations run through unless a test closes the gate."""
    shared_server.generation.gate.set()
    yield shared_server
    shared_server.generation.gate.set()


@pytest.fixture
def client(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    """The Python client, with every host pointed at the server."""
    point_client(server.url, monkeypatch)
    client = fal_client.SyncClient(key="any")
    yield client
    client._client.close()
    gc.collect()  # of its uploads' connections: so that they warn here


def point_client(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_foreign_packets(monkeypatch)
    for name, value in hook.addresses(url).items():
        monkeypatch.setattr(fal_client.client, name, value)


# Python


@on_both
def test_python_subscribes_and_downloads_the_video(client: fal_client.SyncClient) -> None:
    """`subscribe` tells the states in order, brings the logs, and ends with a file that can be fetched."""
    updates: list[Any] = []

    result = client.subscribe(APP, INPUT | {"seed": 7}, with_logs=True, interval=0.02, on_queue_update=updates.append)

    video = result["video"]
    assert (video["content_type"], video["file_size"]) == ("video/mp4", len(MP4) + 1)
    assert httpx.get(video["url"], trust_env=False).content == MP4 + b"7"
    assert isinstance(updates[-1], fal_client.Completed)
    assert updates[-1].metrics == {"inference_time": 0.5}
    assert [line["message"] for line in updates[-1].logs][-2:] == ["denoising 3/3", "storing"]
    order = [fal_client.Queued, fal_client.InProgress, fal_client.Completed]
    places = [order.index(type(update)) for update in updates]
    assert places == sorted(places)


def test_python_sends_every_field_by_its_own_name(client: fal_client.SyncClient, server: ApiServer) -> None:
    """What the program asks for is what the generation is given."""
    asked = {"seed": 5, "num_frames": 81, "fps": 24, "aspect_ratio": "16:9", "resolution": "720p", "guidance_scale": 3}

    client.run(APP, INPUT | asked | {"enable_safety_checker": False})

    spec = server.generation.specs[-1]
    assert {name: getattr(spec, name) for name in asked} == asked
    assert (spec.prompt, spec.video_description) == (TEXTS["prompt"], TEXTS["video_description"])
    assert spec.enable_safety_checker is False
    assert (spec.reference_video.read_bytes(), spec.image.read_bytes()) == (MP4, PNG)


@on_both
def test_python_submits_looks_cancels_and_sees_the_end(client: fal_client.SyncClient, server: ApiServer) -> None:
    """A running request that is cancelled ends as client_cancelled and yields no video."""
    server.generation.gate.clear()
    handle = client.submit(APP, INPUT)
    wait_until(lambda: isinstance(handle.status(), fal_client.InProgress))
    waiting = client.submit(APP, INPUT, priority="low")
    position = waiting.status()

    waiting.cancel()
    handle.cancel()

    assert position == fal_client.Queued(position=0)
    for cancelled in (handle, waiting):
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            cancelled.get(interval=0.02)
        assert (caught.value.status_code, caught.value.error_type) == (499, "client_cancelled")
        ended = client.status(APP, cancelled.request_id)
        assert isinstance(ended, fal_client.Completed)
        assert (ended.error, ended.error_type) == ("The generation was stopped.", "client_cancelled")


def test_python_cancels_by_itself_when_its_own_time_is_over(client: fal_client.SyncClient, server: ApiServer) -> None:
    """A client timeout leaves no generation behind."""
    server.generation.gate.clear()

    with pytest.raises(fal_client.FalClientTimeoutError) as caught:
        client.subscribe(APP, INPUT, client_timeout=1.2, interval=0.05)

    request_id = caught.value.request_id
    assert request_id is not None
    wait_until(lambda: isinstance(client.status(APP, request_id), fal_client.Completed))
    assert client.status(APP, request_id).error_type in ("client_cancelled", "request_timeout")


@on_both
def test_python_gets_the_faults_of_its_input_with_the_result(client: fal_client.SyncClient) -> None:
    """A bad input is taken at submit; the result is 422 with a place for each fault."""
    handle = client.submit(APP, {**PYTHON_DATA_URIS, "video_description": "x", "num_frames": 50, "fps": 900})

    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        handle.get()

    assert caught.value.status_code == 422
    assert [(fault["loc"], fault["type"]) for fault in caught.value.message] == [  # type: ignore[attr-defined]
        (["body", "prompt"], "missing"),
        (["body", "num_frames"], "value_error"),
        (["body", "fps"], "less_than_equal"),
    ]


def test_python_learns_which_file_was_broken(client: fal_client.SyncClient) -> None:
    """A fault found only in the job has the wire's name of its field."""
    broken = INPUT | {"image_url": fal_client.encode(BROKEN_PNG, "image/png")}

    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.subscribe(APP, broken, interval=0.02)

    fault = {"loc": ["body", "image_url"], "msg": "The picture is broken.", "type": "image_load_error"}
    assert caught.value.message == [fault]  # type: ignore[comparison-overlap]


@on_both
def test_python_start_timeout_ends_a_request_that_waits(client: fal_client.SyncClient, server: ApiServer) -> None:
    """A request that did not begin in time is 504 request_timeout, and the client does not repeat it."""
    server.generation.gate.clear()
    first = client.submit(APP, INPUT)

    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.subscribe(APP, INPUT, start_timeout=1.1, interval=0.05)

    assert (caught.value.status_code, caught.value.error_type) == (504, "request_timeout")
    assert caught.value.response_headers["x-fal-request-timeout-type"] == "user"
    first.cancel()


@on_both
@pytest.mark.parametrize("repository", ["fal_v3", "fal"])
def test_python_uploads_a_file_and_uses_its_url(
    client: fal_client.SyncClient, server: ApiServer, tmp_path: Path, repository: Any
) -> None:
    """An uploaded file can be downloaded without a key and is used as input without a network fetch."""
    (clip := tmp_path / "my clip.mp4").write_bytes(MP4)

    url = client.upload_file(clip, repository=repository)
    client.run(APP, INPUT | {"video_url": url.replace("127.0.0.1", "other.invalid")})

    answer = httpx.get(url, trust_env=False)
    assert (answer.content, answer.headers["content-type"]) == (MP4, "video/mp4")
    assert url.endswith("/my_clip.mp4")
    assert server.generation.specs[-1].reference_video.read_bytes() == MP4


def test_python_uploads_bytes_without_a_name(client: fal_client.SyncClient) -> None:
    """A file without a name gets the extension of its type."""
    url = client.upload(PNG, "image/png")

    assert url.endswith(".png")
    assert httpx.get(url, trust_env=False).content == PNG


def test_python_says_how_long_files_are_wanted(
    client: fal_client.SyncClient, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an upload, whichever way it takes, and for what a request makes."""
    files, now = server.services.files, datetime.now(UTC)
    brief = fal_client.StorageSettings(expires_in="1h")
    wish = {"X-Fal-Object-Lifecycle-Preference": json.dumps({"expiration_duration_seconds": 60})}

    urls = [client.upload(PNG, "image/png", repository=way, lifecycle=brief) for way in ("fal_v3", "fal")]
    monkeypatch.setattr(fal_client.client, "MULTIPART_THRESHOLD", 100)
    urls.append(client.upload(PNG, "image/png", "large.png", lifecycle=brief))
    client.upload(PNG, "image/png", lifecycle=fal_client.StorageSettings(expires_in="never"))
    handle = client.submit(APP, INPUT, headers=wish)

    assert files.overdue(now + timedelta(minutes=59)) == {}
    over = files.overdue(now + timedelta(minutes=61))
    assert {url.partition("/files/")[2] for url in urls} == over.keys()
    job = server.services.queue.get(handle.request_id)
    assert job is not None
    assert job.request is not None
    assert job.request.keep_s == 60


def test_python_uploads_large_files_in_parts(
    client: fal_client.SyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that arrive together and in any order become the file again."""
    monkeypatch.setattr(fal_client.client, "MULTIPART_THRESHOLD", 1000)
    monkeypatch.setattr(fal_client.client, "MULTIPART_CHUNK_SIZE", 300)
    content = os.urandom(4567)
    (clip := tmp_path / "large.mp4").write_bytes(content)

    from_file, from_bytes = client.upload_file(clip), client.upload(content, "video/mp4", "b.mp4")

    assert httpx.get(from_file, trust_env=False).content == content
    assert httpx.get(from_bytes, trust_env=False).content == content


def test_python_uses_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server has keys, the client's own opens queue and uploads, and another one is refused at once."""
    keys = KeyRing(tmp_path / KEYS_FILE)
    key = keys.create("ada", datetime.now(UTC))
    with idle_server(tmp_path, keys=keys) as web:
        point_client(str(web.base_url), monkeypatch)
        client, stranger = fal_client.SyncClient(key=key), fal_client.SyncClient(key="some:body")

        urls = [client.upload(PNG, "image/png", repository=way) for way in ("fal_v3", "fal")]
        handle = client.submit(APP, INPUT)
        with pytest.raises(fal_client.FalClientHTTPError) as refused:
            stranger.status(APP, handle.request_id)

        assert isinstance(handle.status(), fal_client.Queued)
        assert [web.get(url).content for url in urls] == [PNG, PNG]
        assert refused.value.status_code == 401
        for each in (client, stranger):
            each._client.close()
    gc.collect()


@on_both
def test_python_async_client_does_the_same(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The asynchronous client uploads, subscribes and cancels."""
    point_client(server.url, monkeypatch)

    async def use() -> tuple[dict[str, Any], Any]:
        client = fal_client.AsyncClient(key="any")
        http = await client._client
        url = await client.upload(MP4, "video/mp4", "a.mp4")
        result = await client.subscribe(APP, INPUT | {"video_url": url}, interval=0.02)
        server.generation.gate.clear()
        handle = await client.submit(APP, INPUT)
        await handle.cancel()
        async for status in handle.iter_events(interval=0.02):
            ended = status
        await http.aclose()
        return result, ended

    result, ended = asyncio.run(use())

    assert result["video"]["content_type"] == "video/mp4"
    assert ended.error_type == "client_cancelled"


@on_both
def test_a_webhook_arrives_signed(client: fal_client.SyncClient, server: ApiServer) -> None:
    """A receiver that follows fal's instructions finds the signature good and the payload equal to the result."""
    with webhook_receiver(answers=[500, 200]) as (url, received):
        handle = client.submit(APP, INPUT, webhook_url=f"{url}/hook?order=5&name=a%20b")
        _, first = received.get(timeout=10), received.get(timeout=10)

    path, headers, body = first
    assert path == "/hook?order=5&name=a%20b"
    assert json.loads(body) == {
        "request_id": handle.request_id,
        "gateway_request_id": handle.request_id,
        "status": "OK",
        "error": None,
        "payload": handle.get(),
    }
    check_signature(server.url, headers, body)


@on_both
def test_a_webhook_tells_bad_input_too(client: fal_client.SyncClient) -> None:
    """A request that could not run ends as ERROR, with the faults as payload."""
    with webhook_receiver(answers=[200]) as (url, received):
        client.submit(APP, {**INPUT, "prompt": ""}, webhook_url=url)
        _, _, body = received.get(timeout=10)

    told = json.loads(body)
    assert (told["status"], told["error"]) == ("ERROR", "Invalid status code: 422")
    assert told["payload"]["detail"][0]["loc"] == ["body", "prompt"]


class webhook_receiver:  # noqa: N801 - reads as a function where it is used
    """A receiver on loopback that answers with the given codes in turn and keeps what came."""

    def __init__(self, answers: list[int]) -> None:
        received: SimpleQueue[tuple[str, dict[str, str], bytes]] = SimpleQueue()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received.put((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(answers.pop(0) if answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._received = received

    def __enter__(self) -> tuple[str, SimpleQueue[tuple[str, dict[str, str], bytes]]]:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}", self._received

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def check_signature(server_url: str, headers: dict[str, str], body: bytes) -> None:
    """Do what fal tells receivers to do. Raises InvalidSignature."""
    [key] = httpx.get(f"{server_url}/fal/rest/.well-known/jwks.json", trust_env=False).json()["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "=="))
    names = ("request-id", "user-id", "timestamp")
    message = "\n".join([*(headers[f"x-fal-webhook-{name}"] for name in names), hashlib.sha256(body).hexdigest()])
    public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), message.encode())


# JavaScript


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The JavaScript client, installed once beside the scripts."""
    if shutil.which("npm") is None:
        pytest.fail("These tests need Node 20 with npm: install it (Debian, Ubuntu: sudo apt-get install nodejs npm).")
    installed = JS / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (JS / "package-lock.json").stat().st_mtime:
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=JS, check=True)
        installed.touch()
    return JS / "node_modules"


def run_js(scenario: str, server: ApiServer, **given: Any) -> Any:
    command = ["node", "--import", "./loopback.mjs", "scenarios.mjs", scenario, server.url, json.dumps(given)]
    done = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def js_server(server: ApiServer, node_modules: Path) -> ApiServer:
    """The server, with the JavaScript client installed."""
    return server


@on_both
@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_javascript_subscribes_with_files_in_the_input(js_server: ApiServer, mode: str) -> None:
    """Blobs in the input are uploaded, the states come in order, and the logs add up, polling or streaming."""
    given = {"video": base64.b64encode(MP4).decode(), "image": base64.b64encode(PNG).decode()}

    seen = run_js("subscribe", js_server, input=TEXTS | {"seed": 9}, mode=mode, **given)

    video = seen["result"]["data"]["video"]
    assert httpx.get(video["url"], trust_env=False).content == MP4 + b"9"
    assert js_server.services.queue.get(seen["result"]["requestId"]) is not None
    assert seen["updates"][-1]["status"] == "COMPLETED"
    messages = seen["updates"][-1]["logs"]
    assert messages[-4:] == ["denoising 1/3", "denoising 2/3", "denoising 3/3", "storing"]
    assert len(messages) == len(set(messages))


def test_javascript_submits_looks_cancels_and_sees_the_end(js_server: ApiServer) -> None:
    """A cancelled request completes with its reason, and its result is an ApiError with the request's id."""
    js_server.generation.gate.clear()

    seen = run_js("queue", js_server, input=INPUT)

    assert seen["status"]["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert seen["completed"]["error_type"] == "client_cancelled"
    assert (seen["error"]["status"], seen["error"]["requestId"]) == (499, seen["requestId"])


def test_javascript_streams_each_log_line_once(js_server: ApiServer) -> None:
    """Events of the stream carry only new lines, and the last event is the completed status."""
    seen = run_js("stream", js_server, input=INPUT)

    messages = [line["message"] for event in seen["events"] for line in event.get("logs", [])]
    assert messages[-2:] == ["denoising 3/3", "storing"]
    assert len(messages) == len(set(messages))
    assert seen["done"]["status"] == "COMPLETED"


def test_javascript_runs_to_the_end(js_server: ApiServer) -> None:
    """The synchronous call answers with the video."""
    seen = run_js("run", js_server, input=INPUT)

    assert seen["data"]["video"]["content_type"] == "video/mp4"
    assert js_server.services.queue.get(seen["requestId"]) is not None


def test_javascript_gets_a_validation_error_with_its_field(js_server: ApiServer) -> None:
    """A bad field arrives as a ValidationError that is found by the field's name."""
    seen = run_js("invalid", js_server, input=INPUT | {"aspect_ratio": "1:1"}, field="aspect_ratio")

    assert (seen["isValidationError"], seen["status"]) == (True, 422)
    assert [fault["type"] for fault in seen["faults"]] == ["literal_error"]


def test_javascript_knows_its_start_timeout(js_server: ApiServer) -> None:
    """A request that did not begin in time is the user's own timeout, which the client does not repeat."""
    js_server.generation.gate.clear()
    blocking = httpx.post(f"{js_server.url}/fal/queue/{APP}", json=INPUT, trust_env=False).json()

    seen = run_js("late", js_server, input=INPUT)

    assert (seen["status"], seen["isUserTimeout"]) == (504, True)
    httpx.put(blocking["cancel_url"], trust_env=False)


@pytest.mark.parametrize(("size", "way"), [(5_000, "whole"), (91 * 2**20, "in parts")])
def test_javascript_uploads_files(js_server: ApiServer, size: int, way: str) -> None:
    """A file arrives whole, be it in one piece or, above 90 MiB, in parts."""
    url = run_js("upload", js_server, size=size)["url"]

    tail = httpx.get(url, headers={"Range": "bytes=-4"}, trust_env=False)
    assert url.endswith("/a_clip.mp4")
    assert (tail.content, tail.headers["content-range"]) == (b"\x07\1\2\3", f"bytes {size - 4}-{size - 1}/{size}")


# Programs as the page shows them, and programs that know nothing of us


def settings(server: ApiServer) -> dict[str, Any]:
    """What stands on the page, with its files uploaded here."""
    given = {"reference_video": "video_url", "image": "image_url"}
    urls = {}
    for name, data, kind in (("reference_video", MP4, "video/mp4"), ("image", PNG, "image/png")):
        answer = httpx.post(
            f"{server.url}/fal/cdn/files/upload", content=data, headers={"Content-Type": kind}, trust_env=False
        )
        urls[name] = answer.json()["access_url"]
    assert given.keys() == urls.keys()
    texts = {"prompt": "It's “done”:\n\\o/ $HOME `x`", "video_description": "ü </script>"}
    return GenerationRequest(**texts, **urls, seed=3).model_dump(exclude={*urls}) | urls


def run_program(command: list[str], **environment: str) -> str:
    """Run a program as a user would, in an environment that holds nothing of ours but guards against calls abroad."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(command, env=kept | GUARDED | environment, cwd=JS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def assert_made(server: ApiServer, url: str) -> None:
    assert httpx.get(url, trust_env=False).content == MP4 + b"3"
    assert server.generation.specs[-1].prompt == "It's “done”:\n\\o/ $HOME `x`"


def test_the_curl_snippet_runs_as_it_stands(server: ApiServer) -> None:
    """The command makes the video of the settings, whatever characters they hold."""
    printed = run_program(["bash", "-c", curl_snippet(settings(server), server.url, needs_key=False)])

    assert_made(server, json.loads(printed)["video"]["url"])


def test_the_python_snippet_runs_as_it_stands(server: ApiServer) -> None:
    """The program makes the video of the settings."""
    url = run_program([sys.executable, "-c", python_snippet(settings(server), server.url, needs_key=False)])

    assert_made(server, url)


def test_the_javascript_snippet_runs_as_it_stands(js_server: ApiServer) -> None:
    """The module makes the video of the settings."""
    snippet = javascript_snippet(settings(js_server), js_server.url, needs_key=False)

    url = run_program(["node", "--import", "./loopback.mjs", "--input-type=module", "--eval", snippet])

    assert_made(js_server, url)


PROGRAM = "import fal_client; print(fal_client.upload(b'x', 'video/mp4'))"
# The hook hands on to the sitecustomize behind it: the guard.
HOOK_PATH = f"{HOOK}:{GUARD}"


def test_the_start_up_hook_points_a_program_that_knows_nothing_of_us(server: ApiServer) -> None:
    """With the hook's folder on PYTHONPATH and the address in a variable, even uploads come here."""
    url = run_program([sys.executable, "-c", PROGRAM], PYTHONPATH=HOOK_PATH, FAL_STUDIO_URL=server.url, FAL_KEY="any")

    assert url.startswith(f"{server.url}/fal/cdn/files/uploads/")


def test_the_start_up_hook_never_leaves_a_client_half_pointed() -> None:
    """Without the address the import fails with a sentence; other programs, and other hooks, run as ever."""
    unset = subprocess.run(
        [sys.executable, "-c", "import fal_client"], env={"PYTHONPATH": HOOK_PATH}, capture_output=True, text=True
    )
    other = run_program([sys.executable, "-c", WHO_GUARDS], PYTHONPATH=HOOK_PATH)

    assert unset.returncode != 0
    assert "Set FAL_STUDIO_URL to the address of your studio" in unset.stderr
    assert other == "guarded"
