"""Reading behind the wall: the same pictures and the same sentences, and an end to what would have none."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import media, wall
from pipeline.check import check_inputs
from pipeline.errors import MediaError
from pipeline.spec import GenerationRequest


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six frames, each brighter than the one before."""
    path = tmp_path / "clip.mp4"
    frames = [Image.new("RGB", (64, 48), (40 * index, 90, 160)) for index in range(6)]
    media.write_video(frames, path, fps=6, height=48, width=64)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def test_a_clip_is_read_as_without_the_wall(clip: Path) -> None:
    """The same facts and pictures, a repeated one as the same object."""
    asked = {"num_frames": 9, "height": 30, "width": 40, "start_s": 0.2, "end_s": 0.9}

    facts, frames = wall.probe_video(clip), wall.read_video(clip, **asked)

    expected = media.read_video(clip, **asked)
    assert facts == media.probe_video(clip)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(frames, expected, strict=True))
    assert len({id(frame) for frame in frames}) == len({id(frame) for frame in expected}) < 9


def test_a_picture_is_read_as_without_the_wall(photo: Path) -> None:
    """Pixel by pixel, and nothing is said of a good one that is only checked."""
    picture = wall.read_image(photo, height=30, width=40)

    wall.check_image(photo)

    assert np.array_equal(picture, media.read_image(photo, height=30, width=40))


def test_paths_are_meant_as_they_were_given(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process works elsewhere."""
    monkeypatch.chdir(clip.parent)

    assert wall.probe_video(Path(clip.name)).num_frames == 6


@pytest.mark.parametrize("reader", ["probe_video", "check_image"])
def test_the_sentences_are_the_same(reader: str, tmp_path: Path) -> None:
    """With the field that the caller names."""
    broken = tmp_path / "broken “file”.png"
    broken.write_bytes(b"no picture at all" * 50)

    def told_by(read: Callable[..., object]) -> tuple[str | None, str]:
        with pytest.raises(MediaError) as told:
            read(broken, field="prompt")
        return told.value.field, told.value.message

    assert told_by(getattr(wall, reader)) == told_by(getattr(media, reader))


def test_a_file_that_takes_too_long_is_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is ended, not waited for."""
    monkeypatch.setattr(wall, "PROBE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(wall, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    began = time.monotonic()

    with pytest.raises(
        MediaError, match=r"'clip.mp4' takes more than 0.5 s to read; cut out the part you want"
    ) as told:
        wall.probe_video(clip)

    assert told.value.field == "reference_video"
    assert time.monotonic() - began < 20


def test_a_file_that_takes_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """36 million pixels, which are allowed, do not fit into 0.25 GB; this program does not feel it."""
    photo = tmp_path / "large.png"
    Image.new("L", (6000, 6000)).save(photo)
    monkeypatch.setattr(wall, "MEMORY_BYTES", 2**28)

    with pytest.raises(MediaError, match=r"'large.png' takes more than 0.25 GB to read; scale it down.") as told:
        wall.check_image(photo)

    assert told.value.field == "image"


def test_a_clip_that_takes_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg calls data invalid where memory is short; so does the sentence, and nothing else suffers."""
    clip = tmp_path / "large.mp4"
    media.write_video([np.zeros((2160, 3840, 3), np.uint8)] * 3, clip, fps=3, height=2160, width=3840)
    monkeypatch.setattr(wall, "MEMORY_BYTES", 2**28)

    with pytest.raises(MediaError, match=r"No frame of 'large.mp4' can be decoded"):
        wall.probe_video(clip)


def test_a_file_that_breaks_the_decoder_breaks_nothing_else(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of native code is a sentence."""
    monkeypatch.setattr(wall, "COMMAND", (sys.executable, "-c", "import os; os.abort()"))

    with pytest.raises(MediaError, match=r"'clip.mp4' breaks the program that reads it; export it again"):
        wall.probe_video(clip)


def test_requests_are_checked_behind_the_wall(clip: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page, API and command line all come through here."""
    monkeypatch.setattr(wall, "COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    request = GenerationRequest(prompt="a", video_description="b", reference_video=clip, image=photo)

    with pytest.raises(MediaError, match="breaks the program"):
        check_inputs(request)
