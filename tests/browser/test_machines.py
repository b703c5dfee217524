"""The page where PostgreSQL keeps the queue and the videos are made by another program."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.actions import GENERATION_TIMEOUT_MS, choose_example, serious_findings, sticks_out, wait_for_steps
from tests.browser.conftest import ROOT, open_studio, running_app
from tests.server.postgres import Postgres, run_unsteady_postgres
from tests.server.test_crash_http import make_model

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@dataclass(frozen=True)
class Machines:
    """The address of a front, and the database behind it and a worker."""

    url: str
    postgres: Postgres


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("machines")
    with run_unsteady_postgres() as postgres:
        shared = ["--database-url", postgres.url, "--files-url", str(folder / "files")]
        for name in ("front", "worker"):
            (folder / name).mkdir()
        command = [sys.executable, "-m", "server.worker", *shared, "--data-dir", str(folder / "worker")]
        command += ["--model", str(make_model(folder))]
        with running_app(folder / "front", None, "--no-worker", *shared) as url:
            worker = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
            yield Machines(url, postgres)
            worker.terminate()
            assert worker.wait(60) == 0


@pytest.fixture
def page(machines: Machines, browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    open_studio(page, machines.url)
    yield page
    page.close()


def test_a_worker_elsewhere_makes_the_video(page: Page) -> None:
    """Progress step by step, and the result, as if it were made here; the page says that it is not."""
    expect(page.locator("#model")).to_contain_text("made on other machines")
    choose_example(page, steps=50)

    page.click("#generate")

    wait_for_steps(page)
    expect(page.locator("#stop")).to_be_enabled()
    page.locator("#video video").wait_for(timeout=GENERATION_TIMEOUT_MS)
    page.wait_for_function("document.querySelector('#video video').readyState >= 3")
    expect(page.locator("#settings")).to_contain_text("50")


def test_the_page_opens_while_the_database_is_away(page: Page, machines: Machines) -> None:
    """It says so in a sentence, on every tab that needs it, and shows the last video by itself once it is back."""
    choose_example(page, steps=1)
    page.click("#generate")
    page.locator("#video video").wait_for(timeout=GENERATION_TIMEOUT_MS)
    notice = page.locator("#status [role=alert]")

    machines.postgres.stop()
    page.goto("about:blank")
    open_studio(page, machines.url)

    expect(notice).to_contain_text("database cannot be reached")
    assert (serious_findings(page), page.get_by_text("Error", exact=True).count()) == ([], 0)
    page.set_viewport_size({"width": 390, "height": 844})
    assert sticks_out(page) == []
    page.click("#generate")
    page.get_by_role("tab", name="My jobs").click()
    expect(page.locator("#jobs [role=alert]")).to_contain_text("database cannot be reached")
    machines.postgres.start()
    expect(page.locator("#jobs .job.succeeded")).not_to_have_count(0, timeout=20_000)
    page.get_by_role("tab", name="Create").click()
    page.locator("#video video").wait_for()
    expect(notice).to_have_count(0)


def test_a_new_visitor_hears_that_the_database_is_away(machines: Machines, browser: Browser) -> None:
    """Nothing is on show, and still nobody fills in the form for nothing; the sentence goes with its cause."""
    machines.postgres.stop()
    page = browser.new_page()
    open_studio(page, machines.url, "dark")
    notice = page.locator("#status [role=alert]")

    expect(notice).to_contain_text("database cannot be reached")
    machines.postgres.start()
    expect(notice).to_have_count(0, timeout=20_000)
    page.close()
