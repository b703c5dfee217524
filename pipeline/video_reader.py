"""Untrusted video files on PyAV: open them safely, list their frames, decode chosen ones. media.py builds on this.

Two passes over the file: `scan_video` demuxes every packet, decoding the first frame only, and knows then when each
frame is shown; `decode_frames` decodes what the wanted frames need. Neither holds more than a few frames.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from pipeline.errors import MediaError
from pipeline.file_kind import MP4_KIND, FileKind, Medium, kind_of_file
from pipeline.timeline import PacketMark, Timeline, make_timeline, packets_to_decode

# 8K UHD has 33 million pixels. An honest file stays below; a file made to fill the memory does not.
MAX_PIXELS = 40_000_000
MAX_DURATION_S = 600.0
MAX_PACKETS = 7_200

VIDEO_FORMATS = "MP4, MOV, WebM, MKV, AVI, GIF or TS"

# Without the two whitelists FFmpeg opens playlists disguised as video (ffconcat, m3u8) and follows them to other files.
_OPEN_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts",
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),
}

# Each decoding thread holds frames of its own, 12 MB each at 4K: more threads than this cost memory, not only cores.
_DECODER_THREADS = 2

# What a decoder may skip: nothing unusual, or frames that no other frame refers to.
Skip = Literal["DEFAULT", "NONREF"]

_UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED, AVCOL_TRC_UNSPECIFIED
_HDR_TRANSFERS = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)  # PQ and HLG


@dataclass(frozen=True)
class Orientation:
    """How a decoded frame is turned upright: swap rows and columns first, then mirror."""

    is_transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, image: Image.Image) -> Image.Image:
        """Give the upright image."""
        if self.is_transposed:
            image = image.transpose(Image.Transpose.TRANSPOSE)
        if self.flip_x:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.flip_y:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return image


@dataclass(frozen=True)
class VideoScan:
    """What one pass over a whole file found; packets in decoding order, sizes in pixels as decoded.

    pixel_aspect: width of a pixel over its height, to be applied before the orientation.
    """

    packets: tuple[PacketMark, ...]
    timeline: Timeline
    coded_height: int
    coded_width: int
    pixel_aspect: float
    orientation: Orientation
    has_audio: bool
    codec: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width in square pixels, as a player shows the clip."""
        height, width = self.coded_height, max(1, round(self.coded_width * self.pixel_aspect))
        return (width, height) if self.orientation.is_transposed else (height, width)


