"""What tests of the API send, and what they read of the answers."""

from typing import Any

import httpx

from tests.server.api_server import APP, MP4, PNG, data_uri, wait_until

QUEUE, RUN = f"/fal/queue/{APP}", f"/fal/run/{APP}"
PROXY = "/api/fal/proxy"

INPUT = {
    "prompt": "A statue floats away.",
    "video_description": "A man floats away.",
    "video_url": data_uri(MP4, "video/mp4"),
    "image_url": data_uri(PNG, "image/png"),
}


def submit(web: httpx.Client, **changes: Any) -> dict[str, Any]:
    """Submit a request; give the answer. changes: of the input."""
    answer = web.post(QUEUE, json=INPUT | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait_for(web: httpx.Client, job: dict[str, Any], state: str = "COMPLETED") -> dict[str, Any]:
    """Wait for a state of a request; give its status."""
    wait_until(lambda: web.get(job["status_url"]).json()["status"] == state)
    return web.get(job["status_url"]).json()


def result_of(web: httpx.Client, **changes: Any) -> httpx.Response:
    """Submit a request and give its result when it is there."""
    job = submit(web, **changes)
    wait_for(web, job)
    return web.get(job["response_url"])


def faults(answer: httpx.Response) -> list[tuple[list[str], str]]:
    """Give places and kinds of the faults that an answer tells."""
    assert answer.status_code == 422, answer.text
    return [(fault["loc"], fault["type"]) for fault in answer.json()["detail"]]


def authorized(key: str, scheme: str = "Key") -> dict[str, str]:
    """Give the header that shows a key."""
    return {"Authorization": f"{scheme} {key}"}


def through_proxy(web: httpx.Client, method: str, target: str | None, **call: Any) -> httpx.Response:
    """Call as the clients do through a proxy: the address they mean is in a header."""
    headers = {} if target is None else {"X-Fal-Target-Url": target}
    return web.request(method, PROXY, headers=headers, **call)
