"""Files to frames and back: probe, read and write videos, read pictures. Every frame is an RGB picture, upright."""

import json
import struct
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image, ImageOps

from pipeline.errors import MediaError
from pipeline.file_kind import FileKind, Medium, kind_of_file
from pipeline.timeline import frames_in_window
from pipeline.video_reader import MAX_PIXELS, VideoScan, decode_frames, open_video, over_white, scan_video

Frame = Image.Image | np.ndarray[Any, np.dtype[np.uint8]]

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")

# The key under which our videos carry their settings; `comment` has them too, for players that show comments.
SETTINGS_KEY = "video_as_prompt_settings"


@dataclass(frozen=True)
class VideoInfo:
    """The first video stream of a file as a player shows it: upright, in square pixels.

    num_frames: frames that can be read. fps: their mean rate, also where the rate varies. codec: as FFmpeg calls it.
    """

    height: int
    width: int
    num_frames: int
    duration_s: float
    fps: float
    has_audio: bool
    codec: str


def probe_video(path: Path, field: str = "reference_video") -> VideoInfo:
    """Find what a video holds, by reading all of it but decoding only its first frame.

    Raises MediaError for the field when it cannot be read as a video: see video_reader.scan_video.
    """
    return _info(scan_video(path, field))


def read_video(
    path: Path,
    *,
    num_frames: int,
    height: int,
    width: int,
    start_s: float | None = None,
    end_s: float | None = None,
    field: str = "reference_video",
) -> list[Image.Image]:
    """Read num_frames evenly chosen frames of [start_s, end_s), each cover-cropped to height x width, RGB.

    Frames count in the order of presentation, whatever their spacing in time; a window with fewer than num_frames
    repeats some (the same object again). Memory does not grow with the clip. Raises MediaError for the field when the
    file cannot be read as a video (see video_reader.scan_video); see check_window for those of start_s and end_s.
    """
    scan = scan_video(path, field)
    check_window(_info(scan), start_s=start_s, end_s=end_s)
    window = frames_in_window(scan.timeline.times_s, start_s, end_s)
    chosen = [window[place] for place in choose_frames(len(window), num_frames)]
    # Cropped as stored and turned upright afterwards, when the picture is small.
    size = (width, height) if scan.orientation.is_transposed else (height, width)

    def fit(picture: Image.Image) -> Image.Image:
        return scan.orientation.apply(cover_crop(picture, *size, pixel_aspect=scan.pixel_aspect).convert("RGB"))

    pictures = dict(decode_frames(path, scan, chosen, fit, field))
    return [pictures[index] for index in chosen]


