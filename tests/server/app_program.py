"""The app as people start it, for tests of how its parts are put together; it makes no videos."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.server.guard import sitecustomize as guard

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0


@dataclass(frozen=True)
class AppProgram:
    """A running app. log: where its output goes."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """Give its address, once it has said so."""
        return self.find(r"local URL:\s+(http\S+)")[1]

    def find(self, pattern: str) -> re.Match[str]:
        """Wait for something in its output."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.log.read_text()):
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"never said {pattern}: {self.log.read_text()}")


@contextmanager
def run_app(folder: Path, *options: str, **environment: str) -> Iterator[AppProgram]:
    """Run the app without a worker on a free port, until its context ends; guarded against calls abroad."""
    log = folder / "app.log"
    command = [sys.executable, "-u", "app.py", "--no-worker", "--port", "0", "--data-dir", str(folder / "data")]
    variables = os.environ | {"PYTHONPATH": str(Path(guard.__file__).parent)} | environment
    with (
        log.open("wb") as output,
        subprocess.Popen([*command, *options], cwd=ROOT, env=variables, stdout=output, stderr=output) as process,
    ):
        try:
            program = AppProgram(process, log)
            httpx.get(f"{program.url}/docs", trust_env=False).raise_for_status()
            yield program
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_S)
