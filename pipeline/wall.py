"""The readers of media.py behind a wall: each call is a process of its own, with limits of time and memory.

media.py refuses what it sees to be too large. A file made to keep a decoder busy, or to break it, costs that process
and a sentence, not the program. Starting one takes 0.2 s; it loads no torch.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import MediaError
from pipeline.media import VideoInfo

# Measured on two busy cores: 49 frames of a 4K clip of 60 s take 24 s.
PROBE_TIMEOUT_S = 60
READ_TIMEOUT_S = 300
# Of address space, which is more than what is used: 8K with 16 reference frames of 10 bits needs 1.6 GB of it.
MEMORY_BYTES = 4 * 2**30

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "-m", "pipeline.media_process")
# Each thread of a mathematics library reserves address space on its own, and none of them is of use here.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def probe_video(path: Path, field: str = "reference_video") -> VideoInfo:
    """Do media.probe_video behind the wall. Raises MediaError also for what takes too long or too much memory."""
    facts, _ = _call("probe_video", path, field, PROBE_TIMEOUT_S)
    return VideoInfo(**facts)


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
    """Do media.read_video behind the wall. Raises MediaError also for what takes too long or too much memory."""
    window = {"num_frames": num_frames, "height": height, "width": width, "start_s": start_s, "end_s": end_s}
    places, pixels = _call("read_video", path, field, READ_TIMEOUT_S, window)
    pictures = _split(pixels, height, width)
    return [pictures[place] for place in places]


def read_image(path: Path, *, height: int, width: int, field: str = "image") -> Image.Image:
    """Do media.read_image behind the wall. Raises MediaError also for what takes too long or too much memory."""
    _, pixels = _call("read_image", path, field, PROBE_TIMEOUT_S, {"height": height, "width": width})
    return _split(pixels, height, width)[0]


def check_image(path: Path, field: str = "image") -> None:
    """Do media.check_image behind the wall. Raises MediaError also for what takes too long or too much memory."""
    _call("check_image", path, field, PROBE_TIMEOUT_S)


def _call(
    reader: str, path: Path, field: str, timeout_s: float, options: Mapping[str, Any] | None = None
) -> tuple[Any, memoryview]:
    """Run a reader in its process. Gives its answer, and pixels where it reads pictures."""
    call = {
        "reader": reader,
        "path": str(path.absolute()),
        "options": {**(options or {}), "field": field},
        "memory_bytes": MEMORY_BYTES,
        "cpu_s": int(4 * timeout_s),  # should nobody be left to end it
    }
    try:
        # In a session of its own: Ctrl-C is for us, who end it.
        ended = subprocess.run(  # noqa: S603 - our own module; what visitors named goes in as data
            COMMAND,
            input=json.dumps(call).encode(),
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            timeout=timeout_s,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"{path.name!r} takes more than {timeout_s:g} s to read; cut out the part you want, or scale it down."
        raise MediaError(field, message) from error
    head, _, _ = ended.stdout.partition(b"\n")
    answer = json.loads(head) if ended.returncode == 0 else {}
    match answer:
        case {"value": value}:
            return value, memoryview(ended.stdout)[len(head) + 1 :]
        case {"fault": [fault_field, message]}:
            raise MediaError(fault_field, message)
        case {"too_large": True}:
            gigabytes = MEMORY_BYTES / 2**30
            raise MediaError(field, f"{path.name!r} takes more than {gigabytes:.2g} GB to read; scale it down.")
        case _:
            raise MediaError(field, f"{path.name!r} breaks the program that reads it; export it again.")


def _split(pixels: memoryview, height: int, width: int) -> list[Image.Image]:
    """Take RGB pictures of one size apart."""
    size_bytes = 3 * height * width
    starts = range(0, len(pixels), size_bytes)
    return [Image.frombytes("RGB", (width, height), bytes(pixels[start : start + size_bytes])) for start in starts]