def choose_frames(n: int, num_frames: int) -> list[int]:
    """Choose num_frames of n frames, evenly and with both ends, as Video-As-Prompt does: some repeat when n is smaller.

    The rule is torch.linspace(0, n - 1, num_frames).long(): float32, counted from the nearer end, with one rounding
    (fused multiply-add), truncated. Its rounding decides between neighbours, so numpy's linspace gives other frames;
    written out it is the same on every processor and saves the 170 MB of importing torch. Compared with torch 2.13 on
    AVX2 and AVX-512: equal for all n to 7,200 and num_frames = 4k + 1 to 257. Raises ValueError when either is below 1.
    """
    if n < 1 or num_frames < 1:
        raise ValueError(f"cannot choose {num_frames} of {n} frames: both must be 1 or more")
    if num_frames == 1:
        return [0]
    last, places = n - 1, np.arange(num_frames)
    step = float(np.float32(last) / np.float32(num_frames - 1))
    # In float64 the product of two float32 is exact, so rounding afterwards is the one rounding of a fused step.
    exact = np.where(places < num_frames // 2, step * places, last - step * (num_frames - 1 - places))
    return [int(index) for index in exact.astype(np.float32)]


def check_window(info: VideoInfo, *, start_s: float | None, end_s: float | None) -> None:
    """Require that [start_s, end_s) lies within the clip; None means its own start or end.

    The end may be up to one mean frame late, since players show rounded lengths. Raises MediaError for
    "reference_start_s" or "reference_end_s".
    """
    start = 0.0 if start_s is None else start_s
    end = info.duration_s if end_s is None else end_s
    choose = f"lies outside of the clip; choose one from 0 to {info.duration_s:.2f} s"
    if not 0 <= start < info.duration_s:
        raise MediaError("reference_start_s", f"A start at {start:g} s {choose}.")
    if not 0 < end <= info.duration_s + 1 / info.fps:
        raise MediaError("reference_end_s", f"An end at {end:g} s {choose}.")
    if end <= start:
        message = f"An end at {end:g} s does not come after the start at {start:g} s; end later or start earlier."
        raise MediaError("reference_end_s", message)


def cover_crop(image: Image.Image, height: int, width: int, pixel_aspect: float = 1.0) -> Image.Image:
    """Fill height x width with the centre of an image: the largest part of that shape, scaled with Lanczos.

    pixel_aspect: width of one pixel of the image over its height (1 is square); the result has square pixels.
    """
    scale = max(width / (image.width * pixel_aspect), height / image.height)
    box_width = min(width / scale / pixel_aspect, image.width)
    box_height = min(height / scale, image.height)
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def read_image(path: Path, *, height: int, width: int, field: str = "image") -> Image.Image:
    """Read a JPEG, PNG or WebP picture (of an animation the first) upright, cover-cropped to height x width, RGB.

    Transparency is laid over white, 16 bits become 8, CMYK is converted without its profile; no metadata is kept.
    Raises MediaError for the field: no file, not such a picture, broken, or more than MAX_PIXELS.
    """
    kind = kind_of_file(path, field)
    if kind.medium is not Medium.PICTURE:
        raise MediaError(field, _not_a_picture(path, kind))
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            _check_pixels(image, path, field)
            upright = ImageOps.exif_transpose(image)
            picture = cover_crop(_flatten(upright), height, width)
    # Pillow warns, or raises, on opening what is larger than its own limits, which lie above ours.
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise MediaError(field, _too_many_pixels(path, "far")) from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        message = f"{path.name!r} is {kind.name} that is broken, or not JPEG, PNG or WebP; save it as one of them."
        raise MediaError(field, message) from error
    # A new picture from the pixels alone: a resized one still carries EXIF, place and comments in `info`.
    return Image.fromarray(np.asarray(picture))


def check_image(path: Path, field: str = "image") -> None:
    """Require that read_image can read this file. Raises MediaError for the field as it does."""
    read_image(path, height=1, width=1, field=field)


def write_video(
    frames: Iterable[Frame],
    path: Path,
    *,
    fps: float | Fraction,
    height: int,
    width: int,
    settings: Mapping[str, Any] | None = None,
    effort: str = "medium",
) -> None:
    """Write an H.264 MP4 of exactly these frames, this size and rate: yuv420p, BT.709 tagged, index at the front.

    frames: RGB pictures or uint8 arrays (height, width, 3), one at a time; those of another size are scaled to it with
    Lanczos. settings: stored as JSON inside the file, see read_settings. effort: a preset of x264 by its name. The file
    appears when it is whole: it is written beside and moved into place. Raises MediaError for "num_frames" when there
    are no frames and for "height" or "width" when it is odd; ValueError for settings that JSON cannot hold.
    """
    for name, length in (("height", height), ("width", width)):
        if length < 2 or length % 2:
            even = max(2, length - length % 2)
            raise MediaError(name, f"A video cannot be {length} pixels in {name}; try {even} or {even + 2}.")
    rate = Fraction(fps).limit_denominator(1001)
    metadata = {} if settings is None else _settings_metadata(settings)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        _encode((_fit(frame, height, width) for frame in frames), unfinished, rate, height, width, metadata, effort)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_settings(path: Path) -> dict[str, Any] | None:
    """Give the settings that write_video stored in a file, None when there are none.

    Raises MediaError for "video" when the file cannot be opened as a video.
    """
    with open_video(path, "video") as (container, _):
        text = container.metadata.get(SETTINGS_KEY)
    try:
        settings = json.loads(text or "null")
    except (ValueError, RecursionError):  # nesting without end is how a foreign file could answer
        return None
    return settings if isinstance(settings, dict) else None


def _info(scan: VideoScan) -> VideoInfo:
    """Sum up a scan."""
    height, width = scan.upright_size
    num_frames, duration_s = len(scan.timeline.pts), scan.timeline.duration_s
    rate = num_frames / duration_s
    return VideoInfo(height, width, num_frames, duration_s, rate, scan.has_audio, scan.codec)


def _settings_metadata(settings: Mapping[str, Any]) -> dict[str, str]:
    """Give the entries of the file's metadata that carry the settings."""
    text = json.dumps(dict(settings), ensure_ascii=False, allow_nan=False)
    return {SETTINGS_KEY: text, "comment": text}


def _fit(frame: Frame, height: int, width: int) -> Image.Image:
    """Give the frame as an RGB picture of that size."""
    picture = frame if isinstance(frame, Image.Image) else Image.fromarray(frame)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _encode(
    pictures: Iterable[Image.Image],
    path: Path,
    rate: Fraction,
    height: int,
    width: int,
    metadata: Mapping[str, str],
    effort: str,
) -> None:
    """Encode RGB pictures of one size into a new MP4 file."""
    # use_metadata_tags lets the MP4 carry keys of our own beside the handful that it knows.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart+use_metadata_tags"}) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "17", "preset": effort})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        count = 0
        for count, picture in enumerate(pictures, start=1):
            frame = VideoFrame.from_ndarray(np.asarray(picture), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = count - 1, 1 / rate
            container.mux(stream.encode(frame))
        if not count:
            raise MediaError("num_frames", "There is no frame to make a video of; ask for 1 or more.")
        container.mux(stream.encode(None))


def _flatten(image: Image.Image) -> Image.Image:
    """Give any picture that Pillow opens as 8-bit RGB."""
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return over_white(image.convert("RGBA")) if image.has_transparency_data else image.convert("RGB")


def _check_pixels(image: Image.Image, path: Path, field: str) -> None:
    """Raise MediaError when a picture, opened but not yet decoded, is too large to be decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(field, _too_many_pixels(path, f"{image.width} x {image.height} pixels,"))


def _too_many_pixels(path: Path, amount: str) -> str:
    """Explain the pixel limit."""
    return f"{path.name!r} has {amount} more than {MAX_PIXELS // 10**6} million pixels; scale it down."


def _not_a_picture(path: Path, kind: FileKind) -> str:
    """Explain what a file is that was given as a picture."""
    if kind.medium is Medium.VIDEO:
        return (
            f"{path.name!r} is {kind.name}, and a still picture is needed here; give a video as the reference video, "
            "and here a JPEG, PNG or WebP."
        )
    return f"{path.name!r} is {kind.name}, not a picture; give a JPEG, PNG or WebP."
