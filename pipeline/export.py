"""What people look at beside a result: the side-by-side comparison, a poster frame, a contact sheet.

moviepy composes; PyAV reads and writes around it (media.py). moviepy's own reader runs a command-line FFmpeg and parses
the text it prints, in which our settings (a prompt may say anything) stand too, and its writer tags no colours.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from moviepy import ImageSequenceClip, clips_array
from PIL import Image

from pipeline.media import choose_frames, cover_crop, probe_video, read_video, write_video

_SHEET_PICTURE_PIXELS = 160 * 284  # of each picture in a contact sheet
_SHEET_GAP = 4


def write_comparison(
    reference: Path | Sequence[Image.Image],
    result_path: Path,
    path: Path,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
) -> None:
    """Write an MP4 that shows the reference on the left and the result on the right, as long and fast as the result.

    reference: the frames that were used, or a video file, of which [start_s, end_s) is read. It is cover-cropped to the
    result's size and its frames are evenly chosen to be as many, as the network saw it. Raises MediaError for
    "reference_video" or "result" when that file cannot be read.
    """
    info = probe_video(result_path, "result")
    count, height, width = info.num_frames, info.height, info.width
    if isinstance(reference, Path):
        left = read_video(reference, num_frames=count, height=height, width=width, start_s=start_s, end_s=end_s)
    else:
        left = [cover_crop(reference[i].convert("RGB"), height, width) for i in choose_frames(len(reference), count)]
    right = read_video(result_path, num_frames=count, height=height, width=width, field="result")
    # With a colour behind them; without one moviepy composes a mask of each frame as well, three times the work.
    with clips_array([[_clip(left, info.fps), _clip(right, info.fps)]], bg_color=(0, 0, 0)) as both:
        # Asked for in the middle of each frame: at its start, rounding may give the one before.
        frames = (both.get_frame((i + 0.5) / info.fps) for i in range(count))
        write_video(frames, path, fps=info.fps, height=height, width=2 * width, effort="veryfast")


def write_poster(result_path: Path, path: Path) -> None:
    """Write the middle frame of a result as a picture; the ending of path says which kind, .jpg or .webp.

    The middle, since the first frame of a result is the start image. Raises MediaError for "result".
    """
    info = probe_video(result_path, "result")
    frames = read_video(result_path, num_frames=3, height=info.height, width=info.width, field="result")
    with _clip(frames[1:2], info.fps) as clip:
        clip.save_frame(str(path), t=0)


def write_contact_sheet(video_path: Path, path: Path, columns: int = 4, rows: int = 3) -> None:
    """Write a picture with columns x rows evenly chosen frames of a video, read line by line, for looking at.

    The ending of path says which kind, .png or .jpg. Raises MediaError for "reference_video" when it cannot be read.
    """
    info = probe_video(video_path)
    scale = (_SHEET_PICTURE_PIXELS / (info.height * info.width)) ** 0.5
    height, width = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    frames = read_video(video_path, num_frames=columns * rows, height=height, width=width)
    sheet = Image.new("RGB", (columns * (width + _SHEET_GAP) + _SHEET_GAP, rows * (height + _SHEET_GAP) + _SHEET_GAP))
    for place, frame in enumerate(frames):
        row, column = divmod(place, columns)
        sheet.paste(frame, (_SHEET_GAP + column * (width + _SHEET_GAP), _SHEET_GAP + row * (height + _SHEET_GAP)))
    sheet.save(path)


def _clip(frames: Sequence[Image.Image], fps: float) -> ImageSequenceClip:
    """Make a moviepy clip of RGB pictures of one size."""
    return ImageSequenceClip([np.asarray(frame) for frame in frames], fps=fps)
