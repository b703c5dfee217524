"""The page as a person meets it: the real app, a real browser, real files."""

import re
from pathlib import Path

import av
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pipeline.presets import load_presets
from tests.browser.actions import (
    GENERATION_TIMEOUT_MS,
    choose_example,
    fill,
    fill_all,
    fill_folded,
    make_it_short,
    problem,
    read,
    serious_findings,
    sticks_out,
    unfold_settings,
    upload,
    wait_for_steps,
)
from tests.browser.conftest import find_in_package, open_studio

pytestmark = pytest.mark.browser


@pytest.fixture(scope="session")
def clip() -> Path:
    """A real clip, as cameras make them."""
    return find_in_package("gradio", "media_assets/videos/world.mp4")


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photograph."""
    return find_in_package("skimage", "data/astronaut.png")


def ends_with(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name) + "$")


def count_runs(page: Page) -> int:
    """Give of how many runs the page has learnt what one takes."""
    told = page.locator("#estimate")
    expect(told).to_contain_text(re.compile(r"\(predicted|from \d+ run"))
    learnt = re.search(r"from (\d+) run", told.inner_text())
    return int(learnt[1]) if learnt else 0


def test_a_person_makes_plays_and_downloads_a_video(
    page: Page, clip: Path, photo: Path, tmp_path: Path, data_dir: Path, foreign_requests: list[str]
) -> None:
    """From two files and two sentences to an MP4 of exactly what was asked for, and nothing leaves the machine."""
    fill_all(page, clip, photo)
    page.locator("#field-aspect_ratio label", has_text="Wide").click()
    fill(page, "seed", "1234")
    runs_before = count_runs(page)

    page.click("#generate")

    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(page.locator("#stop")).to_be_enabled()
    page.locator("#video video").wait_for(timeout=GENERATION_TIMEOUT_MS)
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator("#estimate")).to_contain_text(f"from {runs_before + 1} run")
    page.wait_for_function("document.querySelector('#video video').readyState >= 3")
    page.evaluate("document.querySelector('#video video').play()")
    page.wait_for_function("document.querySelector('#video video').currentTime > 0.2")
    settings = page.locator("#settings").inner_text()
    for shown in ("1234", "832 × 480", "17", "The astronaut slowly turns into the earth.", photo.name, clip.name):
        assert shown in settings
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "the-astronaut-slowly-turns-into-the-1234.mp4"
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    with av.open(str(saved)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_image() for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 16)
    assert [frame.size for frame in frames] == [(832, 480)] * 17
    assert {path.parent.parent for path in data_dir.rglob("*-1234.mp4")} == {data_dir / "files" / "results"}
    page.get_by_role("tab", name="Beside the reference").click()
    page.wait_for_function("document.querySelector('#comparison video')?.readyState >= 2")
    assert foreign_requests == []


def test_the_seed_of_a_result_can_be_used_again(page: Page) -> None:
    """An empty seed is drawn, shown, and goes back into the form on one click."""
    page.get_by_role("button", name=load_presets()[0].title).click()
    expect(page.locator("#field-seed input, #field-seed textarea")).not_to_have_value("")
    fill(page, "seed", "")
    make_it_short(page, steps=1)

    page.click("#generate")
    page.locator("#video video").wait_for(timeout=GENERATION_TIMEOUT_MS)
    drawn = page.locator("#settings dd").first.inner_text()
    page.click("#use-seed")

    expect(page.locator("#field-seed input, #field-seed textarea")).to_have_value(drawn)
    assert drawn.isdigit()


def test_every_example_fills_everything_on_one_click(page: Page) -> None:
    """Clip, picture, both sentences and all suggested values stand in the form."""
    for preset in load_presets(model="nano"):
        page.get_by_role("button", name=preset.title).click()

        expect(page.locator("#field-prompt textarea")).to_have_value(preset.request.prompt)
        expect(page.locator("#field-video_description textarea")).to_have_value(preset.request.video_description)
        expect(page.locator("#clip video")).to_have_attribute("src", ends_with(preset.request.reference_video.name))
        expect(page.locator("#field-image img")).to_have_attribute("src", ends_with(preset.request.image.name))
        assert read(page, "num_frames") == str(preset.request.num_frames)
        assert read(page, "seed") == str(preset.request.seed)
        assert page.locator("#field-aspect_ratio input:checked").input_value() == preset.request.aspect_ratio


def test_everything_missing_is_told_at_its_field(page: Page) -> None:
    """Four empty fields, four sentences beside them, tied to their inputs; the first one has the focus."""
    page.click("#generate")

    assert problem(page, "reference_video") == "The reference video is missing."
    assert problem(page, "image") == "The start image is missing."
    assert problem(page, "video_description") == "The description of the reference video is missing."
    assert problem(page, "prompt") == "The prompt is missing."
    expect(page.locator("#field-prompt textarea")).to_have_attribute("aria-describedby", "problem-prompt")
    expect(page.locator("#field-prompt textarea")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#generate")).to_be_enabled()
    fill(page, "prompt", "It melts.")
    expect(page.locator("#field-prompt [role=alert]")).to_have_count(0)


@pytest.mark.parametrize(
    ("field", "given", "sentence"),
    [
        ("num_frames", "48", "A video cannot have 48 frames; try 45 or 49."),
        ("seed", "abc", "The seed is 'abc'; it must be a whole number."),
        ("num_inference_steps", "0", "The number of steps is 0; it can be from 1 to 100."),
        ("reference_start_s", "900", "A start at 900 s lies outside of the clip"),
    ],
)
def test_a_value_that_cannot_be_is_told_at_its_field(page: Page, field: str, given: str, sentence: str) -> None:
    """The sentence stands at the field, folded settings open for it, no work starts and nothing typed is lost."""
    preset = load_presets()[0]
    page.get_by_role("button", name=preset.title).click()
    expect(page.locator("#field-prompt textarea")).to_have_value(preset.request.prompt)
    is_folded = field in ("num_inference_steps", "reference_start_s")
    (fill_folded if is_folded else fill)(page, field, given)

    page.click("#generate")

    assert problem(page, field).startswith(sentence)
    expect(page.locator(f"#field-{field} [role=alert]")).to_be_visible()
    expect(page.get_by_role("progressbar", name="Progress")).to_have_count(0)
    assert read(page, field) == given
    assert read(page, "prompt") == preset.request.prompt


def test_files_that_are_not_what_they_should_be_are_told_at_their_field(
    page: Page, photo: Path, tmp_path: Path
) -> None:
    """A broken clip is told as soon as it is there, a broken picture before any work starts."""
    broken_clip, broken_picture = tmp_path / "clip.mp4", tmp_path / "picture.png"
    broken_clip.write_bytes(b"not a video at all" * 50)
    broken_picture.write_bytes(photo.read_bytes()[:200])
    preset = load_presets()[0]
    page.get_by_role("button", name=preset.title).click()
    expect(page.locator("#field-image img")).to_be_visible()

    page.locator("#field-reference_video").get_by_role("button", name="Clear").click()
    page.locator("#field-reference_video input[type=file]").set_input_files(str(broken_clip))
    first = problem(page, "reference_video")
    page.get_by_role("button", name=preset.title).click()
    expect(page.locator("#field-reference_video [role=alert]")).to_have_count(0)
    page.get_by_role("button", name="Remove Image").click()
    page.locator("#field-image input[type=file]").set_input_files(str(broken_picture))
    page.wait_for_timeout(1000)
    page.click("#generate")

    assert first.endswith(".")
    assert problem(page, "image").endswith(".")


def test_a_gif_is_a_reference_too(page: Page) -> None:
    """Browsers play no GIF as a video; the page shows a preview of it, and what it is."""
    upload(page, "reference_video", find_in_package("skimage", "data/no_time_for_that_tiny.gif"))

    page.wait_for_function("document.querySelector('#clip video').readyState >= 2")
    expect(page.locator("#clip-facts")).to_contain_text("14 × 25")


def test_stop_ends_the_run_at_its_next_step(page: Page) -> None:
    """Stop in the middle of 100 steps: the run is over soon, the page says so, and can start again."""
    page.get_by_role("button", name=load_presets()[0].title).click()
    expect(page.locator("#clip video")).to_be_visible()
    make_it_short(page, steps=100)
    page.click("#generate")
    wait_for_steps(page)

    page.click("#stop")

    expect(page.locator("#status [role=alert]")).to_have_text("The generation was stopped.", timeout=15_000)
    expect(page.locator("#status [role=alert]")).to_be_visible()
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator("#finished")).to_be_hidden()


def test_a_visitor_cannot_stop_the_run_of_another(page: Page, browser: Browser, app_url: str) -> None:
    """A second visitor waits, stops waiting at once and asks again; the first run goes on, then theirs follows."""
    other = browser.new_page()
    open_studio(other, app_url)
    for visitor, steps in ((page, 6), (other, 1)):
        visitor.get_by_role("button", name=load_presets()[0].title).click()
        expect(visitor.locator("#clip video")).to_be_visible()
        make_it_short(visitor, steps=steps)
        visitor.click("#generate")
        expect(visitor.get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(other.locator("#status")).to_contain_text("Waiting")

    other.click("#stop")

    expect(other.locator("#status [role=alert]")).to_have_text("The generation was stopped.")
    other.click("#generate")
    for visitor in (page, other):
        visitor.locator("#video video").wait_for(timeout=GENERATION_TIMEOUT_MS)
    other.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_has_no_serious_accessibility_finding(page: Page, app_url: str, theme: str) -> None:
    """Axe finds nothing serious or critical: empty, with problems, with every setting open, and with a result."""
    open_studio(page, app_url, theme)
    found = {"empty": serious_findings(page)}
    page.click("#generate")
    problem(page, "prompt")
    found["problems"] = serious_findings(page)
    page.get_by_role("button", name=load_presets()[0].title).click()
    expect(page.locator("#clip video")).to_be_visible()
    make_it_short(page, steps=1)
    found["open"] = serious_findings(page)
    page.click("#generate")
    page.locator("#video video").wait_for(timeout=GENERATION_TIMEOUT_MS)
    found["finished"] = serious_findings(page)

    assert found == {"empty": [], "problems": [], "open": [], "finished": []}


def test_a_phone_shows_one_column_without_scrolling_sideways(page: Page, app_url: str) -> None:
    """At 390 pixels nothing is cut off or sticks out, whether folded or open."""
    page.set_viewport_size({"width": 390, "height": 844})
    open_studio(page, app_url)
    unfold_settings(page)
    page.click("#generate")
    problem(page, "prompt")

    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert sticks_out(page) == []
    assert page.locator("footer").inner_text() == "Settings"


def test_who_wants_less_motion_starts_the_clip_by_hand(browser: Browser, app_url: str) -> None:
    """Elsewhere it plays by itself."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    open_studio(page, app_url)
    choose_example(page)
    clip = page.locator("#clip video")

    expect(clip).to_have_js_property("readyState", 4)
    page.wait_for_timeout(500)
    expect(clip).to_have_js_property("paused", True)

    clip.click()
    expect(clip).to_have_js_property("paused", False)
    page.close()


def test_the_page_says_which_model_it_uses(page: Page) -> None:
    """A small model is called small, with the size it draws at."""
    expect(page.locator("#model")).to_contain_text("Small model “nano”: 144x80, scaled up")


def test_the_screenshot_in_the_readme_exists() -> None:
    """It shows the page and is light enough for a README."""
    screenshot = Path(__file__).resolve().parents[2] / "assets" / "screenshot.png"

    with Image.open(screenshot) as picture:
        assert picture.width >= 1200
    assert screenshot.stat().st_size < 400_000
