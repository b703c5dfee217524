"""A reference clip as browsers can show it. The original goes to the pipeline; previews are for looking only."""

import hashlib
from pathlib import Path

from pipeline import media, wall
from pipeline.media import VideoInfo

# What every browser of 2026 plays: HEVC, as phones write it, is not among them.
PLAYABLE_CODECS = {".mp4": ("h264", "av1"), ".m4v": ("h264",), ".mov": ("h264",), ".webm": ("vp8", "vp9", "av1")}

LONG_SIDE = 480  # pixels
MAX_FRAMES = 97


def make_preview(path: Path, info: VideoInfo, folder: Path) -> Path:
    """Give the clip itself if browsers play it, else a small MP4 of it in a folder, made once per clip.

    Raises MediaError when the clip cannot be read.
    """
    if info.codec in PLAYABLE_CODECS.get(path.suffix.lower(), ()):
        return path
    preview = folder / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.mp4"
    if not preview.exists():
        _write_preview(path, info, preview)
    return preview


def _write_preview(path: Path, info: VideoInfo, preview: Path) -> None:
    preview.parent.mkdir(parents=True, exist_ok=True)
    height, width = shrink(info.height, info.width)
    num_frames = min(info.num_frames, MAX_FRAMES)
    frames = wall.read_video(path, num_frames=num_frames, height=height, width=width)
    media.write_video(frames, preview, fps=num_frames / info.duration_s, height=height, width=width)


def shrink(height: int, width: int) -> tuple[int, int]:
    """Give the size of a preview: even numbers, at most LONG_SIDE, never larger than the clip."""
    scale = min(1.0, LONG_SIDE / max(height, width))
    return max(2, round(height * scale) // 2 * 2), max(2, round(width * scale) // 2 * 2)
