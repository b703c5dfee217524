"""The fal API over real HTTP: what each endpoint answers, to whom, and what it never does."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from server import api, calls, uploads
from server.api import api_routes
from server.calls import base_url
from server.fetch import FetchRules
from server.job import Limits
from server.jobs import JobQueue
from server.keys import KEYS_FILE, KeyRing
from tests.server.api_server import (
    APP,
    MP4,
    PNG,
    ApiServer,
    data_uri,
    forbid_foreign_packets,
    idle_server,
    make_services,
    run_server,
    wait_until,
)

QUEUE, RUN = f"/fal/queue/{APP}", f"/fal/run/{APP}"
PROXY = "/api/fal/proxy"


INPUT = {
    "prompt": "A statue floats away.",
    "video_description": "A man floats away.",
    "video_url": data_uri(MP4, "video/mp4"),
    "image_url": data_uri(PNG, "image/png"),
}


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One open server with a worker for this file."""
    with run_server(tmp_path_factory.mktemp("studio")) as server:
        yield server


@pytest.fixture
def server(shared_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """The server, whose generations run through unless a test closes the gate."""
    forbid_foreign_packets(monkeypatch)
    shared_server.generation.gate.set()
    yield shared_server
    shared_server.generation.gate.set()


@pytest.fixture
def web(server: ApiServer) -> Iterator[httpx.Client]:
    """A client of the server that knows nothing of fal."""
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


def submit(web: httpx.Client, **changes: Any) -> dict[str, Any]:
    answer = web.post(QUEUE, json=INPUT | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait_for(web: httpx.Client, job: dict[str, Any], state: str = "COMPLETED") -> dict[str, Any]:
    wait_until(lambda: web.get(job["status_url"]).json()["status"] == state)
    return web.get(job["status_url"]).json()


def result_of(web: httpx.Client, **changes: Any) -> httpx.Response:
    job = submit(web, **changes)
    wait_for(web, job)
    return web.get(job["response_url"])


def faults(answer: httpx.Response) -> list[tuple[list[str], str]]:
    assert answer.status_code == 422, answer.text
    return [(fault["loc"], fault["type"]) for fault in answer.json()["detail"]]


# Queue


def test_a_request_goes_from_submit_to_result(web: httpx.Client) -> None:
    """Submit, status and result answer with their codes, and every address in them works."""
    job = submit(web)
    done = wait_for(web, job)
    result = web.get(job["response_url"])

    assert done["metrics"] == {"inference_time": 0.5}
    assert web.get(job["status_url"]).status_code == 200
    assert web.get(result.json()["video"]["url"]).content.startswith(MP4)
    assert web.get(job["response_url"]).json() == result.json()
    assert result.headers["x-fal-request-id"] == job["request_id"]


def test_a_request_under_way_has_no_result_yet(web: httpx.Client, server: ApiServer) -> None:
    """The status is 202, and the result is 400: a client would take a 2xx for the video."""
    server.generation.gate.clear()
    job = submit(web)
    running = wait_for(web, job, "IN_PROGRESS")
    behind = submit(web)

    status, result = web.get(job["status_url"]), web.get(job["response_url"])

    assert (status.status_code, running["logs"]) == (202, None)
    assert (result.status_code, result.json()) == (400, {"detail": "Request is still in progress"})
    assert web.get(behind["status_url"]).json()["queue_position"] == 0
    for one in (job, behind):
        web.put(one["cancel_url"])


@pytest.mark.parametrize(("asked", "given"), [("true", True), ("1", True), ("false", False), ("0", False), ("", False)])
def test_logs_come_when_asked_for(web: httpx.Client, asked: str, given: bool) -> None:
    """Python says true and false, JavaScript 1 and 0; without logs the key is there and null."""
    job = submit(web)
    wait_for(web, job)

    logs = web.get(job["status_url"], params={"logs": asked}).json()["logs"]

    if given:
        assert logs[-1].keys() == {"message", "level", "source", "timestamp"}
        assert datetime.fromisoformat(logs[-1]["timestamp"]).tzinfo
    else:
        assert logs is None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", "detail"),
        ("GET", "/status", "detail"),
        ("GET", "/status/stream", "detail"),
        ("PUT", "/cancel", "status"),
    ],
)
def test_an_unknown_request_is_not_found(web: httpx.Client, method: str, path: str, body: str) -> None:
    """An id that nobody got is 404 everywhere."""
    answer = web.request(method, f"{QUEUE}/requests/764cabcf-b745-4b3e-ae38-1200304cf45b{path}")

    assert answer.status_code == 404
    assert answer.json().keys() == {body}


