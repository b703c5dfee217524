"""A hub on the loopback address: one repository, its commits, and the faults a real hub or its network can have."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

REPOSITORY = "studio/tiny"
LARGE_BYTES = 10_000  # from here on a file is "large": kept beside git, and known by its SHA-256
PIECE_BYTES = 4096
CHUNK_BYTES = 16_384  # what the client reads before it writes that; 10 MB outside the tests


@dataclass
class FakeHub:
    """What is served, how it fails, and what was asked.

    commits: hash -> path -> content; the last is `main`. pause_after: path -> bytes after which nothing comes until
    `go_on` is set. break_after: path -> bytes after which the connection ends, once. spoilt: paths that arrive with one
    wrong byte. status, error_code: what every question about the repository is answered with.
    """

    commits: dict[str, dict[str, bytes]]
    url: str = ""
    pause_after: dict[str, int] = field(default_factory=dict)
    break_after: dict[str, int] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)
    status: int = 200
    error_code: str | None = None
    is_silent: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    @property
    def main(self) -> str:
        """The commit that `main` is at."""
        return list(self.commits)[-1]

    @property
    def total_bytes(self) -> int:
        """The size of all files of `main` that belong to a model."""
        return sum(len(content) for path, content in self.commits[self.main].items() if path != "README.md")

    def add_commit(self, **changes: bytes) -> str:
        """Move `main` on to a commit with some files changed; `__` in a name stands for the slash."""
        commit = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        files = self.commits[self.main] if self.commits else {}
        self.commits[commit] = files | {name.replace("__", "/"): content for name, content in changes.items()}
        return commit

    def describe(self, commit: str) -> dict[str, Any]:
        """Give what the hub says of a commit."""
        siblings = []
        for path, content in self.commits[commit].items():
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": path, "size": len(content), "blobId": oid}
            if len(content) >= LARGE_BYTES:
                sha256 = hashlib.sha256(content).hexdigest()
                entry |= {"blobId": "0" * 40, "lfs": {"sha256": sha256, "size": len(content), "pointerSize": 134}}
            siblings.append(entry)
        return {"id": REPOSITORY, "sha": commit, "siblings": siblings, "private": False}


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a hub until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub take this for the real hub: as HF_ENDPOINT does, which it reads only once."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()


def read_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class _Handler(BaseHTTPRequestHandler):
    """Small files come from the hub itself, large ones from a second address it sends one to."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: FakeHub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        if self.hub.is_silent:
            self.hub.go_on.wait(20)
        elif self.hub.status != 200:
            self._answer(self.hub.status, b"", {"X-Error-Code": self.hub.error_code} if self.hub.error_code else {})
        elif path.startswith("/api/models/"):
            self._tell(path.removeprefix("/api/models/"))
        else:
            self._give(path)

    def _tell(self, what: str) -> None:
        repository, _, revision = what.partition("/revision/")
        commit = self.hub.main if revision == "main" else revision
        if repository != REPOSITORY:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif commit not in self.hub.commits:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            body = json.dumps(self.hub.describe(commit)).encode()
            self._answer(200, body, {"Content-Type": "application/json"})

    def _give(self, path: str) -> None:
        where = path.removeprefix(f"/{REPOSITORY}/resolve/").removeprefix("/storage/")
        commit, _, name = where.partition("/")
        content = self.hub.commits.get(commit, {}).get(name)
        if content is None:  # also a neighbour's question to whoever had this port before
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if len(content) >= LARGE_BYTES and not path.startswith("/storage/"):
            location = {"Location": f"/storage/{where}", "X-Repo-Commit": commit, "X-Linked-Size": str(len(content))}
            self._answer(302, b"", location)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self._send(name, content, start)

    def _send(self, name: str, content: bytes, start: int) -> None:
        if name in self.hub.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        stop = self.hub.break_after.pop(name, len(content))
        pause = self.hub.pause_after.get(name, len(content))
        for at in range(start, stop, PIECE_BYTES):
            if at >= pause:
                self.hub.go_on.wait(20)
            piece = content[at : min(at + PIECE_BYTES, stop)]
            try:
                self.wfile.write(piece)
            except OSError:
                break
            self.hub.sent[name] += len(piece)
        self.close_connection = stop < len(content)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
