"""Servers of the API that a file of tests shares."""

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from server.keys import KEYS_FILE, KeyRing
from tests.server.api_server import ApiServer, forbid_foreign_packets, idle_server, run_server


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One open server with a worker for a file of tests."""
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


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, str, str]]:
    """A server with keys, and the keys of two owners."""
    folder = tmp_path_factory.mktemp("locked")
    keys = KeyRing(folder / KEYS_FILE)
    ada, bob = (keys.create(owner, datetime.now(UTC)) for owner in ("ada", "bob"))
    with idle_server(folder, keys=keys) as web:
        yield web, ada, bob
