"""What a person does on the page, and what can be read there."""

import re
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from pipeline.presets import load_presets

GENERATION_TIMEOUT_MS = 300_000
MORE_SETTINGS = "More settings"
AFTER_FRAMES = """async () => {
    for (let frame = 0; frame < 4; frame++) await new Promise(requestAnimationFrame)
}"""


def fill(page: Page, field: str, text: str) -> None:
    page.locator(f"#field-{field} :is(textarea, input[type=text], input[type=number])").first.fill(text)


def read(page: Page, field: str) -> str:
    return page.locator(f"#field-{field} :is(textarea, input[type=text], input[type=number])").first.input_value()


def unfold_settings(page: Page) -> None:
    """Unfold the settings that are folded at first, and wait until they take what is typed.

    Gradio gives a field that it has just put on the page its first value once more, one or two frames later. No person
    is so quick, but a test is.
    """
    page.get_by_role("button", name=MORE_SETTINGS).click()
    page.locator("#field-num_inference_steps input").first.wait_for()
    page.evaluate(AFTER_FRAMES)


def fill_folded(page: Page, field: str, text: str) -> None:
    """Fill in a field of the settings that are folded at first, and fold them again."""
    unfold_settings(page)
    fill(page, field, text)
    page.get_by_role("button", name=MORE_SETTINGS).click()


def upload(page: Page, field: str, path: Path) -> None:
    page.locator(f"#field-{field} input[type=file]").set_input_files(str(path))
    page.locator("#clip video" if field == "reference_video" else f"#field-{field} img").wait_for()


def make_it_short(page: Page, steps: int = 4) -> None:
    """Ask for as little work as still shows everything; without guidance a step is half as much."""
    fill(page, "num_frames", "17")
    if not page.locator("#field-num_inference_steps").is_visible():
        unfold_settings(page)
    fill(page, "num_inference_steps", str(steps))
    fill(page, "guidance_scale", "1")
    assert read(page, "num_inference_steps") == str(steps)


def fill_all(page: Page, clip: Path, photo: Path, prompt: str = "The astronaut slowly turns into the earth.") -> None:
    upload(page, "reference_video", clip)
    upload(page, "image", photo)
    fill(page, "video_description", "The earth turns before the stars.")
    fill(page, "prompt", prompt)
    make_it_short(page)


def problem(page: Page, field: str) -> str:
    line = page.locator(f"#field-{field} [role=alert]")
    line.wait_for()
    return line.inner_text()


def serious_findings(page: Page) -> list[str]:
    findings = Axe().run(page).response["violations"]
    return [
        f"{finding['id']}: {node['target']}"
        for finding in findings
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]


def choose_example(page: Page, prompt: str = "", steps: int = 1) -> None:
    """Fill the form from the first example, with little work in it."""
    preset = load_presets()[0]
    page.get_by_role("button", name=preset.title).click()
    expect(page.locator("#field-prompt textarea")).to_have_value(preset.request.prompt)
    page.locator("#clip video").wait_for()
    make_it_short(page, steps)
    if prompt:
        fill(page, "prompt", prompt)


def wait_for_steps(page: Page) -> None:
    """Wait until the drawing is under way; the page looks too seldom to show each step."""
    page.locator("#status", has_text=re.compile(r"step [1-9]\d* of")).wait_for(timeout=GENERATION_TIMEOUT_MS)


def sticks_out(page: Page) -> list[str]:
    """Give what is wider than the screen."""
    return page.evaluate(
        """() => [...document.querySelectorAll('main *')]
            .filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > innerWidth + 1)
            .map((element) => element.outerHTML.slice(0, 120))"""
    )
