"""Which frames are shown when, and what must be decoded to get some of them."""

from fractions import Fraction

import pytest

from pipeline.timeline import PacketMark, frames_in_window, make_timeline, packets_to_decode


def marks(text: str) -> list[PacketMark]:
    """Make packets in decoding order from time stamps; K marks a key frame: "K0 3 1 2 K4 5"."""
    return [PacketMark(int(word.strip("K")), 1, word.startswith("K"), is_shown=True) for word in text.split()]


@pytest.mark.parametrize(
    ("packets", "targets", "decoded"),
    [
        ("K0 1 2 K3 4 5", {0}, "K0"),
        ("K0 1 2 K3 4 5", {4}, "K3 4"),
        ("K0 1 2 K3 4 5", {1, 5}, "K0 1 K3 4 5"),
        ("K0 3 1 2 K4 5", {1}, "K0 3 1"),  # 1 refers to 3
        ("K0 1 K4 2 3 5", {5}, "K0 1 K4 2 3 5"),  # an open group: 2 and 3, shown before the key frame, need 1
        ("K0 K1 K2 K3", {1, 3}, "K1 K3"),
        ("2 3 K4 5", {3}, "2 3"),  # cut within a group
        ("K0 1 2", set(), ""),
    ],
)
def test_only_what_the_targets_need_is_decoded(packets: str, targets: set[int], decoded: str) -> None:
    """Decoding starts at the last key frame that nothing reaches across and ends at the target."""
    needed = packets_to_decode(marks(packets), targets)

    chosen = [word for word, is_needed in zip(packets.split(), needed, strict=True) if is_needed]
    assert " ".join(chosen) == decoded


def test_times_start_at_the_first_shown_frame() -> None:
    """Hidden frames (edit lists, broken packets) do not count; an offset of all stamps is taken off."""
    packets = [
        PacketMark(90, 5, True, is_shown=False),
        PacketMark(100, 5, False, True),
        PacketMark(110, 5, False, True),
    ]

    timeline = make_timeline(packets, Fraction(1, 10), Fraction(1), is_counted=False)

    assert timeline.pts == (100, 110)
    assert timeline.times_s == (0.0, 1.0)
    assert timeline.duration_s == pytest.approx(1.5)


@pytest.mark.parametrize(("count", "expected"), [(1, 0.04), (3, 1.5)])
def test_a_last_frame_without_a_duration_lasts_as_others_do(count: int, expected: float) -> None:
    """It lasts the median distance of the frames, or one period of the rate when it is alone."""
    packets = [PacketMark(5 * index, 0, True, True) for index in range(count)]

    timeline = make_timeline(packets, Fraction(1, 10), Fraction(25), is_counted=False)

    assert timeline.duration_s == pytest.approx(expected)


def test_frames_without_time_stamps_are_counted() -> None:
    """Where stamps are missing or wrong (AVI), each frame takes one period of the rate."""
    packets = [PacketMark(None, 0, False, True) for _ in range(4)]

    timeline = make_timeline(packets, Fraction(1, 10), Fraction(8), is_counted=True)

    assert (timeline.pts, timeline.times_s, timeline.duration_s) == ((0, 1, 2, 3), (0.0, 0.125, 0.25, 0.375), 0.5)


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [(None, None, [0, 1, 2, 3]), (1.0, 3.0, [1, 2]), (1.0004, None, [1, 2, 3]), (2.5, 2.6, [2]), (3.5, None, [3])],
)
def test_the_window_holds_the_frames_that_begin_in_it(
    start_s: float | None, end_s: float | None, expected: list[int]
) -> None:
    """Its end is open; a rounded millisecond is forgiven; an empty window gives the frame on screen."""
    window = frames_in_window((0.0, 1.0, 2.0, 3.0), start_s, end_s)

    assert list(window) == expected
