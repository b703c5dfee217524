"""What finished runs teach, and what they do not."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.hardware import NO_CORRECTION
from pipeline.history import REMEMBERED, History, Lesson

LESSON = Lesson("14b", "stream", "Card 24", step=2.0, rest=3.0, peak=1.1)
KIND = ("14b", "stream", "Card 24")


@pytest.fixture
def history(tmp_path: Path) -> History:
    """An empty history in a folder that is yet to be made."""
    return History(tmp_path / "data" / "runs.jsonl")


def test_without_runs_nothing_is_corrected(history: History) -> None:
    """Factors are 1 until something was measured."""
    assert history.correction(*KIND) == NO_CORRECTION


def test_the_median_of_runs_counts(history: History) -> None:
    """One run on a busy machine does not move the estimate."""
    for step in (2.0, 2.2, 90.0):
        history.add(replace(LESSON, step=step))

    taught = history.correction(*KIND)

    assert (taught.step, taught.rest, taught.peak, taught.runs) == (2.2, 3.0, 1.1, 3)


@pytest.mark.parametrize("change", [{"model": "nano"}, {"profile": "model"}, {"device": "Card 80"}])
def test_runs_of_another_kind_teach_nothing(history: History, change: dict[str, str]) -> None:
    """Model, profile and device make the kind."""
    history.add(replace(LESSON, **change))

    assert history.correction(*KIND) == NO_CORRECTION


def test_a_speed_measured_in_a_busy_moment_spoils_no_later_estimate(history: History) -> None:
    """Predicted at a tenth of the speed, a run takes a tenth of what was predicted, but not of later predictions."""
    history.add(replace(LESSON, step=0.1, rest=0.2, tflops=0.01))

    quiet, busy = (history.correction(*KIND, tflops) for tflops in (0.1, 0.01))

    assert (quiet.step, quiet.rest) == pytest.approx((1.0, 2.0))
    assert (busy.step, busy.rest, busy.peak) == pytest.approx((0.1, 0.2, 1.1))


def test_lines_that_tell_no_speed_count_as_they_are(history: History) -> None:
    """Those of older versions."""
    history.add(LESSON)

    assert history.correction(*KIND, 0.1).step == 2.0


def test_what_older_versions_learned_of_memory_is_not_read(history: History, tmp_path: Path) -> None:
    """They compared other things: a run that took what was predicted had 0.8 there."""
    history.add(LESSON)
    file = tmp_path / "data" / "runs.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"peak": 1.1', '"card": 0.8'), encoding="utf-8")

    taught = history.correction(*KIND)

    assert (taught.step, taught.peak) == (2.0, 1.0)


def test_old_runs_are_forgotten(history: History) -> None:
    """After a new driver or card settings, the last runs alone count."""
    for step in [9.0] * REMEMBERED + [2.0] * REMEMBERED:
        history.add(replace(LESSON, step=step))

    assert history.correction(*KIND).step == 2.0


def test_a_failed_run_raises_the_memory_alone(history: History) -> None:
    """And it is not minded where that is asked for."""
    history.add(LESSON)
    history.add(Lesson(*KIND, peak=1.3, failed=True))

    assert (history.correction(*KIND).peak, history.correction(*KIND).step) == (1.3, 2.0)
    assert history.correction(*KIND, mind_failures=False).peak == 1.1


def test_damaged_lines_are_skipped(history: History, tmp_path: Path) -> None:
    """A power cut in the middle of a line costs that line."""
    history.add(LESSON)
    with (tmp_path / "data" / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"model": "14b", "pro\n')
    history.add(LESSON)

    assert history.correction(*KIND).runs == 2


def test_another_process_sees_what_was_learned(history: History, tmp_path: Path) -> None:
    """The file is read again once it has changed."""
    other = History(tmp_path / "data" / "runs.jsonl")
    assert other.correction(*KIND) == NO_CORRECTION

    history.add(LESSON)

    assert other.correction(*KIND).step == 2.0
