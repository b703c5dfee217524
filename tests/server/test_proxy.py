"""The proxy that the official clients call from a browser, and fal's own host names."""

import json
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.api_calls import INPUT, PROXY, faults, submit, through_proxy, wait_for
from tests.server.api_server import APP, MP4, PNG, ApiServer


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