def test_cancelling_tells_what_happened(web: httpx.Client, server: ApiServer) -> None:
    """A running request stops and is 499; cancelling it again, or a finished one, is 400. No body is read."""
    server.generation.gate.clear()
    job = submit(web)
    wait_for(web, job, "IN_PROGRESS")

    first = web.put(job["cancel_url"], headers={"Content-Type": "application/json"})
    ended = wait_for(web, job)
    again = web.put(job["cancel_url"])

    assert (first.status_code, first.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert (ended["error_type"], ended["error"]) == ("client_cancelled", "The generation was stopped.")
    result = web.get(job["response_url"])
    assert (result.status_code, result.headers["x-fal-error-type"]) == (499, "client_cancelled")


def read_events(web: httpx.Client, job: dict[str, Any], logs: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Give the events of a stream, and its comments."""
    events, comments = [], []
    with web.stream("GET", job["status_url"] + "/stream", params={"logs": logs}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith(":"):
                comments.append(line)
            elif line:
                events.append(json.loads(line.removeprefix("data: ")))
    return events, comments


def test_the_stream_tells_each_change_with_new_lines_only(web: httpx.Client, server: ApiServer) -> None:
    """States never go back, each log line comes once, and the end closes it."""
    server.generation.gate.clear()
    job = submit(web)
    threading.Timer(0.4, server.generation.gate.set).start()

    events, _ = read_events(web, job, "1")

    everything = web.get(job["status_url"], params={"logs": "1"}).json()["logs"]
    assert [line for event in events for line in event.get("logs", [])] == everything
    order = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    places = [order.index(event["status"]) for event in events]
    assert places == sorted(places)
    assert places[-1] == 2


def test_a_silent_stream_stays_open(web: httpx.Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing changes, a comment now and then tells proxies that somebody is there."""
    monkeypatch.setattr(api, "KEEP_ALIVE_S", 0.15)
    server.generation.gate.clear()
    job = submit(web)
    threading.Timer(0.8, server.generation.gate.set).start()

    events, comments = read_events(web, job, "0")

    assert comments
    assert events[-1]["status"] == "COMPLETED"


def test_the_stream_of_a_finished_request_is_one_event(web: httpx.Client) -> None:
    """Whoever comes late gets the end at once; without logs they are null."""
    job = submit(web)
    wait_for(web, job)

    [event], _ = read_events(web, job, "0")

    assert (event["status"], event["logs"]) == ("COMPLETED", None)


@pytest.mark.parametrize("body", [b"", b"no json", b"{'a': 1}", b"\xff", b"[" * 100_000], ids=lambda b: str(b[:8]))
def test_a_body_that_is_no_json_fails_at_once(web: httpx.Client, body: bytes) -> None:
    """Such a call never becomes a request."""
    answer = web.post(QUEUE, content=body)

    assert answer.status_code == 400
    assert answer.json() == {"detail": "The body is not valid JSON.", "error_type": "bad_request"}


@pytest.mark.parametrize("value", ["soon", "nan", "-1", "0", "inf", ""])
def test_a_start_timeout_has_to_be_a_number(web: httpx.Client, value: str) -> None:
    """Anything else is a bad request."""
    answer = web.post(QUEUE, json=INPUT, headers={"X-Fal-Request-Timeout": value})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert answer.headers["x-fal-error-type"] == "bad_request"


def test_a_body_that_is_too_large_is_refused(web: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds while the body arrives."""
    monkeypatch.setattr(api, "MAX_INPUT_BYTES", 2**20)

    answer = web.post(QUEUE, json=INPUT | {"prompt": "x" * (2**20 + 1)})

    assert (answer.status_code, answer.json()) == (
        413,
        {"detail": "The body is larger than 1 MB; send a smaller file."},
    )


def test_a_full_queue_is_told(tmp_path: Path) -> None:
    """The sentence of the queue arrives with the one code that makes clients come back later."""
    services = make_services(tmp_path)
    services.queue.close()
    queue = JobQueue(f"sqlite:///{tmp_path / 'small.sqlite'}", services.files, limits=Limits(active_per_owner=1))

    with idle_server(tmp_path, queue=queue) as web:
        first, second = web.post(QUEUE, json=INPUT), web.post(QUEUE, json=INPUT)

    assert (first.status_code, second.status_code) == (200, 429)
    assert "generations in the queue" in second.json()["detail"]


def test_the_same_idempotency_key_is_the_same_request(web: httpx.Client) -> None:
    """A program that is not sure whether its submit arrived may send it again."""
    headers = {"Idempotency-Key": "order-5"}

    first, second = (web.post(QUEUE, json=INPUT, headers=headers).json() for _ in range(2))

    assert first["request_id"] == second["request_id"]


# Input files


@pytest.mark.parametrize(
    ("field", "uri", "kind"),
    [
        ("image_url", "data:image/png;base64,!!!!", "file_download_error"),
        ("image_url", "data:image/png;base64,AAA", "file_download_error"),
        ("image_url", "data:image/png,plain", "file_download_error"),
        ("image_url", "data:", "file_download_error"),
        ("image_url", data_uri(MP4, "image/png"), "image_load_error"),
        ("image_url", data_uri(b"hello", "image/png"), "image_load_error"),
        ("video_url", data_uri(PNG, "video/mp4"), "unsupported_video_format"),
        ("video_url", data_uri(b"#EXTM3U\nfile:///etc/passwd", "video/mp4"), "unsupported_video_format"),
        ("video_url", data_uri(b"", "video/mp4"), "unsupported_video_format"),
    ],
)
def test_a_data_uri_is_looked_at(web: httpx.Client, field: str, uri: str, kind: str) -> None:
    """Not the declared type counts but the content; the fault comes with the result."""
    assert faults(result_of(web, **{field: uri})) == [(["body", field], kind)]


def test_a_data_uri_is_measured_before_it_is_decoded(tmp_path: Path) -> None:
    """A file that is too large is a fault of its field."""
    with idle_server(tmp_path, max_upload_bytes=1000) as web:
        answer = result_of(web, video_url=data_uri(MP4 * 2, "video/mp4"))

    assert faults(answer) == [(["body", "video_url"], "file_too_large")]


def test_a_file_that_is_gone_is_told_without_a_fetch(web: httpx.Client, server: ApiServer) -> None:
    """An address of ours whose file was deleted is a fault at once."""
    url = f"{server.url}/fal/cdn/files/uploads/{'a' * 32}/gone.mp4"

    assert faults(result_of(web, video_url=url)) == [(["body", "video_url"], "file_download_error")]


def test_a_result_can_be_the_next_input(web: httpx.Client, server: ApiServer) -> None:
    """The address of a video made here works as input whatever host it is written with."""
    url = result_of(web).json()["video"]["url"]
    elsewhere = urlsplit(url)._replace(netloc="studio.invalid", scheme="https").geturl()

    for same in (url, elsewhere):
        assert result_of(web, video_url=same).status_code == 200
        assert server.generation.specs[-1].reference_video.read_bytes().startswith(MP4)


def test_an_input_that_cannot_be_fetched_is_told_at_its_field(web: httpx.Client) -> None:
    """The submit is taken at once; the job finds the fault."""
    answer = result_of(web, image_url="http://127.0.0.1:1/a.png")

    assert faults(answer) == [(["body", "image_url"], "file_download_error")]


def test_a_webhook_on_a_private_address_is_refused_unless_opened(tmp_path: Path) -> None:
    """The sender is told at once, rather than waiting for a call that never comes."""
    with idle_server(tmp_path, rules=FetchRules()) as web:
        answer = web.post(QUEUE, json=INPUT, params={"fal_webhook": "http://127.0.0.1:9/hook"})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert answer.json()["detail"].startswith("The webhook cannot be called:")


# Synchronous call


def test_the_synchronous_call_answers_with_the_video(web: httpx.Client) -> None:
    """One call, one video, under the queue's id."""
    answer = web.post(RUN, json=INPUT)

    assert answer.status_code == 200
    assert web.get(f"{QUEUE}/requests/{answer.headers['x-fal-request-id']}").json() == answer.json()


def test_the_synchronous_call_answers_with_the_faults(web: httpx.Client) -> None:
    """Bad input is the answer."""
    assert faults(web.post(RUN, json=INPUT | {"fps": 0})) == [(["body", "fps"], "greater_than_equal")]


def test_a_dropped_connection_cancels_the_generation(web: httpx.Client, server: ApiServer) -> None:
    """Clients repeat a broken call: the first generation must not go on beside the second."""
    server.generation.gate.clear()
    before = len(server.generation.specs)

    with pytest.raises(httpx.ReadTimeout):
        web.post(RUN, json=INPUT, timeout=0.5)
    wait_until(lambda: server.services.queue.jobs_of("everyone", 1)[0].status.is_final)

    [job] = server.services.queue.jobs_of("everyone", 1)
    assert job.error is not None
    assert job.error.kind == "cancelled"
    assert len(server.generation.specs) <= before + 1


# Rules for every endpoint


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", QUEUE),
        ("POST", RUN),
        ("GET", f"{QUEUE}/requests/x"),
        ("POST", "/fal/queue/fal-ai/other"),
        ("POST", f"{RUN}/stream"),
        ("POST", "/fal/rest/tokens/"),
        ("POST", "/fal/rest/storage/auth/token"),
        ("GET", "/fal/rest/.well-known/jwks.json"),
        ("GET", "/fal/cdn/files/uploads/x/y"),
        ("PUT", "/fal/cdn/upload/x"),
        ("DELETE", QUEUE),
        ("OPTIONS", QUEUE),
        ("POST", f"{QUEUE}/"),
        ("GET", f"{QUEUE}/requests/x/"),
        ("POST", PROXY),
        ("POST", f"{PROXY}/"),
        ("GET", "/fal/"),
    ],
)
def test_every_answer_has_an_id_is_json_and_no_redirect(web: httpx.Client, method: str, path: str) -> None:
    """Also errors of every kind; a trailing slash is no reason to send a client elsewhere."""
    answer = web.request(method, path)

    assert answer.headers["x-fal-request-id"]
    assert answer.headers["content-type"] == "application/json"
    assert not answer.is_redirect
    assert answer.json() is not None


@pytest.mark.parametrize(
    ("path", "what"),
    [("/fal/queue/fal-ai/other", "another app"), (f"{RUN}/stream", "streamed output"), ("/fal/rest/tokens/", "tokens")],
)
def test_what_this_endpoint_does_not_have_is_not_found(web: httpx.Client, path: str, what: str) -> None:
    """Other apps, output streams and realtime tokens are 404 with a sentence."""
    answer = web.post(path, json={})

    assert (answer.status_code, list(answer.json())) == (404, ["detail"])


@pytest.mark.parametrize(
    ("public_url", "headers", "expected"),
    [
        (None, {"host": "studio.lan:7860"}, "http://studio.lan:7860"),
        (None, {"host": "[::1]:7860"}, "http://[::1]:7860"),
        (None, {"host": "inner:1", "x-forwarded-host": "out.example"}, "http://out.example"),
        (
            None,
            {"host": "inner:1", "x-forwarded-host": "out.example, inner", "x-forwarded-proto": "https, http"},
            "https://out.example",
        ),
        (None, {"host": "inner:1", "x-forwarded-proto": "javascript"}, "http://inner:1"),
        (
            "https://public.example/studio/",
            {"host": "inner:1", "x-forwarded-host": "x"},
            "https://public.example/studio",
        ),
    ],
)
def test_our_own_address_is_told_by_setting_proxy_or_call(
    public_url: str | None, headers: dict[str, str], expected: str
) -> None:
    """A setting wins, then the reverse proxy, then the call itself."""
    assert base_url(httpx.Headers(headers), "http", public_url) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["evil.example/path", "a b", "evil.example\\@x", "<script>", "user@evil.example"])
