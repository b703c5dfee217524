"""Previews: what browsers cannot play is shown as a small MP4."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import media
from server.previews import make_preview, shrink


def write_gif(path: Path) -> Path:
    """Write six frames of a moving square, a tenth of a second each."""
    frames = []
    for place in range(6):
        pixels = np.zeros((90, 120, 3), np.uint8)
        pixels[30:60, place * 15 : place * 15 + 30] = (220, 60, 40)
        frames.append(Image.fromarray(pixels))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def test_a_gif_is_shown_as_an_mp4_of_the_same_length(tmp_path: Path) -> None:
    """Same shape, same number of frames, same time; made once."""
    gif = write_gif(tmp_path / "square.gif")
    info = media.probe_video(gif)

    preview = make_preview(gif, info, tmp_path / "previews")
    shown = media.probe_video(preview)

    assert preview.suffix == ".mp4"
    assert (shown.height, shown.width, shown.num_frames) == (90, 120, 6)
    assert shown.duration_s == pytest.approx(info.duration_s, abs=0.05)
    written = preview.stat().st_mtime_ns
    assert make_preview(gif, info, tmp_path / "previews").stat().st_mtime_ns == written


def test_a_clip_that_browsers_play_is_its_own_preview(tmp_path: Path) -> None:
    """Nothing is written."""
    clip = tmp_path / "clip.mp4"
    media.write_video([Image.new("RGB", (64, 48))] * 5, clip, fps=10, height=48, width=64)

    assert make_preview(clip, media.probe_video(clip), tmp_path / "previews") == clip
    assert not (tmp_path / "previews").exists()


@pytest.mark.parametrize(
    ("size", "small"),
    [((1080, 1920), (270, 480)), ((1919, 1080), (480, 270)), ((91, 121), (90, 120)), ((1, 3), (2, 2))],
)
def test_a_preview_is_small_and_even(size: tuple[int, int], small: tuple[int, int]) -> None:
    """The encoder needs even numbers."""
    assert shrink(*size) == small
