"""Who may call the API: keys, and the pages of other origins."""

import json
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from server.keys import KEYS_FILE, KeyRing
from tests.server.api_calls import INPUT, PROXY, QUEUE, RUN, authorized
from tests.server.api_server import MP4, ApiServer, idle_server


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


# Pages of other origins


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_foreign_page_cannot_use_an_open_server(web: httpx.Client, origin: str) -> None:
    """A page that somebody happens to visit must not make videos on their machine, or fill its disk."""
    for path in (QUEUE, "/fal/cdn/files/upload", "/fal/rest/storage/auth/token"):
        assert web.post(path, content=json.dumps(INPUT), headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:3000", "X-Forwarded-Host": "localhost:3000"},
        {"Origin": "http://evil.example", "Host": "evil.example"},
        {"Origin": "http://127.0.0.1.evil.example", "Host": "127.0.0.1.evil.example"},
        {"Origin": ""},
    ],
)
def test_a_foreign_page_cannot_pass_for_our_own(web: httpx.Client, headers: dict[str, str]) -> None:
    """Not by a header that it may set, nor by a name of its own that it has lead here."""
    assert web.post(QUEUE, json=INPUT, headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "[::1]:7860"])
def test_our_own_page_has_all_names_of_this_machine(web: httpx.Client, host: str) -> None:
    """By whichever of them the browser came."""
    assert web.post(QUEUE, json=INPUT, headers={"Origin": f"http://{host}", "Host": host}).status_code == 200


def test_our_own_page_has_the_configured_name(tmp_path: Path) -> None:
    """Behind a reverse proxy, which calls us by another; no other name of the outside is ours."""
    with idle_server(tmp_path, public_url="https://studio.example/app") as web:
        own = web.post(QUEUE, json=INPUT, headers={"Origin": "https://studio.example"})
        other = web.post(QUEUE, json=INPUT, headers={"Origin": "https://other.example"})

    assert (own.status_code, other.status_code) == (200, 403)


def test_our_own_page_can_use_an_open_server(web: httpx.Client, server: ApiServer) -> None:
    """The browser names our own origin."""
    assert web.post(QUEUE, json=INPUT, headers={"Origin": server.url}).status_code == 200


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