def test_a_host_that_is_none_is_refused(web: httpx.Client, host: str) -> None:
    """No address is made of text that is no host."""
    answer = web.post(QUEUE, json=INPUT, headers={"X-Forwarded-Host": host})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


def test_addresses_follow_the_reverse_proxy(web: httpx.Client) -> None:
    """All addresses of an answer are as the client sees us."""
    headers = {"X-Forwarded-Host": "studio.example", "X-Forwarded-Proto": "https"}

    job = web.post(QUEUE, json=INPUT | {"fps": 0}, headers=headers).json()

    assert job["status_url"].startswith("https://studio.example/fal/queue/fal-ai/")


# Keys


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, str, str]]:
    """A server with keys, and the keys of two owners."""
    folder = tmp_path_factory.mktemp("locked")
    keys = KeyRing(folder / KEYS_FILE)
    ada, bob = (keys.create(owner, datetime.now(UTC)) for owner in ("ada", "bob"))
    with idle_server(folder, keys=keys) as web:
        yield web, ada, bob


def authorized(key: str, scheme: str = "Key") -> dict[str, str]:
    return {"Authorization": f"{scheme} {key}"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", QUEUE),
        ("POST", RUN),
        ("GET", f"{QUEUE}/requests/x"),
        ("GET", f"{QUEUE}/requests/x/status"),
        ("GET", f"{QUEUE}/requests/x/status/stream"),
        ("PUT", f"{QUEUE}/requests/x/cancel"),
        ("POST", "/fal/rest/storage/auth/token"),
        ("POST", "/fal/rest/storage/upload/initiate"),
        ("POST", "/fal/rest/storage/upload/initiate-multipart"),
        ("POST", "/fal/cdn/files/upload"),
        ("POST", "/fal/cdn/files/upload/multipart"),
        ("PUT", "/fal/cdn/files/x/multipart/y/1"),
        ("POST", "/fal/cdn/files/x/multipart/y/complete"),
    ],
)
@pytest.mark.parametrize("authorization", [None, "Key wrong", "Key a:b", "Basic eDp5", "Bearer a.b", ""])
def test_without_a_key_nothing_happens(
    locked: tuple[httpx.Client, str, str], method: str, path: str, authorization: str | None
) -> None:
    """Once there are keys, a missing or wrong one is 401 with a sentence."""
    headers = {} if authorization is None else {"Authorization": authorization}

    answer = locked[0].request(method, path, headers=headers, json=INPUT)

    assert (answer.status_code, list(answer.json())) == (401, ["detail"])


