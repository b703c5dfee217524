"""The door for fal's own host names: the real client with nothing but its environment set, and who gets no further."""

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.errors import InvalidInputError
from server.assembly import make_tls_front, open_files, open_queue
from server.certificates import load_certificate
from server.job import JobStatus
from server.settings import Settings, bind
from server.tls_front import TlsFront, leads_to_fal, open_proxy
from tests.server.api_server import APP, MP4, PNG, ApiServer, data_uri, forbid_foreign_packets, run_server, wait_until
from tests.server.app_program import run_app
from tests.server.guard import sitecustomize as guard

INPUT = {"prompt": "A statue floats away.", "video_description": "A man floats away.", "seed": 3}

# What a user may have written for fal; it knows nothing of us.
PROGRAM = """
import asyncio, json, sys
import fal_client, httpx

app, clip, picture, fields = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]), json.loads(sys.argv[4])
given = fields | {"video_url": fal_client.upload_file(clip), "image_url": fal_client.upload(picture, "image/png")}
states = []
follow = lambda state: states.append(type(state).__name__)
result = fal_client.subscribe(app, given, interval=0.02, on_queue_update=follow)
handle = fal_client.submit(app, given)
same = handle.get(interval=0.02) and fal_client.result(app, handle.request_id)
again = asyncio.run(fal_client.upload_async(picture, "image/png"))
files = [result["video"]["url"], same["video"]["url"], given["video_url"], again]
seen = [httpx.get(file).content.hex() for file in files]
run = fal_client.run(app, given)
print(json.dumps({"states": states, "seen": seen, "file": run["video"]["url"], "status": handle.status_url}))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One server with a worker for this file."""
    with run_server(tmp_path_factory.mktemp("studio")) as server:
        yield server


@contextmanager
def open_front(server: ApiServer, folder: Path, **changes: Any) -> Iterator[TlsFront]:
    """Open the door to a running server. changes: of its services."""
    certificate = load_certificate(folder, datetime.now(UTC))
    with TlsFront(replace(server.services, **changes), certificate, bind("127.0.0.1", 0, "port")) as front:
        yield front


def run_client(program: str, *arguments: str, **environment: str) -> str:
    """Run a program with these variables, a key, and a guard against calls abroad; not even names are looked up."""
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(guard.__file__).parent), "FAL_KEY": "any"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(front: TlsFront, head: bytes) -> bytes:
    """Send text to the proxy's port; give all that comes back."""
    address = httpx.URL(front.environment["HTTPS_PROXY"])
    with socket.create_connection((address.host, address.port or 0), timeout=10) as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("public_url", "base"),
    [
        (None, "https://{host}/"),
        ("https://studio.example", "https://{host}/"),  # the client cannot get there
        ("http://here", "http://here/"),
    ],
)
def test_fals_client_does_everything_by_its_environment_alone(
    server: ApiServer, tmp_path: Path, public_url: str | None, base: str
) -> None:
    """Uploads, subscribe, submit, result, run and downloads come here, at addresses that such a client reaches."""
    (clip := tmp_path / "my clip.mp4").write_bytes(MP4)
    public_url = server.url if public_url == "http://here" else public_url
    with open_front(server, tmp_path / "data", public_url=public_url) as front:
        printed = run_client(PROGRAM, APP, str(clip), PNG.hex(), json.dumps(INPUT), **front.environment)

    told = json.loads(printed)
    assert [bytes.fromhex(content) for content in told["seen"]] == [MP4 + b"3", MP4 + b"3", MP4, PNG]
    assert told["states"][-1] == "Completed"
    base = base.replace("http://here", server.url)
    assert told["file"].startswith(base.format(host="fal.run"))
    assert told["status"].startswith(base.format(host="queue.fal.run"))


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT example.com:443 HTTP/1.1",
        "CONNECT queue.fal.run:80 HTTP/1.1",
        "CONNECT queue.fal.run.example.com:443 HTTP/1.1",
        "CONNECT api.fal.ai:443 HTTP/1.1",
        "CONNECT 127.0.0.1:443 HTTP/1.1",
        "CONNECT queue.fal.run HTTP/1.1",
        "GET http://queue.fal.run:443/ HTTP/1.1",
        "GET https://queue.fal.run:443 HTTP/1.1",
        "nonsense",
    ],
)
def test_the_proxy_leads_nowhere_else(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Anything but fal's https ports is 403, says so, and nobody is called."""
    forbid_foreign_packets(monkeypatch)
    with open_front(server, tmp_path) as front:
        answer = ask(front, f"{line}\r\nHost: x\r\n\r\n".encode())

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert body.startswith(b"This proxy leads to queue.fal.run, fal.run, rest.fal.ai, ")


@pytest.mark.parametrize("host", ["queue.fal.run", "fal.run", "rest.fal.ai", "rest.alpha.fal.ai", "v3.fal.media"])
def test_each_of_fals_names_is_led_here(host: str) -> None:
    """However it is written; what follows the first line does not matter."""
    assert leads_to_fal(f"CONNECT {host}:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n".encode())
    assert leads_to_fal(f"CONNECT {host.upper()}:443 HTTP/1.0\r\n\r\n".encode())


@pytest.mark.parametrize("text", [b"", b"CONNECT queue.fal.run:443 HTTP/1.1\r\n", b"x" * 100_000, b"\x16\x03\x01\x00"])
def test_who_does_not_speak_to_the_end_gets_no_answer(server: ApiServer, tmp_path: Path, text: bytes) -> None:
    """And the door still works."""
    with open_front(server, tmp_path) as front:
        try:
            answer = ask(front, text)
        except ConnectionError:
            answer = b""
        refused = ask(front, b"GET / HTTP/1.1\r\n\r\n")

    assert answer == b""
    assert refused.startswith(b"HTTP/1.1 403 ")


def test_an_answer_arrives_after_the_caller_has_said_all() -> None:
    """However long it takes: asyncio forgets a call that nothing waits to read from."""

    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.sleep(0.05)
        gc.collect()
        writer.write(b"late")
        await writer.drain()
        writer.close()

    async def call() -> bytes:
        inner = await asyncio.start_server(answer_late, "127.0.0.1", 0)
        listener = bind("127.0.0.1", 0, "port")
        door = await open_proxy(listener, inner.sockets[0].getsockname())
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"CONNECT fal.run:443 HTTP/1.1\r\n\r\nall")
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        for server in (door, inner):
            server.close()
        return answer

    assert asyncio.run(call()).endswith(b"\r\n\r\nlate")


