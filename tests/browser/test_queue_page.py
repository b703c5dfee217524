"""The page on the queue: what is under way outlives the page, and everybody has a list of one's own."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from pipeline.presets import load_presets
from tests.browser.actions import (
    GENERATION_TIMEOUT_MS,
    choose_example,
    fill,
    read,
    serious_findings,
    sticks_out,
    upload,
    wait_for_steps,
)
from tests.browser.conftest import find_in_package, free_port, open_studio, running_app

pytestmark = pytest.mark.browser

LONG = 100  # steps


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One person's browser, whose tabs share what is kept."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, app_url: str) -> Page:
    """The first tab of that browser."""
    page = context.new_page()
    open_studio(page, app_url)
    return page


def wait_for_video(page: Page) -> str:
    video = page.locator("#video video")
    video.wait_for(timeout=GENERATION_TIMEOUT_MS)
    return video.get_attribute("src") or ""


def wait_until(page: Page, is_so: Callable[[], object]) -> None:
    """Wait for something outside of the page, while what the page sends is dealt with."""
    for _ in range(200):
        if is_so():
            return
        page.wait_for_timeout(100)
    raise AssertionError("still not so after 20 s")


def generate(page: Page) -> None:
    """Press the button, and wait until the request has its place in the queue."""
    before = page.url
    page.click("#generate")
    page.wait_for_function("before => location.href !== before", arg=before)


def open_jobs(page: Page) -> None:
    page.get_by_role("tab", name="My jobs").click()
    page.locator("#jobs .job").first.wait_for()


def titles(page: Page) -> list[str]:
    return page.locator("#jobs .job:is(.waiting, .running) h3").all_inner_texts()


def test_a_reload_in_the_middle_loses_nothing(page: Page, app_url: str) -> None:
    """The bar goes on after a reload with a picture of what is made; later, at the bare address, the video is there."""
    choose_example(page, steps=25)
    generate(page)
    wait_for_steps(page)

    page.reload()

    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(page.locator("#stop")).to_be_enabled()
    page.locator("#preview img").wait_for(timeout=GENERATION_TIMEOUT_MS)
    expect(page.locator("#status")).to_contain_text("left")
    page.goto("about:blank")
    open_studio(page, app_url)
    assert wait_for_video(page)
    expect(page.locator("#preview img")).to_have_count(0)


def test_two_tabs_of_one_browser_follow_their_own_jobs(page: Page, context: BrowserContext, app_url: str) -> None:
    """Each shows its own, the second in line behind the first; both keep it over a reload, and both list both."""
    choose_example(page, "The first tab grows.", steps=8)
    other = context.new_page()
    open_studio(other, app_url)
    choose_example(other, "The second tab grows.")
    generate(page)
    generate(other)
    expect(other.locator("#status")).to_contain_text("Waiting in line")

    other.reload()
    page.reload()

    assert wait_for_video(page)
    expect(page.locator("#settings")).to_contain_text("The first tab grows.")
    assert wait_for_video(other)
    expect(other.locator("#settings")).to_contain_text("The second tab grows.")
    for tab in (page, other):
        open_jobs(tab)
        expect(tab.locator("#jobs .job.succeeded")).to_have_count(2)


def test_a_late_answer_about_an_older_job_stops_nothing(page: Page, app_url: str) -> None:
    """The older job ends in the very look that Generate's answer overtakes: the new job is followed all the same."""
    held: list[Route] = []
    choose_example(page, "The older one.", steps=LONG)
    generate(page)
    wait_for_steps(page)
    request = f"{app_url}/fal/queue/fal-ai/video-as-prompt/requests/{page.url.partition('job=')[2]}"
    page.route("**/run/predict*", lambda route: held.append(route), times=1)
    wait_until(page, lambda: held)
    fill(page, "prompt", "The newer one.")
    fill(page, "num_inference_steps", "1")
    generate(page)

    page.request.put(f"{request}/cancel")
    wait_until(page, lambda: "COMPLETED" in page.request.get(f"{request}/status").text())
    held[0].continue_()

    assert wait_for_video(page)
    expect(page.locator("#settings")).to_contain_text("The newer one.")