def test_a_server_can_be_closed_before_it_has_keys(tmp_path: Path) -> None:
    """Where strangers reach it, or the page asks for a login, no key means nobody rather than everybody."""
    with idle_server(tmp_path, keys=KeyRing(tmp_path / KEYS_FILE, may_be_open=False)) as web:
        answer = web.post(QUEUE, json=INPUT, headers=authorized("any"))

    assert answer.status_code == 401


@pytest.mark.parametrize("scheme", ["Key", "Bearer", "key"])
def test_a_key_opens_the_door(locked: tuple[httpx.Client, str, str], scheme: str) -> None:
    """Both schemes of the clients are understood; the key holds a colon."""
    web, ada, _ = locked

    assert web.post(QUEUE, json=INPUT, headers=authorized(ada, scheme)).status_code == 200


def test_requests_belong_to_their_owner(locked: tuple[httpx.Client, str, str]) -> None:
    """For another owner's key they do not exist, and it cannot stop them."""
    web, ada, bob = locked
    job = web.post(QUEUE, json=INPUT, headers=authorized(ada)).json()

    for method, url in (("GET", "response_url"), ("GET", "status_url"), ("PUT", "cancel_url")):
        assert web.request(method, job[url], headers=authorized(bob)).status_code == 404
    assert web.get(job["status_url"], headers=authorized(ada)).json()["status"] == "IN_QUEUE"


