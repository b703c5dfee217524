"""Fronts without any worker: what needs none is done all the same, and once."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.server.postgres import run_postgres
from tests.server.test_crash_http import REQUESTS, Programs, wait_until

pytestmark = pytest.mark.slow

LATE = 6


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[str]]]:
    """Somebody who waits to hear of the ends: the address, and the request ids of what was told there."""
    told: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            told.append(self.headers["X-Fal-Webhook-Request-Id"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", told
    server.shutdown()
    server.server_close()


def test_two_fronts_end_what_nobody_begins_and_tell_of_it_once(tmp_path: Path, receiver: tuple[str, list[str]]) -> None:
    """Start timeouts run out, nobody polls, no worker lives: each sender hears of it, once."""
    address, told = receiver
    body = {
        "prompt": "It glows.",
        "video_description": "A wall.",
        "video_url": "http://127.0.0.1:1/clip.mp4",
        "image_url": "http://127.0.0.1:1/start.png",
    }
    with run_postgres() as url:
        fronts = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            options = ("--database-url", url, "--files-url", tmp_path / "files", "--allow-private-urls")
            fronts.append(Programs(tmp_path / name, *options))
        try:
            for front in fronts:
                front.start_app("--no-worker")
            ids = []
            for number in range(LATE):
                answer = fronts[number % 2].web.post(
                    REQUESTS, params={"fal_webhook": address}, json=body, headers={"X-Fal-Request-Timeout": "1"}
                )
                ids.append(answer.raise_for_status().json()["request_id"])

            wait_until(lambda: len(told) >= LATE)
            time.sleep(3)

            assert sorted(told) == sorted(ids)
        finally:
            for front in fronts:
                front.end()
