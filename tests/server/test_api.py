"""The queue and the synchronous call over real HTTP, and what holds for every endpoint."""

import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import api
from server.calls import base_url
from server.database import UnreachableError
from server.files import UPLOADS
from server.job import Limits
from server.jobs import JobQueue
from tests.server.api_calls import INPUT, PROXY, QUEUE, RUN, faults, submit, wait_for
from tests.server.api_server import MP4, ApiServer, idle_server, make_services, wait_until


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


def test_a_start_timeout_may_be_endless_in_all_but_name(web: httpx.Client) -> None:
    """A number that no date can hold is as good as none."""
    assert web.post(QUEUE, json=INPUT, headers={"X-Fal-Request-Timeout": "1e18"}).status_code == 200


def test_a_database_that_is_away_is_told_as_such(
    web: httpx.Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own sentence, with a code on which clients try again."""

    def fail(*_: object, **__: object) -> None:
        raise UnreachableError

    monkeypatch.setattr(server.services.queue, "submit", fail)

    answer = web.post(QUEUE, json=INPUT)

    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("The queue’s database cannot be reached or written at the moment")


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
    assert len(list(services.files.stored(UPLOADS))) == 2


def test_the_same_idempotency_key_is_the_same_request(web: httpx.Client, server: ApiServer) -> None:
    """A program that is not sure whether its submit arrived may send it again; its files are kept once."""
    headers = {"Idempotency-Key": "order-5"}
    before = len(list(server.services.files.stored(UPLOADS)))

    first, second = (web.post(QUEUE, json=INPUT, headers=headers).json() for _ in range(2))

    assert first["request_id"] == second["request_id"]
    assert len(list(server.services.files.stored(UPLOADS))) == before + 2
    assert wait_for(web, first)["status"] == "COMPLETED"
    assert web.get(first["response_url"]).status_code == 200


def test_an_idempotency_key_belongs_to_one_request(web: httpx.Client, server: ApiServer) -> None:
    """Another body under a used key is told so, instead of the other video; its files are not kept."""
    headers = {"Idempotency-Key": "order-7"}
    first = web.post(QUEUE, json=INPUT, headers=headers).json()
    before = len(list(server.services.files.stored(UPLOADS)))

    other = web.post(QUEUE, json=INPUT | {"prompt": "A horse flies."}, headers=headers)

    assert (other.status_code, other.headers["x-fal-error-type"]) == (422, "bad_request")
    assert "'order-7' was used for another request" in other.json()["detail"]
    assert len(list(server.services.files.stored(UPLOADS))) == before
    assert wait_for(web, first)["status"] == "COMPLETED"


def test_the_same_idempotency_key_is_the_same_fault(web: httpx.Client) -> None:
    """A faulty request is one request, too, and with it one webhook."""
    headers = {"Idempotency-Key": "order-6"}

    first, second = (web.post(QUEUE, json={}, headers=headers).json() for _ in range(2))

    assert first["request_id"] == second["request_id"]
    assert web.get(first["response_url"]).status_code == 422


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