def test_files_and_the_key_set_need_no_key(locked: tuple[httpx.Client, str, str]) -> None:
    """Handed-out addresses are the permission: for the put as for the download."""
    web, ada, _ = locked
    initiated = web.post(
        "/fal/rest/storage/upload/initiate", json={"file_name": "a.mp4"}, headers=authorized(ada)
    ).json()

    put = web.put(initiated["upload_url"], content=MP4, headers={"Content-Type": "video/mp4"})

    assert (put.status_code, put.json()) == (200, {})
    assert web.get(initiated["file_url"]).content == MP4
    assert web.get("/fal/rest/.well-known/jwks.json").status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_foreign_page_cannot_use_an_open_server(web: httpx.Client, origin: str) -> None:
    """A page that somebody happens to visit must not make videos on their machine, or fill its disk."""
    for path in (QUEUE, "/fal/cdn/files/upload", "/fal/rest/storage/auth/token"):
        assert web.post(path, content=json.dumps(INPUT), headers={"Origin": origin}).status_code == 403


def test_our_own_page_can_use_an_open_server(web: httpx.Client, server: ApiServer) -> None:
    """The browser names our own origin."""
    assert web.post(QUEUE, json=INPUT, headers={"Origin": server.url}).status_code == 200


# CORS


PREFLIGHT = {
    "Origin": "https://page.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,x-fal-queue-priority",
}


def test_other_origins_are_not_invited_unless_configured(web: httpx.Client) -> None:
    """Nothing allows another page to read our answers."""
    for answer in (
        web.options(QUEUE, headers=PREFLIGHT),
        web.get("/fal/rest/.well-known/jwks.json", headers=PREFLIGHT),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_configured_origin_may_call(tmp_path: Path) -> None:
    """Methods, headers and the headers a client reads are allowed, on files and on the proxy too, to this origin."""
    keys = KeyRing(tmp_path / KEYS_FILE)
    keys.create("ada", datetime.now(UTC))
    with idle_server(tmp_path, keys=keys, cors_origins=("https://page.example",)) as web:
        preflights = [web.options(path, headers=PREFLIGHT) for path in (QUEUE, PROXY, "/fal/cdn/upload/x")]
        file = web.get("/fal/cdn/files/x", headers=PREFLIGHT)
        foreign = web.get("/fal/cdn/files/x", headers={"Origin": "https://evil.example"})

    for answer in preflights:
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert answer.headers["access-control-allow-methods"] == "GET, POST, PUT"
        assert "x-fal-queue-priority" in answer.headers["access-control-allow-headers"]
    exposed = "x-fal-request-id, x-fal-error-type, x-fal-request-timeout-type, etag"
    assert file.headers["access-control-expose-headers"] == exposed
    assert "access-control-allow-origin" not in foreign.headers


# Proxy


def through_proxy(web: httpx.Client, method: str, target: str | None, **call: Any) -> httpx.Response:
    headers = {} if target is None else {"X-Fal-Target-Url": target}
    return web.request(method, PROXY, headers=headers, **call)


def test_the_proxy_answers_for_all_hosts_of_fal(web: httpx.Client, server: ApiServer) -> None:
    """Queue, run, rest and files work through it with method, query and body, and addresses name us, never fal."""
    queue = f"https://queue.fal.run/{APP}"

    submitted = through_proxy(web, "POST", queue, json=INPUT)
    job = submitted.json()
    wait_for(web, job)
    status = through_proxy(web, "GET", f"{queue}/requests/{job['request_id']}/status?logs=1")
    cancelled = through_proxy(web, "PUT", f"{queue}/requests/{job['request_id']}/cancel")
    run = through_proxy(web, "POST", f"https://fal.run/{APP}", json=INPUT)
    initiate = "/storage/upload/initiate?storage_type=fal-cdn-v3"
    rest = [through_proxy(web, "POST", f"https://{host}{initiate}") for host in ("rest.fal.ai", "rest.alpha.fal.ai")]
    file = urlsplit(run.json()["video"]["url"]).path.removeprefix("/fal/cdn")
    cdn = through_proxy(web, "GET", f"https://v3.fal.media{file}")

    assert submitted.headers["x-fal-request-id"] == job["request_id"]
    assert job["status_url"].startswith(server.url)
    assert status.json()["logs"]
    assert cancelled.json() == {"status": "ALREADY_COMPLETED"}
    assert all(answer.json()["upload_url"].startswith(server.url) for answer in rest)
    assert cdn.content.startswith(MP4)


def test_the_proxy_streams(web: httpx.Client, server: ApiServer) -> None:
    """Events come through as they happen: the first one while the generation is held."""
    server.generation.gate.clear()
    job = submit(web)
    target = f"https://queue.fal.run/{APP}/requests/{job['request_id']}/status/stream?logs=1"

    with web.stream("GET", PROXY, headers={"X-Fal-Target-Url": target}) as stream:
        lines = stream.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))
        server.generation.gate.set()
        rest = [line for line in lines if line]

    assert first["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert json.loads(rest[-1].removeprefix("data: "))["status"] == "COMPLETED"


@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "http://queue.fal.run/x",
        "https://evil.example/x",
        "https://queue.fal.run.evil.example/x",
        "https://evil.example/queue.fal.run",
        "https://queue.fal.run@evil.example/x",
        "https://user@queue.fal.run/x",
        "https://queue.fal.run:444/x",
        "https://sub.queue.fal.run/x",
        "https://QUEUE.fal.run/x",
        "queue.fal.run/x",
        "//queue.fal.run/x",
        "https://[::1/x",
        "file:///etc/passwd",
        "http://127.0.0.1/x",
    ],
)
def test_the_proxy_serves_nothing_but_fals_own_addresses(web: httpx.Client, target: str | None) -> None:
    """Anything but https and an exact host is 400 with a JSON body; nobody is called, ever."""
    answer = through_proxy(web, "POST", target, json={})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


