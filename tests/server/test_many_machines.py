"""docs/many-machines.md, followed to the letter: its units and commands, with addresses of this machine in them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from server import database as db
from tests.server.guard import sitecustomize as guard
from tests.server.postgres import run_postgres
from tests.server.s3 import BUCKET, run_s3
from tests.server.test_crash_http import REQUESTS, body, free_port, make_model, wait_until

__all__ = ["body"]  # the fixture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "many-machines.md").read_text(encoding="utf-8")
JOBS = 4


def read_file(path: str) -> list[tuple[str, str]]:
    """The settings in a file that the page shows, in their order."""
    found = re.search(rf"```ini\n# {re.escape(path)}\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"{path} is not on the page"
    lines = [line for line in found[1].splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def read_command(start: str) -> list[str]:
    """A command that the page gives, by how it starts."""
    found = re.search(rf"^{re.escape(start)}.*$", PAGE, re.MULTILINE)
    assert found, f"{start} is not on the page"
    return shlex.split(found[0].removeprefix("sudo -u studio "))


class Machine:
    """Runs what the page has systemd run, as processes of this machine."""

    def __init__(self, folder: Path, own: Mapping[str, str]) -> None:
        """own: what stands here for the values of the page, which must name each of them."""
        self.folder, self.own = folder, own
        self.data_dir = folder / "var-lib-studio"

    def here(self, text: str) -> str:
        """Put this machine's paths in place of the page's."""
        return text.replace("/opt/studio/.venv/bin/python", sys.executable).replace(
            "/var/lib/studio", str(self.data_dir)
        )

    def run(self, command: list[str]) -> str:
        """Run a command of the page to its end and give what it says."""
        here = [sys.executable if part == ".venv/bin/python" else self.here(part) for part in command]
        return subprocess.run(here, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    @contextmanager
    def start(self, unit: str, instance: str = "") -> Iterator[None]:
        """Start a unit, until the context ends, when it must end by itself as systemd asks it to."""
        settings = read_file(f"/etc/systemd/system/{unit}.service")
        (command,) = [value for name, value in settings if name == "ExecStart"]
        own = [value.split("=", 1) for name, value in settings if name == "Environment"]
        variables = dict(read_file("/etc/studio/studio.env")) | dict(own)
        variables = {
            name: self.own.get(name, self.here(value)).replace("%i", instance) for name, value in variables.items()
        }
        guarded = {"PYTHONPATH": str(Path(guard.__file__).parent), "OMP_NUM_THREADS": "1"}
        log = self.folder / f"{unit}{instance}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                shlex.split(self.here(command)),
                cwd=ROOT,
                env=os.environ | guarded | variables,
                stdout=output,
                stderr=output,
            )
            try:
                yield
            finally:
                process.terminate()
                assert process.wait(60) == 0, log.read_text()


def who_made(url: str, ids: list[str]) -> list[str]:
    """The device of the worker that made each job."""
    with closing(db.open_database(url)) as database, database.read() as connection:
        flow = database.workflows
        rows = connection.execute(sa.select(flow.c.executor_id).where(flow.c.workflow_uuid.in_(ids)))
        return [row.executor_id.split("/")[-2] for row in rows]


@pytest.mark.slow
def test_the_page_leads_to_two_workers_that_share_the_jobs(tmp_path: Path, body: dict[str, Any]) -> None:
    """Front, PostgreSQL, bucket and a worker for each of two GPUs: every video is made, by the one or the other."""
    with run_s3() as bucket, run_postgres() as url, ExitStack() as running:
        port = free_port()
        own = {
            **bucket,
            "STUDIO_DATABASE_URL": url,
            "STUDIO_FILES_URL": f"s3://{BUCKET}/files",
            "STUDIO_HOST": "127.0.0.1",
            "STUDIO_PORT": str(port),
            "STUDIO_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "STUDIO_MODEL": str(make_model(tmp_path)),
        }
        machine = Machine(tmp_path, own)
        key = machine.run(read_command("sudo -u studio .venv/bin/python -m server.keys create")).strip()
        for unit, instance in (("studio-front", ""), ("studio-worker@", "0"), ("studio-worker@", "1")):
            running.enter_context(machine.start(unit, instance))
        web = running.enter_context(httpx.Client(base_url=own["STUDIO_PUBLIC_URL"], trust_env=False, timeout=30))
        wait_until(lambda: answers(web))
        assert web.post(REQUESTS, json=body).status_code == 401
        web.headers["Authorization"] = f"Key {key}"
        # Before there is any work: else the first may do all of it while the second starts.
        wait_until(lambda: count_workers(url) == 2)

        short = body | {"num_inference_steps": 2}
        ids = [web.post(REQUESTS, json=short).raise_for_status().json()["request_id"] for _ in range(JOBS)]
        wait_until(lambda: all(web.get(f"{REQUESTS}/requests/{one}").status_code == 200 for one in ids))

        videos = [web.get(f"{REQUESTS}/requests/{one}").json()["video"]["url"] for one in ids]
        assert all(web.get(video).content[4:8] == b"ftyp" for video in videos)
        assert set(who_made(url, ids)) == {"0", "1"}
        assert not (machine.data_dir / "files").exists()


def answers(web: httpx.Client) -> bool:
    try:
        return web.get("/docs").is_success
    except httpx.TransportError:
        return False


def count_workers(url: str) -> int:
    """How many workers' hearts beat; a front's does as well, under a slot without a device."""
    with closing(db.open_database(url)) as database, database.read() as connection:
        names = connection.execute(sa.select(db.workers.c.executor_id)).scalars()
        return sum(name.split("/")[-2] in ("0", "1") for name in names)


def test_the_settings_on_the_page_exist() -> None:
    """No variable of ours is misspelt, and none that the bucket needs is missing."""
    from server.settings import Settings

    files = (
        "/etc/studio/studio.env",
        *(f"/etc/systemd/system/{unit}.service" for unit in ("studio-front", "studio-worker@")),
    )
    named = [part.split("=")[0] for file in files for pair in read_file(file) for part in pair]

    ours = {name for name in named if name.startswith("STUDIO_")}
    assert {name.removeprefix("STUDIO_").lower() for name in ours} <= set(Settings.model_fields)
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} <= set(named)
