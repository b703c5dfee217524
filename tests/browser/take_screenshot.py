"""Takes assets/screenshot.png anew: `python -m tests.browser.take_screenshot [EXAMPLE]` makes an example's video."""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.presets import load_presets
from tests.browser.conftest import ROOT, open_studio, running_app, running_chromium

SCREENSHOT = ROOT / "assets" / "screenshot.png"
SHOWN_SHARE = 0.7  # of the result: by then its effect is plain to see
TIMEOUT_MS = 300_000


def take_screenshot(title: str) -> None:
    """Make the video of an example and take a picture of the whole page beside it."""
    with tempfile.TemporaryDirectory() as folder, running_app(Path(folder)) as url, running_chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        open_studio(page, url)
        page.get_by_role("button", name=title).click()
        page.locator("#clip video").wait_for()
        page.click("#generate")
        page.locator("#video video").wait_for(timeout=TIMEOUT_MS)
        page.wait_for_function("[...document.querySelectorAll('#clip video, #video video')].every(v => v.duration > 0)")
        page.evaluate(
            "share => document.querySelectorAll('#clip video, #video video').forEach((video) => {"
            "video.pause(); video.currentTime = share * video.duration })",
            SHOWN_SHARE,
        )
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        picture = Image.open(BytesIO(page.screenshot(full_page=True)))
    # 256 colours, dithered, are a third of the size.
    picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(SCREENSHOT, optimize=True)


if __name__ == "__main__":
    take_screenshot(sys.argv[1] if len(sys.argv) > 1 else load_presets()[0].title)