def test_the_proxy_leads_only_to_the_named_service(web: httpx.Client) -> None:
    """No path climbs out of a host's own routes."""
    answer = through_proxy(web, "POST", "https://v3.fal.media/../rest/storage/auth/token")

    assert answer.status_code in (404, 405)


def test_fals_own_host_names_work_at_the_root(web: httpx.Client) -> None:
    """Where these names lead here, each serves its service, and the addresses it hands out work under it."""
    hosts = {name: {"Host": name} for name in ("queue.fal.run", "fal.run", "rest.fal.ai", "v3.fal.media")}

    job = web.post(f"/{APP}", json=INPUT | {"fps": 0}, headers=hosts["queue.fal.run"]).json()
    result = web.get(f"/{APP}/requests/{job['request_id']}", headers=hosts["queue.fal.run"])
    address = urlsplit(job["response_url"])
    again = web.get(address.path, headers={"Host": address.netloc})
    run = web.post(f"/{APP}", json=INPUT, headers=hosts["fal.run"])
    token = web.post("/storage/auth/token", json={}, headers=hosts["rest.fal.ai"])
    uploaded = web.post("/files/upload", content=PNG, headers=hosts["v3.fal.media"])

    assert address.netloc == "queue.fal.run"
    assert faults(result) == faults(again) == [(["body", "fps"], "greater_than_equal")]
    assert [answer.status_code for answer in (run, token, uploaded)] == [200, 200, 200]


# Files


def upload(web: httpx.Client, content: bytes, kind: str, **headers: str) -> str:
    answer = web.post("/fal/cdn/files/upload", content=content, headers={"Content-Type": kind, **headers})
    assert answer.status_code == 200, answer.text
    return answer.json()["access_url"]


@pytest.mark.parametrize(
    ("asked", "code", "content", "content_range"),
    [
        (None, 200, b"0123456789", None),
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=9-9", 206, b"9", "bytes 9-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=5-2", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
    ],
)
def test_a_player_can_seek(
    web: httpx.Client, asked: str | None, code: int, content: bytes, content_range: str | None
) -> None:
    """One range is answered as RFC 9110 says; what is no single range gives the whole file."""
    url = upload(web, b"0123456789", "video/mp4")

    answer = web.get(url, headers={"Range": asked} if asked else {})

    assert (answer.status_code, answer.content) == (code, content)
    assert answer.headers.get("content-range") == content_range
    assert answer.headers["accept-ranges"] == "bytes"


def test_a_file_can_be_asked_about(web: httpx.Client) -> None:
    """HEAD tells the size and type without the content; a range of another version gives the whole file."""
    url = upload(web, b"0123456789", "video/mp4")

    head = web.head(url)
    other = web.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    same = web.get(url, headers={"Range": "bytes=0-1", "If-Range": head.headers["etag"]})

    assert (head.headers["content-length"], head.headers["content-type"], head.content) == ("10", "video/mp4", b"")
    assert (other.content, same.content) == (b"0123456789", b"01")


@pytest.mark.parametrize(
    ("kind", "sandboxed"),
    [
        ("video/mp4", False),
        ("image/png", False),
        ("text/html", True),
        ("image/svg+xml", True),
        ("application/pdf", True),
    ],
)
def test_an_uploaded_page_cannot_act_as_ours(web: httpx.Client, kind: str, sandboxed: bool) -> None:
    """What could hold a script is shown in a sandbox, and no type is guessed."""
    answer = web.get(upload(web, b"<script>alert(1)</script>", kind))

    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (answer.headers.get("content-security-policy") == "sandbox") == sandboxed