def test_a_reload_keeps_the_form(page: Page, context: BrowserContext, app_url: str, tmp_path: Path) -> None:
    """Words, choices, sliders and both files, right or wrong; each tab its own, and a new one the last."""
    picture = tmp_path / "mine.png"
    Image.new("RGB", (320, 240), "teal").save(picture)
    upload(page, "reference_video", find_in_package("gradio", "media_assets/videos/world.mp4"))
    upload(page, "image", picture)
    fill(page, "prompt", "Half a sen")
    fill(page, "seed", "not yet a number")
    fill(page, "num_frames", "21")
    page.locator("#field-aspect_ratio label", has_text="Wide").click()
    other = context.new_page()
    open_studio(other, app_url)
    expect(other.locator("#field-prompt textarea")).to_have_value("Half a sen")
    fill(other, "prompt", "Another tab's.")
    expect(other.locator("#clip video")).to_be_visible()

    for tab, prompt in ((page, "Half a sen"), (other, "Another tab's.")):
        tab.reload()

        expect(tab.locator("#field-prompt textarea")).to_have_value(prompt)
        expect(tab.locator("#field-seed :is(input, textarea)")).to_have_value("not yet a number")
        expect(tab.locator("#field-num_frames input[type=number]")).to_have_value("21")
        expect(tab.locator("#field-aspect_ratio input:checked")).to_have_value("16:9")
        expect(tab.locator("#clip video")).to_have_attribute("src", re.compile(r"world\.mp4$"))
        expect(tab.locator("#field-image img")).to_have_attribute("src", re.compile(r"mine\.png$"))
    page.get_by_role("button", name="Remove Image").click()
    page.wait_for_timeout(1000)
    page.reload()
    expect(page.locator("#clip video")).to_be_visible()
    expect(page.locator("#field-image img")).to_have_count(0)


