"""Files over real HTTP: in, whole or in parts, and out to players."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from server import uploads
from server.api import api_routes
from tests.server.api_calls import INPUT, QUEUE, authorized
from tests.server.api_server import MP4, PNG, ApiServer, idle_server, make_services, wait_until


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


@pytest.mark.parametrize("letter", ["x", "字", "𝐚"])
def test_a_long_name_can_be_uploaded(web: httpx.Client, letter: str) -> None:
    """It is cut; the file is there under the address that was given."""
    body = {"file_name": letter * 120, "content_type": "video/mp4"}
    initiated = web.post("/fal/rest/storage/upload/initiate", json=body).json()

    assert web.put(initiated["upload_url"], content=MP4).status_code == 200
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


def test_a_part_that_replaces_itself_needs_no_more_room(tmp_path: Path) -> None:
    """A client whose answer was lost sends a part again, also the last that fits."""
    with idle_server(tmp_path, max_upload_bytes=1000) as web:
        url = web.post("/fal/rest/storage/upload/initiate-multipart").json()["upload_url"]
        codes = [web.put(f"{url}/{n}", content=bytes(size)).status_code for n, size in ((1, 600), (2, 400), (2, 400))]
        larger = web.put(f"{url}/2", content=bytes(401)).status_code

    assert (codes, larger) == ([200, 200, 200], 413)


def test_parts_sent_at_once_have_one_limit(tmp_path: Path) -> None:
    """Each has room when it begins; what is too large together becomes no file, and its parts go."""
    services = make_services(tmp_path)
    with idle_server(tmp_path, max_upload_bytes=1000) as web:
        initiated = web.post("/fal/rest/storage/upload/initiate-multipart").json()
        url = initiated["upload_url"]
        both_began = threading.Barrier(2)

        def content() -> Iterator[bytes]:
            yield bytes(300)
            wait_until(lambda: len(list((tmp_path / "scratch").glob("*"))) == 2)  # the server has let both begin
            both_began.wait(20)
            yield bytes(300)

        with ThreadPoolExecutor() as pool:
            sent = pool.map(lambda n: web.put(f"{url}/{n}", content=content()).status_code, (1, 2))
        codes = list(sent)
        parts = [{"partNumber": n} for n in (1, 2)]
        completed = web.post(f"{url}/complete", json={"parts": parts}).status_code
        there = web.get(initiated["file_url"]).status_code

    assert (codes, completed, there) == ([200, 200], 413, 404)
    assert list(services.files.stored("parts")) == []
    services.queue.close()


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


@pytest.mark.parametrize(
    "wish",
    ["soon", "[]", '{"expiration_duration_seconds": "soon"}', f'{{"expiration_duration_seconds": 1{"0" * 400}}}'],
    ids=["text", "list", "word", "endless"],
)
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