@pytest.mark.parametrize("path", ["../signing.key", "%2e%2e/signing.key", "uploads/../../signing.key", "/etc/passwd"])
def test_no_path_leads_out_of_the_store(web: httpx.Client, path: str) -> None:
    """Only keys are looked for."""
    with socket.create_connection((web.base_url.host, web.base_url.port or 0)) as raw:
        raw.sendall(f"GET /fal/cdn/files/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        status_line = raw.makefile("rb").readline()

    assert b" 404 " in status_line


def test_inputs_fetched_for_jobs_are_not_for_download(web: httpx.Client, server: ApiServer, tmp_path: Path) -> None:
    """What came from a user's URL, perhaps from an intranet, is no public file."""
    (file := tmp_path / "a.mp4").write_bytes(MP4)
    key = server.services.files.add(file, folder="inputs")

    assert web.get(f"/fal/cdn/files/{quote(key)}").status_code == 404


def test_a_name_of_any_language_works(web: httpx.Client) -> None:
    """The address of a file with foreign letters is a valid URL that leads to it."""
    initiated = web.post(
        "/fal/rest/storage/upload/initiate", json={"file_name": "Füße 日本.mp4", "content_type": "video/mp4"}
    ).json()
    web.put(initiated["upload_url"], content=MP4)

    assert initiated["file_url"].isascii()
    assert web.get(initiated["file_url"]).content == MP4


def test_a_file_never_changes_once_it_is_there(web: httpx.Client) -> None:
    """A second put to the same address is taken, as from a client that repeats itself, and changes nothing."""
    initiated = web.post("/fal/rest/storage/upload/initiate", json={"file_name": "a.mp4"}).json()

    codes = [web.put(initiated["upload_url"], content=text).status_code for text in (b"first", b"second")]

    assert codes == [200, 200]
    assert web.get(initiated["file_url"]).content == b"first"


@pytest.mark.parametrize("way", ["whole", "parts", "put"])
def test_an_upload_has_a_size_limit(tmp_path: Path, way: str) -> None:
    """More than the limit is 413, in one piece as in parts, and leaves nothing behind."""
    with idle_server(tmp_path, max_upload_bytes=1000) as web:
        if way == "whole":
            answer = web.post("/fal/cdn/files/upload", content=bytes(1001))
        elif way == "put":
            url = web.post("/fal/rest/storage/upload/initiate").json()["upload_url"]
            answer = web.put(url, content=bytes(1001))
        else:
            url = web.post("/fal/rest/storage/upload/initiate-multipart").json()["upload_url"]
            assert web.put(f"{url}/1", content=bytes(600)).status_code == 200
            answer = web.put(f"{url}/2", content=bytes(600))

    assert answer.status_code == 413
    assert list((tmp_path / "scratch").iterdir()) == []


def test_parts_put_to_an_address_become_a_file(web: httpx.Client) -> None:
    """Each part is answered with its number and tag; the list may be in any order; asking twice is no fault."""
    initiated = web.post("/fal/rest/storage/upload/initiate-multipart", json={"file_name": "a.mp4"}).json()
    url = initiated["upload_url"]

    parts = [web.put(f"{url}/{n}", content=text).json() for n, text in ((2, b"world"), (1, b"hello "))]
    completed = [web.post(f"{url}/complete", json={"parts": parts}).status_code for _ in range(2)]

    assert [part["partNumber"] for part in parts] == [2, 1]
    assert all(part["etag"] for part in parts)
    assert completed == [200, 200]
    assert web.get(initiated["file_url"]).content == b"hello world"


@pytest.mark.parametrize(
    "body", [b"{}", b'{"parts": []}', b'{"parts": [{"partNumber": 5}]}', b'{"parts": 3}', b"[]", b"x"]
)
def test_an_incomplete_list_of_parts_is_told(web: httpx.Client, body: bytes) -> None:
    """A file is never made of less than was sent."""
    url = web.post("/fal/rest/storage/upload/initiate-multipart", json={"file_name": "a.mp4"}).json()["upload_url"]
    web.put(f"{url}/1", content=b"hello")

    answer = web.post(f"{url}/complete", content=body)

    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


def test_a_token_is_for_one_file(web: httpx.Client) -> None:
    """An address for one upload cannot be used for another, and a made-up one for none."""
    first, second = (web.post("/fal/cdn/files/upload/multipart").json() for _ in range(2))

    wrong = web.put(f"{first['access_url']}/multipart/{second['uploadId']}/1", content=b"x")
    made_up = web.put("/fal/cdn/upload/abc.def", content=b"x")

    assert (wrong.status_code, made_up.status_code) == (403, 403)


def test_the_upload_token_tells_when_it_ends(locked: tuple[httpx.Client, str, str]) -> None:
    """The time has an offset as the Python client needs it, and the token alone opens the upload."""
    web, ada, _ = locked
    token = web.post("/fal/rest/storage/auth/token?storage_type=x", json={}, headers=authorized(ada)).json()

    answer = web.post(
        "/fal/cdn/files/upload", content=MP4, headers={"Authorization": f"{token['token_type']} {token['token']}"}
    )

    assert answer.status_code == 200
    assert token["expires_at"].endswith("+00:00")
    ends_at = datetime.fromisoformat(token["expires_at"]).timestamp()
    assert 0 < ends_at - time.time() <= uploads.TOKEN_LIFETIME_S
    assert token["base_url"].endswith("/fal/cdn")


def test_a_dropped_upload_leaves_nothing(web: httpx.Client, server: ApiServer) -> None:
    """What a broken connection left is removed."""
    scratch = server.services.scratch_dir
    with socket.create_connection((web.base_url.host, web.base_url.port or 0)) as raw:
        raw.sendall(b"POST /fal/cdn/files/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\npart")
        wait_until(lambda: len(list(scratch.iterdir())) == 1)

    wait_until(lambda: not list(scratch.iterdir()))
    assert list(scratch.iterdir()) == []


def test_what_a_crash_left_of_uploads_is_removed_at_the_next_start(tmp_path: Path) -> None:
    """Scratch files of yesterday go; those of uploads under way in another process stay."""
    services = make_services(tmp_path)
    services.scratch_dir.mkdir()
    old, new = services.scratch_dir / "old", services.scratch_dir / "new"
    for file in (old, new):
        file.touch()
    os.utime(old, (time.time() - 25 * 3600,) * 2)

    api_routes(services)

    assert list(services.scratch_dir.iterdir()) == [new]
    services.queue.close()


@pytest.mark.parametrize("wish", ["soon", "[]", '{"expiration_duration_seconds": "soon"}'])
@pytest.mark.parametrize("path", [QUEUE, "/fal/rest/storage/upload/initiate", "/fal/cdn/files/upload"])
def test_a_lifetime_that_is_none_is_refused(web: httpx.Client, wish: str, path: str) -> None:
    """Who wants his files gone is not told yes when nobody understood when."""
    answer = web.post(path, json=INPUT, headers={"X-Fal-Object-Lifecycle-Preference": wish})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert answer.json()["detail"].startswith("X-Fal-Object-Lifecycle-Preference must be JSON such as ")


@pytest.mark.parametrize("seconds", [None, 0, 1e300])
def test_a_lifetime_without_an_end_is_none(web: httpx.Client, server: ApiServer, seconds: float | None) -> None:
    """As fal has it for null and 0."""
    wish = json.dumps({"expiration_duration_seconds": seconds, "initial_acl": {"default": "allow"}})
    files, tomorrow = server.services.files, datetime.now(UTC) + timedelta(days=99_999)
    before = files.overdue(tomorrow)

    answer = web.post("/fal/cdn/files/upload", content=PNG, headers={"X-Fal-Object-Lifecycle": wish})

    assert answer.status_code == 200
    assert files.overdue(tomorrow) == before


# Reference


def test_the_api_describes_itself(web: httpx.Client) -> None:
    """The description names every endpoint with examples, and the page loads nothing from anywhere."""
    openapi = web.get("/openapi.json").json()
    page = web.get("/docs")

    submit_body = openapi["paths"][f"/queue/{APP}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert submit_body["example"]["prompt"]
    assert openapi["servers"] == [{"url": "/fal"}]
    assert page.headers["content-type"].startswith("text/html")
    for shown in (f"POST /fal/queue/{APP}", "video_description", "CANCELLATION_REQUESTED", "num_frames"):
        assert shown in page.text
    assert "src=" not in page.text
    assert "href=" in page.text
    assert "url(" not in page.text


def test_beside_gradio_our_routes_answer_and_so_does_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Gradio's own app our paths win, also /docs and /openapi.json, and its page stays."""
    import gradio as gr  # late: it takes seconds, and one test needs it

    forbid_foreign_packets(monkeypatch)

    services = make_services(tmp_path)

    async def start() -> tuple[gr.Blocks, str]:
        with gr.Blocks(analytics_enabled=False) as page:
            gr.Markdown("hello")
        routes = {"routes": api_routes(services)}
        _, url, _ = page.launch(app_kwargs=routes, ssr_mode=False, prevent_thread_lock=True, quiet=True)
        return page, url

    # Within a loop, or Gradio makes loops of its own and never closes them; a later test would pay for that.
    page, url = asyncio.run(start())

    with httpx.Client(base_url=url, trust_env=False) as web:
        job = web.post(QUEUE, json=INPUT)
        assert (job.status_code, job.headers["x-fal-request-id"]) == (200, job.json()["request_id"])
        assert web.put(job.json()["cancel_url"]).status_code == 202
        assert through_proxy(web, "GET", f"https://queue.fal.run/{APP}/requests/x").status_code == 404
        assert web.get("/docs").text.count(QUEUE)
        assert "/run/" + APP in web.get("/openapi.json").json()["paths"]
        assert "gradio" in web.get("/").text
    page.close()
    services.queue.close()


def test_limits_of_bodies_fit_together() -> None:
    """A body may hold the data URI of a large clip, yet not all that may be uploaded."""
    assert calls.MAX_JSON_BYTES < calls.MAX_INPUT_BYTES < 200 * 2**20
