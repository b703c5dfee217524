"""When each frame of a video is shown, and which packets must be decoded to get some of them. Arithmetic only."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from math import inf
from statistics import median

# Matroska rounds times to milliseconds: a frame that near to a bound of the window counts as on it.
_ROUNDING_S = 0.0006


@dataclass(frozen=True)
class PacketMark:
    """What we keep of a packet. pts and duration in ticks; is_shown: whole, and not hidden by an edit list."""

    pts: int | None
    duration: int
    is_keyframe: bool
    is_shown: bool


@dataclass(frozen=True)
class Timeline:
    """When each frame is shown, in the order of presentation: its time stamp, and its time since the first frame.

    is_counted: the file has no usable time stamps, so pts are the frames' places among all decoded ones.
    """

    pts: tuple[int, ...]
    times_s: tuple[float, ...]
    duration_s: float
    is_counted: bool


def make_timeline(marks: Sequence[PacketMark], time_base: Fraction, rate: Fraction, *, is_counted: bool) -> Timeline:
    """Put the shown frames in order. time_base: seconds per tick; rate: frames per second, where ticks are silent."""
    if is_counted:
        count = sum(mark.is_shown for mark in marks)
        return Timeline(tuple(range(count)), tuple(float(i / rate) for i in range(count)), float(count / rate), True)
    lengths = {mark.pts: mark.duration for mark in marks if mark.is_shown and mark.pts is not None}
    pts = tuple(sorted(lengths))
    times_s = tuple(float((tick - pts[0]) * time_base) for tick in pts)
    last_s = float(lengths[pts[-1]] * time_base)
    if last_s <= 0:
        gaps = [after - before for before, after in pairwise(times_s)]
        last_s = median(gaps) if gaps else float(1 / rate)
    return Timeline(pts, times_s, times_s[-1] + last_s, False)


def packets_to_decode(packets: Sequence[PacketMark], targets: Collection[int]) -> list[bool]:
    """Say which packets must be decoded to get the frames with the target time stamps, exactly as a full decode would.

    A run starts at a key frame that no later packet precedes in time (nothing refers across it) and ends at the last
    target before the next such key frame.
    """
    earliest_after = [*accumulate((_ticks(packet) for packet in reversed(packets)), min)][::-1]
    needed = [False] * len(packets)
    start = 0
    for i, packet in enumerate(packets):
        if packet.is_keyframe and packet.pts == earliest_after[i]:
            start = i
        if packet.pts in targets:
            needed[start : i + 1] = [True] * (i + 1 - start)
            start = i + 1
    return needed


def frames_in_window(times_s: Sequence[float], start_s: float | None, end_s: float | None) -> range:
    """Give the places of the frames whose showing begins in [start_s, end_s), else of the one on screen at start_s.

    times_s: ascending from 0; the window lies within the clip (see check_window).
    """
    first = 0 if start_s is None else bisect_left(times_s, start_s - _ROUNDING_S)
    after = len(times_s) if end_s is None else bisect_left(times_s, end_s - _ROUNDING_S)
    return range(first, after) if first < after else range(first - 1, first)


def _ticks(packet: PacketMark) -> float:
    """Give the packet's place in time, with those that have none after all others."""
    return inf if packet.pts is None else packet.pts
