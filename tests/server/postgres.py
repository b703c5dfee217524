"""A PostgreSQL of our own: in a folder that is thrown away, on a loopback port, under a user who is not root."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOW_TO_INSTALL = "These tests need PostgreSQL's programs; on Debian and Ubuntu: sudo apt-get install postgresql"


@dataclass(frozen=True)
class Postgres:
    """A running server: the address of a database in it, and how to stop it and start it again."""

    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@contextmanager
def run_postgres(*, safe: bool = False) -> Iterator[str]:
    """Give the URL of a server that lives as long as the context. safe: with fsync, as in earnest, for measuring."""
    with run_unsteady_postgres(safe=safe) as server:
        yield server.url


@contextmanager
def run_unsteady_postgres(*, safe: bool = False) -> Iterator[Postgres]:
    """Give a server that can be away for a while."""
    programs = _find_programs()
    folder = Path(tempfile.mkdtemp(prefix="studio-postgres-"))
    password, port = secrets.token_hex(16), _free_port()
    (folder / "password").write_text(password)
    _give_to_server(folder)
    data = folder / "data"
    as_user = _as_other_user()
    account = ["-U", "studio", "-A", "scram-sha-256", "--pwfile", folder / "password"]
    _run([*as_user, programs / "initdb", "-D", data, *account, "--no-sync", "--encoding", "UTF8", "--locale", "C"])
    options = f"-h 127.0.0.1 -p {port} -c unix_socket_directories='' -c fsync={'on' if safe else 'off'}"
    control = [*as_user, programs / "pg_ctl", "-D", data, "-l", folder / "log"]
    url = f"postgresql://studio:{password}@127.0.0.1:{port}/studio_{secrets.token_hex(4)}"
    server = Postgres(
        url,
        stop=lambda: _run([*control, "-m", "immediate", "stop"]),
        start=lambda: _run([*control, "-o", options, "-w", "start"]),
    )
    server.start()
    try:
        yield server
    finally:
        if (data / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder)


def _find_programs() -> Path:
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), shutil.which("pg_ctl")]
    folder = next((Path(place) for place in found if place), None)
    if folder is None:
        raise RuntimeError(HOW_TO_INSTALL)
    return folder.parent if folder.name == "pg_ctl" else folder


def _as_other_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    user = _server_user()
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]


def _server_user() -> pwd.struct_passwd:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _give_to_server(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, _server_user().pw_uid, _server_user().pw_gid)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(command: list[object]) -> None:
    done = subprocess.run(
        [str(part) for part in command], cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[-1]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