@contextmanager
def open_video(path: Path, field: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file from anywhere; give its container and its first video stream, both dead after the `with`.

    Raises MediaError for the field, saying what the file is instead, when it is no video of a format we read, and for
    what FFmpeg raises within the `with`.
    """
    kind = kind_of_file(path, field)
    _refuse_other_media(path, kind, field)
    try:
        # An absolute path is never taken for a URL ("concat:..."), and foreign metadata need not be UTF-8.
        container = av.open(str(path.absolute()), "r", options=dict(_OPEN_OPTIONS), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(field, _why_unreadable(path, kind)) from error
    try:
        with container:
            yield container, _first_video_stream(container, path, field)
    except av.error.FFmpegError as error:
        raise MediaError(field, _why_undecodable(path, is_size_known=True)) from error


def scan_video(path: Path, field: str) -> VideoScan:
    """List the frames of a video and find its size and orientation: one pass that decodes the first frame only.

    A file that breaks off is taken up to there. Raises MediaError for the field: not a video (see open_video), no frame
    decodes, more than MAX_PIXELS, MAX_PACKETS or MAX_DURATION_S.
    """
    with open_video(path, field) as (container, stream):
        marks: list[PacketMark] = []
        first: VideoFrame | None = None
        for packet in _packets(container, stream):
            if len(marks) == MAX_PACKETS:
                message = f"{path.name!r} has more than {MAX_PACKETS:,} frames; cut out the part you want."
                raise MediaError(field, message)
            marks.append(_mark(packet))
            first = first or next(iter(_decode(stream, packet)), None)
        first = first or next(iter(_decode(stream, None)), None)
        if first is None or not any(mark.is_shown for mark in marks):
            raise MediaError(field, _why_undecodable(path, is_size_known=stream.codec_context.width > 0))
        # An AVI has no presentation times: FFmpeg numbers H.264 frames there in the order of decoding.
        is_counted = container.format.name == "avi" or any(mark.pts is None for mark in marks)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        timeline = make_timeline(marks, stream.time_base or 1 / rate, rate, is_counted=is_counted)
        if timeline.duration_s > MAX_DURATION_S:
            raise MediaError(
                field,
                f"{path.name!r} lasts {timeline.duration_s:,.0f} s and at most {MAX_DURATION_S:,.0f} s can be read; "
                "cut out the part you want.",
            )
        return VideoScan(
            packets=tuple(marks),
            timeline=timeline,
            coded_height=first.height,
            coded_width=first.width,
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            orientation=_orientation(first),
            has_audio=bool(container.streams.audio),
            codec=stream.codec_context.name,
        )


def decode_frames(
    path: Path, scan: VideoScan, wanted: Collection[int], fit: Callable[[Image.Image], Image.Image], field: str
) -> Iterator[tuple[int, Image.Image]]:
    """Decode the wanted frames (places in the timeline), in order; each with the picture that fit makes of it.

    fit: from an RGB or RGBX picture, of stored size and not yet upright, to what is kept; only one is alive at a time.
    A frame that does not decode is replaced by the next one that does, at the end by the last. Raises MediaError for
    the field when nothing decodes.
    """
    waiting = deque(sorted(set(wanted)))
    last: VideoFrame | None = None
    reformatter = VideoReformatter()
    with open_video(path, field) as (container, stream):
        for index, frame in _indexed(scan, _run(container, stream, _plan(scan, waiting))):
            last = frame
            if index >= waiting[0]:
                picture = fit(to_rgb(frame, reformatter))
                while waiting and index >= waiting[0]:
                    yield waiting.popleft(), picture
            if not waiting:
                return
        if last is None:
            raise MediaError(field, _why_undecodable(path, is_size_known=True))
        picture = fit(to_rgb(last, reformatter))
        yield from ((index, picture) for index in waiting)


def to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    """Convert a decoded frame to 8-bit RGB or RGBX at its stored size; transparent parts are laid over white.

    Untagged HD is taken as BT.709 (FFmpeg takes everything untagged as BT.601, which turns greens and reds). HDR (PQ,
    HLG) and BT.2020 are brought to BT.709 by swscale's own tone mapping: approximate, it ignores mastering metadata.
    reformatter: the same for all frames of a clip, because the table for HDR takes it 3 to 5 s, once.
    """
    options: dict[str, Any] = {}
    if frame.colorspace == _UNTAGGED and (frame.width >= 1280 or frame.height > 576):
        options["src_colorspace"] = Colorspace.ITU709
    if frame.color_trc in _HDR_TRANSFERS or frame.color_primaries == ColorPrimaries.BT2020:
        options |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
    has_alpha = any(component.is_alpha for component in frame.format.components)
    # Four bytes a pixel let Pillow look at FFmpeg's memory: at 4K every copy that is not made saves 25 to 33 MB.
    target = "rgba" if has_alpha else "rgb0"
    try:
        plane = reformatter.reformat(frame, format=target, **options).planes[0]
    except av.error.FFmpegError:
        # Some files carry colour tags that mean nothing to swscale (reserved values): then as if there were none.
        frame.colorspace = frame.color_trc = frame.color_primaries = _UNTAGGED
        plane = reformatter.reformat(frame, format=target).planes[0]
    pixels = np.frombuffer(memoryview(plane), np.uint8)
    mode = "RGBA" if has_alpha else "RGBX"
    picture = Image.frombuffer(mode, (frame.width, frame.height), pixels, "raw", mode, plane.line_size, 1)
    return over_white(picture) if has_alpha else picture


def over_white(image: Image.Image) -> Image.Image:
    """Lay an RGBA picture over white and give RGB."""
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")


def orientation_from_matrix(matrix: Sequence[int]) -> Orientation:
    """Read a display matrix: nine numbers of ISO/IEC 14496-12, 6.2.2, of which the first of each row map x and y.

    x' = a x + c y, y' = b x + d y. Angles between right angles are taken as the nearest one.
    """
    a, b, _, c, d, *_ = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(flip_x=a < 0, flip_y=d < 0)
    return Orientation(is_transposed=True, flip_x=c < 0, flip_y=b < 0)


def _refuse_other_media(path: Path, kind: FileKind, field: str) -> None:
    """Raise MediaError for a file that is recognisably something else than a video."""
    advice = {
        Medium.PICTURE: f"is {kind.name}, and a video is needed here ({VIDEO_FORMATS}); give a picture as the image.",
        Medium.SOUND: f"is {kind.name} without pictures; give a video: {VIDEO_FORMATS}.",
        Medium.PLAYLIST: f"is {kind.name} that names other files, not a video; give the video itself: {VIDEO_FORMATS}.",
        Medium.TEXT: f"is {kind.name}, not a video; give {VIDEO_FORMATS}.",
    }
    if kind.medium in advice:
        raise MediaError(field, f"{path.name!r} {advice[kind.medium]}")


def _why_unreadable(path: Path, kind: FileKind) -> str:
    """Explain to a person why FFmpeg did not open the file."""
    if kind is MP4_KIND:
        return (
            f"{path.name!r} is an MP4 or MOV without a readable index, as when a recording or a download broke off; "
            "record, export or download it again."
        )
    return f"{path.name!r} is {kind.name} that cannot be read; give a whole video: {VIDEO_FORMATS}."


def _why_undecodable(path: Path, *, is_size_known: bool) -> str:
    """Explain to a person why there is no frame. FFmpeg forgets a size that it refuses, so its value cannot be told."""
    if is_size_known:
        return f"No frame of {path.name!r} can be decoded; export it again, as MP4 with H.264."
    return (
        f"The frames of {path.name!r} are broken or have more than {MAX_PIXELS // 10**6} million pixels; "
        "export it again, as MP4 with at most 3840 x 2160."
    )


def _first_video_stream(container: InputContainer, path: Path, field: str) -> VideoStream:
    """Give the first stream of moving pictures (cover art is none), ready to decode within our limits."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(field, f"{path.name!r} has no pictures, only sound or data; give a video: {VIDEO_FORMATS}.")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise MediaError(field, f"{path.name!r} uses a codec that is unknown here; export it as MP4 with H.264.")
    if context.width * context.height > MAX_PIXELS:
        raise MediaError(
            field,
            f"{path.name!r} is {context.width} x {context.height} pixels, more than {MAX_PIXELS // 10**6} million; "
            "scale it down, for example to 1920 x 1080.",
        )
    # Once more for the decoder: the options of the container do not reach a size that changes within the stream.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    context.thread_type = "AUTO"
    context.thread_count = _DECODER_THREADS
    return stream


def _packets(container: InputContainer, stream: VideoStream) -> "Iterator[Packet[VideoStream]]":
    """Demux the stream's packets in decoding order, up to the end or to where the file breaks off."""
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.error.FFmpegError:
        return


def _mark(packet: "Packet[VideoStream]") -> PacketMark:
    """Note what we need of a packet and let its data go."""
    return PacketMark(
        pts=packet.pts,
        duration=packet.duration or 0,
        is_keyframe=packet.is_keyframe,
        is_shown=not (packet.is_discard or packet.is_corrupt),
    )


def _decode(stream: VideoStream, packet: "Packet[VideoStream] | None") -> list[VideoFrame]:
    """Decode a packet, or with None get what the decoder still holds; nothing when the data is broken."""
    try:
        return stream.decode(packet)
    except av.error.FFmpegError:
        return []


def _plan(scan: VideoScan, wanted: Collection[int]) -> list[Skip | None]:
    """Say for every packet what its decoding may skip; None: the packet is not needed."""
    if scan.timeline.is_counted:
        return ["DEFAULT"] * len(scan.packets)
    targets = {scan.timeline.pts[index] for index in wanted}
    # Frames that no other refers to are skipped unless wanted: the pictures stay the same, 4K takes a third less time.
    return [
        ("DEFAULT" if packet.pts in targets else "NONREF") if is_needed else None
        for packet, is_needed in zip(scan.packets, packets_to_decode(scan.packets, targets), strict=True)
    ]


def _run(container: InputContainer, stream: VideoStream, plan: Sequence[Skip | None]) -> Iterator[VideoFrame]:
    """Decode the planned packets; where some are left out, start afresh."""
    is_running = False
    for packet, skip in zip(_packets(container, stream), plan, strict=False):
        if skip:
            stream.codec_context.skip_frame = skip
            yield from _decode(stream, packet)
        elif is_running:
            yield from _decode(stream, None)
            stream.codec_context.flush_buffers()
        is_running = skip is not None
    yield from _decode(stream, None)


def _indexed(scan: VideoScan, frames: Iterator[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
    """Pair each decoded frame with its place in the timeline."""
    pts = scan.timeline.pts
    for count, frame in enumerate(frames):
        yield count if scan.timeline.is_counted or frame.pts is None else bisect_left(pts, frame.pts), frame


def _orientation(frame: VideoFrame) -> Orientation:
    """Read a frame's display matrix. Once per clip: side data keeps its frame in memory (60 frames of 4K: 780 MB)."""
    side_data = cast(SideDataContainer, frame.side_data)  # its declared type is wrong
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    return Orientation() if matrix is None else orientation_from_matrix(np.frombuffer(matrix, np.int32).tolist())