def test_a_link_shows_the_same_on_another_device(page: Page, browser: Browser) -> None:
    """Progress first, then the video, with its settings; to stop it is for its owner alone."""
    choose_example(page, steps=50)  # still under way when the other device has opened the page
    generate(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy-link")
    expect(page.locator("#copy-link")).to_have_text("Copied")
    link = page.evaluate("navigator.clipboard.readText()")
    elsewhere = browser.new_page()

    elsewhere.goto(link)

    expect(elsewhere.get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(elsewhere.locator("#stop")).to_be_disabled()
    assert wait_for_video(elsewhere) == wait_for_video(page)
    assert elsewhere.locator("#settings").inner_text() == page.locator("#settings").inner_text()
    elsewhere.get_by_role("tab", name="My jobs").click()
    expect(elsewhere.locator("#jobs")).to_contain_text("Nothing here yet")
    elsewhere.close()


def test_a_link_to_nothing_says_so(page: Page, app_url: str) -> None:
    """A deleted video, or a mistyped address."""
    page.goto(f"{app_url}/?job=none")

    expect(page.locator("#status [role=alert]")).to_have_text("There is no such video, or it was deleted.")
    expect(page.locator("#generate")).to_be_enabled()


def test_waiting_jobs_change_places_and_go(page: Page) -> None:
    """Up and down among one's own, by keyboard too; remove one that waits, stop the one that runs."""
    for prompt in ("One.", "Two.", "Three."):
        choose_example(page, prompt, steps=LONG)
        generate(page)
    open_jobs(page)
    expect(page.locator("#jobs .job.running")).to_have_count(1, timeout=20_000)
    assert titles(page) == ["One.", "Two.", "Three."]

    page.get_by_role("button", name="Move up: Three.").focus()
    page.keyboard.press("Enter")

    expect(page.locator("#jobs .job.waiting h3").first).to_have_text("Three.")
    assert page.evaluate("document.activeElement.dataset.job") is not None
    expect(page.get_by_role("button", name="Move up: Three.")).to_be_disabled()
    page.get_by_role("button", name="Move down: Three.").click()
    expect(page.locator("#jobs .job.waiting h3").first).to_have_text("Two.")
    page.get_by_role("button", name="Remove: Two.").click()
    expect(page.locator("#jobs .job.cancelled")).to_have_count(1)
    page.get_by_role("button", name="Remove: Three.").click()
    page.get_by_role("button", name="Stop: One.").click()
    expect(page.locator("#jobs .job.cancelled")).to_have_count(3)
    page.get_by_role("tab", name="Create").click()
    expect(page.locator("#status [role=alert]")).to_have_text("The generation was stopped.")


def test_a_finished_job_is_shown_used_again_downloaded_and_deleted(page: Page) -> None:
    """Its poster, its settings in the form with both files, its file, and then nothing of it."""
    preset = load_presets()[0]
    choose_example(page, "It grows and grows.")
    fill(page, "seed", "99")
    generate(page)
    wait_for_video(page)
    page.reload()
    wait_for_video(page)
    open_jobs(page)
    poster = page.locator("#jobs .job.succeeded img")
    page.wait_for_function("document.querySelector('#jobs img').naturalWidth > 0")
    page.locator("#jobs summary").click()
    expect(page.locator("#jobs .settings")).to_contain_text(preset.request.reference_video.name)

    page.get_by_role("button", name="Use these settings").click()

    page.locator("#clip video").wait_for()
    page.locator("#field-image img").wait_for()
    expect(page.locator("#field-prompt textarea")).to_have_value("It grows and grows.")
    assert (read(page, "seed"), read(page, "num_frames")) == ("99", "17")
    open_jobs(page)
    with page.expect_download() as download:
        page.locator("#jobs").get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "it-grows-and-grows-99.mp4"
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Delete").click()
    expect(poster).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#jobs")).to_contain_text("Nothing here yet")


def test_the_code_of_the_form_runs_as_it_stands(page: Page, app_url: str) -> None:
    """The cURL program of an example makes its video; the others name this server and warn of the real fal."""
    choose_example(page)
    page.get_by_role("tab", name="Code").click()
    program = page.get_by_role("region", name="cURL program")
    expect(program).to_contain_text(load_presets()[0].request.reference_video.name)
    expect(page.locator("#code-notes")).to_contain_text("fal’s clients call the real fal without a word")

    ended = subprocess.run(["bash", "-c", program.inner_text()], capture_output=True, timeout=150, check=False)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["video"]["url"].startswith(f"{app_url}/fal/cdn/files/results/")
    for language, sign in (("Python", f'QUEUE_URL_FORMAT = "{app_url}'), ("JavaScript", f'url: "{app_url}')):
        page.get_by_role("tab", name=language, exact=True).click()
        expect(page.get_by_role("region", name=f"{language} program")).to_contain_text(sign)


def test_a_program_that_speaks_gradio_meets_the_same_queue(page: Page, app_url: str, data_dir: Path) -> None:
    """/generate gives file and settings; what it asked for stands in line with the rest."""
    request = load_presets()[0].request
    given = {name: value for name, value in request.model_dump(mode="json").items() if value is not None}
    files = {name: handle_file(given[name]) for name in ("reference_video", "image")}

    with closing(Client(app_url, verbose=False, download_files=False)) as client:
        answer = client.predict(
            **{**given, **files, "num_frames": 17, "num_inference_steps": "1", "seed": "5"}, api_name="/generate"
        )

    assert answer[2]["seed"] == 5
    assert len(list((data_dir / "files" / "results").rglob("*-5.mp4"))) == 1


def test_a_restart_in_the_middle_loses_nothing(context: BrowserContext, tmp_path: Path) -> None:
    """The app ends while a video is made; started again it goes on, and the browser finds video and list again."""
    port = free_port()
    page = context.new_page()
    with running_app(tmp_path, port) as url:
        open_studio(page, url)
        choose_example(page, steps=25)
        generate(page)
        wait_for_steps(page)
        page.goto("about:blank")

    with running_app(tmp_path, port) as url:
        open_studio(page, url)

        assert wait_for_video(page)
        open_jobs(page)
        expect(page.locator("#jobs .job.succeeded")).to_have_count(1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lists_and_programs_are_for_everyone(page: Page, app_url: str, theme: str) -> None:
    """Axe finds nothing serious while one runs, another waits and a third was stopped; a phone shows it all."""
    open_studio(page, app_url, theme)
    for prompt in ("One runs.", "Two waits.", "Three was stopped, as its long long sentence says, again and again."):
        choose_example(page, prompt, steps=LONG)
        generate(page)
    page.click("#stop")
    page.locator("#status .notice").wait_for()
    open_jobs(page)
    page.locator("#jobs .job.running").wait_for()
    found = {"jobs": serious_findings(page)}
    page.get_by_role("button", name="Show: One runs.").click()
    page.locator("#preview img").wait_for(timeout=GENERATION_TIMEOUT_MS)
    expect(page.locator(".result")).to_be_in_viewport()
    found["running"] = serious_findings(page)
    page.get_by_role("tab", name="Code").click()
    page.get_by_role("region", name="cURL program").wait_for()
    found["code"] = serious_findings(page)

    page.set_viewport_size({"width": 390, "height": 844})
    wider = {"code": sticks_out(page)}
    open_jobs(page)
    wider["jobs"] = sticks_out(page)
    for action in ("Remove: Two waits.", "Stop: One runs."):
        page.get_by_role("button", name=action).click()
    expect(page.locator("#jobs .job.cancelled")).to_have_count(3)

    assert found == {"jobs": [], "running": [], "code": []}
    assert wider == {"code": [], "jobs": []}
