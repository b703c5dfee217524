"""The list of one's jobs: its order, its cards, and where a job goes when it is moved."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.job import Job, JobError, JobProgress, JobRequest, JobResult, JobStatus
from server.job_cards import MAX_LISTED, arrange, find_place, job_list

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TOKEN = "a" * 32
SETTINGS = {
    "prompt": "It grows.",
    "seed": 7,
    "num_frames": 17,
    "width": 480,
    "height": 832,
    "render_width": 480,
    "render_height": 832,
    "aspect_ratio": "9:16",
}
RESULT = JobResult(f"results/{TOKEN}/a-7.mp4", f"results/{TOKEN}/b.mp4", f"results/{TOKEN}/c.jpg", 9, SETTINGS, 1.0)


def job(name: str, status: JobStatus, position: int | None = None, age_s: float = 0.0, **changes: Any) -> Job:
    request = JobRequest({"prompt": f"{name} <b>grows</b>."}, "file:clip", "file:picture")
    moment = NOW - timedelta(seconds=age_s)
    made = Job(name, "ann", status, position, request, None, (), None, None, moment, None, None)
    return replace(made, **changes)


def test_the_list_begins_with_what_happens_next() -> None:
    """Running, waiting in their order, then what has ended, the newest first."""
    jobs = [
        job("old", JobStatus.SUCCEEDED, age_s=50, result=RESULT),
        job("second", JobStatus.WAITING, 4, age_s=20),
        job("new", JobStatus.CANCELLED, age_s=10),
        job("first", JobStatus.WAITING, 1, age_s=5),
        job("running", JobStatus.RUNNING, age_s=60),
    ]

    assert [one.job_id for one in arrange(jobs)] == ["running", "first", "second", "new", "old"]


@pytest.mark.parametrize(
    ("moved", "step", "before"),
    [("a", 1, "c"), ("b", 1, None), ("b", -1, "a"), ("c", -1, "b"), ("a", -1, "b"), ("c", 1, None)],
)
def test_a_job_moves_one_place(moved: str, step: int, before: str | None) -> None:
    """Named by the one that it comes before; at either end it stays where it is."""
    assert find_place(["a", "b", "c"], moved, step) == before


def test_a_waiting_job_can_be_moved_shown_and_removed() -> None:
    """The first cannot go further up, nor the last further down; prompts are text, whatever they look like."""
    markup = job_list([job("one", JobStatus.WAITING, 0), job("two", JobStatus.WAITING, 1)])

    assert markup.count(" disabled>") == 2
    assert markup.count('data-action="stop"') == 2
    assert "you are next" in markup
    assert "one &lt;b&gt;grows&lt;/b&gt;." in markup
    assert "<b>" not in markup


def test_a_running_job_tells_how_far_it_is() -> None:
    """In whole hundredths, so that the list does not change with every step."""
    progress = JobProgress("denoising", 10, 20, NOW)

    markup = job_list([job("one", JobStatus.RUNNING, progress=progress)])

    assert "In the making" in markup
    assert "47 %" in markup
    assert 'data-action="up"' not in markup


def test_a_finished_job_has_its_poster_settings_and_file() -> None:
    """And everything one does with a result."""
    markup = job_list([job("one", JobStatus.SUCCEEDED, result=RESULT)])

    assert f'src="fal/cdn/files/results/{TOKEN}/c.jpg"' in markup
    assert 'download="a-7.mp4"' in markup
    assert "480 × 832, 17 frames, seed 7" in markup
    assert all(f'data-action="{action}"' in markup for action in ("open", "use", "delete"))


def test_a_failed_job_says_why() -> None:
    """In the sentence that the queue has for it."""
    markup = job_list([job("one", JobStatus.FAILED, error=JobError("disk_full", "The disk is full."))])

    assert "Not made" in markup
    assert "The disk is full." in markup


def test_a_request_that_could_not_be_read_has_a_card_too() -> None:
    """The API takes some in that never become a job; they can be deleted."""
    markup = job_list([replace(job("one", JobStatus.FAILED), request=None)])

    assert 'data-action="delete"' in markup
    assert 'data-action="use"' not in markup


def test_nothing_made_yet_is_said_and_so_is_what_could_not_be_done() -> None:
    """An empty list would look broken."""
    assert "Nothing here yet" in job_list([])
    assert f"the newest {MAX_LISTED} are shown" in job_list([])
    assert "It has begun." in job_list([], "It has begun.")
