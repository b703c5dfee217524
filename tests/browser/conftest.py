"""The running app, and a Chromium to look at it with."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
START_TIMEOUT_S = 90
# A page that shares two cores with a generation and another test may open for longer than Playwright's five seconds.
expect.set_options(timeout=20_000)


def find_in_package(package: str, path: str) -> Path:
    """Give a file that an installed package carries: real media that need not lie in the repository."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="package")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the app under test may write."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="package")
def app_url(data_dir: Path) -> Iterator[str]:
    """The address of the real app."""
    with running_app(data_dir) as url:
        yield url


@contextmanager
def running_app(data_dir: Path, port: int | None = None, *options: object) -> Iterator[str]:
    """Start the app as a person starts it, give its address, and end it."""
    port, log = port or free_port(), data_dir / "app.log"
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port), "--data-dir", str(data_dir)]
    command += map(str, options)
    with log.open("w") as output:
        # Not from the repository: the app must find its files wherever it is started.
        app = subprocess.Popen(command, cwd=data_dir, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, app, log)
        yield url
    finally:
        app.terminate()
        app.wait(timeout=40)


def wait_for(url: str, app: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert app.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.3)
    pytest.fail(f"The app did not answer within {START_TIMEOUT_S} s:\n{log.read_text()}")


# Of the package, not the session: Playwright's event loop runs in this thread until the browser ends, and whatever
# else wants a loop of its own, the other packages' tests do, must come after that.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A Chromium that asks nobody for updates."""
    with running_chromium() as browser:
        yield browser


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Start the machine's Chromium; Playwright's own is never downloaded."""
    if not CHROMIUM.exists():
        pytest.fail(
            f"There is no Chromium at {CHROMIUM}; install it (apt install chromium) or set CHROMIUM to its path."
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def foreign_requests() -> list[str]:
    """The addresses outside of this machine that a page asked for."""
    return []


@pytest.fixture
def page(app_url: str, browser: Browser, foreign_requests: list[str]) -> Iterator[Page]:
    """The studio's page, open and ready."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("request", lambda request: foreign_requests.append(request.url) if is_foreign(request.url) else None)
    open_studio(page, app_url)
    yield page
    page.close()


def is_foreign(url: str) -> bool:
    return re.match(r"(http://127\.0\.0\.1[:/]|data:|blob:|about:)", url) is None


def open_studio(page: Page, url: str, theme: str = "light") -> None:
    page.goto(f"{url}/?__theme={theme}")
    page.wait_for_selector("#generate:not([disabled])")
    page.wait_for_selector("html[data-form=back]", state="attached")
    page.wait_for_selector("#model .ready", timeout=60_000)