def test_a_program_that_ends_stops_its_synchronous_call(server: ApiServer, tmp_path: Path) -> None:
    """The end of a connection is handed on."""
    server.generation.gate.clear()
    program = "import json, sys, fal_client; fal_client.run(sys.argv[1], json.loads(sys.argv[2]))"
    media = {"video_url": data_uri(MP4, "video/mp4"), "image_url": data_uri(PNG, "image/png")}
    given = INPUT | media
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(guard.__file__).parent), "FAL_KEY": "any"}
    owner, before = "everyone", len(server.services.queue.all_jobs())
    with open_front(server, tmp_path) as front:
        command = [sys.executable, "-c", program, APP, json.dumps(given)]
        caller = subprocess.Popen(command, env=environment | dict(front.environment), stderr=subprocess.DEVNULL)
        wait_until(lambda: len(server.services.queue.all_jobs()) > before)
        wait_until(lambda: server.generation.specs != [])

        caller.kill()
        caller.wait()
        wait_until(lambda: server.services.queue.jobs_of(owner, 1)[0].status.is_final)
        assert server.services.queue.jobs_of(owner, 1)[0].status is JobStatus.CANCELLED

    server.generation.gate.set()


def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    """It names the option, whoever has the port: the page, or another program."""
    settings = Settings(data_dir=tmp_path)
    queue = open_queue(settings, open_files(settings))
    with bind("127.0.0.1", 0, "port") as holder:
        holder.listen()
        taken = settings.model_copy(update={"fal_proxy_port": holder.getsockname()[1]})

        with pytest.raises(InvalidInputError, match="try another --fal-proxy-port or --host"):
            make_tls_front(taken, queue)
        with pytest.raises(InvalidInputError, match="The page itself has port 7860; give --fal-proxy-port another"):
            make_tls_front(settings.model_copy(update={"fal_proxy_port": 7860}), queue)
    queue.close()


def test_the_door_opens_and_closes_with_the_program(tmp_path: Path) -> None:
    """The program says how to get in; when it has ended, the port is free."""
    with run_app(tmp_path, "--fal-proxy-port", "0") as program:
        proxy, authority = program.find(r"HTTPS_PROXY=(\S+) SSL_CERT_FILE=(\S+)").groups()
        upload = "import fal_client; print(fal_client.upload(b'x', 'video/mp4'))"
        printed = run_client(upload, HTTPS_PROXY=proxy, SSL_CERT_FILE=authority)

    assert printed.startswith("https://v3.fal.media/")
    bind("127.0.0.1", int(proxy.rpartition(":")[2]), "port").close()
