"""The login of the page opens the proxy route: for the browser that logged in, from the page itself, and no further."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.keys import KEYS_FILE, KeyRing
from tests.server.api_server import APP
from tests.server.app_program import run_app

PROXY = "/api/fal/proxy"
SUBMIT = f"https://queue.fal.run/{APP}"
INPUT = {
    "prompt": "A statue floats away.",
    "video_description": "A man floats away.",
    "video_url": "https://example.com/a.mp4",
    "image_url": "https://example.com/a.png",
}
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the app keeps its data, with a key of the one who may log in."""
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """An app that asks for a login."""
    with run_app(folder, "--auth", "ann:secret", "--cors-origins", "https://friend.example") as program:
        yield program.url


@pytest.fixture
def stranger(address: str) -> Iterator[httpx.Client]:
    """A browser that is not logged in."""
    with httpx.Client(base_url=address, trust_env=False) as client:
        yield client


@pytest.fixture
def browser(stranger: httpx.Client) -> httpx.Client:
    """A browser that is logged in."""
    stranger.post("/login", data={"username": "ann", "password": "secret"}).raise_for_status()
    return stranger


def send(client: httpx.Client, target: str = SUBMIT, method: str = "POST", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body: Any = INPUT if method == "POST" else None
    return client.request(method, PROXY, json=body, headers={"x-fal-target-url": target, **named})


def test_who_is_logged_in_needs_no_key_and_owns_what_he_sends(browser: httpx.Client, folder: Path) -> None:
    """The page of the browser submits, looks and cancels; a key of the same name sees the same request."""
    key = KeyRing(folder / "data" / KEYS_FILE).create("ann", datetime.now(UTC))

    job = send(browser, Origin=str(browser.base_url).rstrip("/")).raise_for_status().json()
    one = f"{SUBMIT}/requests/{job['request_id']}"
    looked = send(browser, f"{one}/status", "GET")
    by_key = httpx.get(job["status_url"], headers={"Authorization": f"Key {key}"}, trust_env=False)
    cancelled = send(browser, f"{one}/cancel", "PUT", **OWN)

    assert (looked.status_code, by_key.status_code, cancelled.status_code) == (202, 202, 202)


def test_who_is_logged_in_uploads(browser: httpx.Client) -> None:
    """An address to put a file to, as the JavaScript client asks for it."""
    answer = send(browser, "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3", **OWN)

    assert browser.put(answer.json()["upload_url"], content=b"x").status_code == 200
    assert browser.get(answer.json()["file_url"]).content == b"x"


def test_who_is_not_logged_in_needs_a_key(stranger: httpx.Client) -> None:
    """No cookie is 401."""
    assert send(stranger, **OWN).status_code == 401


def test_a_made_up_session_is_none(browser: httpx.Client) -> None:
    """A cookie of the right name that Gradio never gave out is 401."""
    names = list(dict(browser.cookies))
    browser.cookies.clear()
    for name in names:
        browser.cookies.set(name, "made up")

    assert any(name.startswith("access-token-") for name in names)
    assert send(browser, **OWN).status_code == 401


def test_who_has_logged_out_needs_a_key(browser: httpx.Client) -> None:
    """The session ends with Gradio's own."""
    cookies = dict(browser.cookies)
    browser.get("/logout")
    browser.cookies.update(cookies)

    assert send(browser, **OWN).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site"},
        {},
    ],
)
def test_a_page_of_another_origin_cannot_use_the_login(browser: httpx.Client, headers: dict[str, str]) -> None:
    """Though the browser sends the cookie along; nor can a call that does not say where it comes from."""
    answer = send(browser, **headers)

    assert answer.status_code == 403
    assert answer.json() == {
        "detail": "The login of the page holds for calls from the page itself; send a key from elsewhere."
    }


def test_a_key_decides_where_one_is_sent(browser: httpx.Client) -> None:
    """A wrong one is not made good by the login."""
    assert send(browser, Authorization="Key wrong", **OWN).status_code == 401


def test_the_login_opens_the_proxy_route_only(browser: httpx.Client) -> None:
    """The queue itself still asks for a key."""
    assert browser.post(f"/fal/queue/{APP}", json=INPUT, headers=OWN).status_code == 401


# Pages of other origins, where Gradio has a rule of its own


@pytest.mark.parametrize("host", ["127.0.0.1", "studio.example"])
@pytest.mark.parametrize(("origin", "allowed"), [("https://friend.example", True), ("https://evil.example", False)])
def test_the_api_beside_the_page_invites_whom_the_operator_allows(
    stranger: httpx.Client, host: str, origin: str, allowed: bool
) -> None:
    """Nobody else, and by whatever name this machine is called: Gradio's rule depends on that."""
    headers = {"Host": host, "Origin": origin, "Access-Control-Request-Method": "POST"}

    for path in (f"/fal/queue/{APP}", PROXY):
        asked, answered = stranger.options(path, headers=headers), stranger.post(path, json=INPUT, headers=headers)

        assert asked.status_code == (200 if allowed else 400)
        assert answered.status_code in (400, 401)
        for answer in (asked, answered):
            assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert answer.headers["x-fal-request-id"]


def test_the_page_is_served_where_the_api_is_not(browser: httpx.Client) -> None:
    """Its own routes keep their addresses; the reference is the API's."""
    assert "gradio" in browser.get("/").text
    assert browser.get("/gradio_api/info").json()["named_endpoints"]
    assert "fal-ai/video-as-prompt" in browser.get("/docs").text
