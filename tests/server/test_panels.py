"""What the page says, as markup."""

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from pipeline.generate import Stage
from pipeline.media import VideoInfo
from pipeline.model_progress import ModelProgress, ModelStage
from pipeline.spec import ModelFacts
from server import panels
from server.job import Job, JobProgress, JobStatus

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)

SETTINGS = {
    "seed": 7,
    "model": "nano",
    "num_frames": 17,
    "fps": 16,
    "width": 480,
    "height": 832,
    "render_width": 80,
    "render_height": 144,
    "aspect_ratio": "9:16",
    "prompt": "<b>Bold</b> & brave",
    "negative_prompt": None,
}


def running(stage: str, step: int = 0, total: int = 1, **changes: Any) -> Job:
    progress = JobProgress(stage, step, total, NOW, **changes)
    return Job("id", "ann", JobStatus.RUNNING, None, None, progress, (), None, None, NOW, NOW, None)


@pytest.mark.parametrize("stage", ["waiting", "fetching", *get_args(ModelStage), *get_args(Stage), "storing"])
def test_every_stage_has_words_and_a_place_on_the_bar(stage: str) -> None:
    """A new stage of pipeline or worker needs a line here before anyone sees it."""
    job = running(stage)

    assert panels.STAGES[stage] in panels.job_progress(job, NOW)
    assert job.progress is not None
    assert 0 <= panels.fraction_done(job.progress) < 1


def test_progress_tells_the_step_and_the_time_left() -> None:
    """In words for people, as a value for screen readers; a resumed run counts its own steps only."""
    job = running("denoising", 10, 20, steps_began_at=NOW - timedelta(seconds=20), first_step=5)

    markup = panels.job_progress(job, NOW)

    assert "step 10 of 20, about 40 s left" in markup
    assert 'role="progressbar"' in markup
    assert 'aria-valuenow="47"' in markup


def test_a_model_on_its_way_tells_how_far_it_is() -> None:
    """In gigabytes while it comes, in parts while it is loaded."""
    assert "12.3 of 66.4 GB" in panels.job_progress(running("downloading", 12_300_000_000, 66_400_000_000), NOW)
    assert "3 of 7" in panels.job_progress(running("loading", 3, 7), NOW)


def test_the_first_step_tells_nothing_of_the_time_left() -> None:
    """What lies before it is no step."""
    job = running("denoising", 5, 20, steps_began_at=NOW, first_step=5)

    assert "left" not in panels.job_progress(job, NOW)


def test_the_bar_does_not_go_back_for_the_second_check() -> None:
    """The same stage comes before the drawing and after it."""
    before, after = JobProgress("checking", 0, 1, NOW), JobProgress("checking", 0, 1, NOW, steps_began_at=NOW)

    assert panels.fraction_done(before) < 0.1
    assert panels.fraction_done(after) > 0.9


@pytest.mark.parametrize(("position", "words"), [(0, "you are next"), (1, "one ahead of you"), (7, "7 ahead of you")])
def test_a_waiting_job_has_its_place_in_line(position: int, words: str) -> None:
    """Counted in those before it."""
    job = Job("id", "ann", JobStatus.WAITING, position, None, None, (), None, None, NOW, None, None)

    assert words in panels.job_progress(job, NOW)
    assert 'aria-valuenow="0"' in panels.job_progress(job, NOW)


def test_stored_files_are_addressed_relative_to_the_page() -> None:
    """The app may be served below any path; names may hold anything."""
    assert panels.file_url("results/abc/käfer-7.mp4") == "fal/cdn/files/results/abc/k%C3%A4fer-7.mp4"


def test_a_program_is_shown_as_text() -> None:
    """Whatever stands in it; with a button that copies it."""
    markup = panels.program("cURL", "curl '<b>'")

    assert "curl &#x27;&lt;b&gt;&#x27;" in markup
    assert "data-copy" in markup


@pytest.mark.parametrize("needs_key", [True, False])
def test_the_code_page_warns_of_the_real_fal(needs_key: bool) -> None:
    """Always; and tells of keys and missing files where that matters."""
    notes = panels.code_notes(needs_key=needs_key, has_files=not needs_key)

    assert "call the real fal without a word" in notes
    assert ("FAL_KEY" in notes, "example.com" in notes) == (needs_key, needs_key)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "a few seconds"), (9.9, "a few seconds"), (12, "about 10 s"), (89, "about 90 s"), (200, "about 3 min")],
)
def test_time_is_rounded_as_people_do(seconds: float, words: str) -> None:
    """Nobody believes "37.2 s left"."""
    assert panels.spell_time(seconds) == words


def test_settings_are_listed_with_what_was_given_escaped() -> None:
    """A prompt is text, whatever it looks like; what nobody set is not listed."""
    markup = panels.settings_list(SETTINGS, 12.34)

    assert "&lt;b&gt;Bold&lt;/b&gt; &amp; brave" in markup
    assert "<b>" not in markup
    assert "480 × 832, 9:16" in markup
    assert "80 × 144" in markup
    assert "12.3 s" in markup
    assert "Negative prompt" not in markup


def test_what_a_result_did_not_use_is_not_listed() -> None:
    """Approximations and a LoRA show where they were used; older results, which know of neither, list neither."""
    off = SETTINGS | {"cache_threshold": 0.0, "guided_share": 1.0, "lora": None, "lora_strength": 0.8}
    used = off | {"cache_threshold": 0.1, "guided_share": 0.5, "lora": "fast"}

    assert panels.settings_list(off, 1.0) == panels.settings_list(SETTINGS, 1.0)
    for row in ("Steps repeated below</dt><dd>0.1", "Share of guided steps</dt><dd>0.5"):
        assert row in panels.settings_list(used, 1.0)
    assert "LoRA</dt><dd>fast" in panels.settings_list(used, 1.0)
    assert "LoRA strength</dt><dd>0.8" in panels.settings_list(used, 1.0)


def test_a_model_that_draws_at_full_size_is_not_said_to_be_scaled() -> None:
    """The size it was drawn at is listed only where it differs."""
    same = SETTINGS | {"render_width": 480, "render_height": 832}

    assert "Drawn at" not in panels.settings_list(same, 1.0)


def test_a_problem_is_an_alert_with_an_id_that_its_input_can_name() -> None:
    """No problem, no line."""
    assert panels.problem_line("seed", None) == ""
    assert panels.problem_line("seed", "No <x>.") == (
        '<p class="problem" role="alert" id="problem-seed">No &lt;x&gt;.</p>'
    )


def test_the_model_is_called_what_it_is() -> None:
    """Small is called small; a failure is told with its reason."""
    small = panels.model_ready(ModelFacts("nano", 20, (80, 144)))
    assert "Small model “nano”: 144x80, scaled up" in small
    large = panels.model_ready(ModelFacts("14b"))
    assert "small" not in large.lower()
    assert "There is no model “x”." in panels.model_failed("There is no model “x”.")
    assert "Loading the model nano" in panels.model_loading("nano", None)
    assert "Loading the model nano" in panels.model_loading("nano", ModelProgress("loading", 1, 7))
    downloading = ModelProgress("downloading", 12_300_000_000, 66_400_000_000)
    assert "Downloading the model 14b: 12.3 of 66.4 GB" in panels.model_loading("14b", downloading)
    assert "made on other machines" in panels.model_elsewhere()


def test_a_clip_is_told_by_its_facts() -> None:
    """Size, length and rate, rounded."""
    info = VideoInfo(height=720, width=1280, num_frames=132, duration_s=5.28, fps=25.0, has_audio=True, codec="h264")

    assert "1280 × 720, 5.3 s, 25 frames per second" in panels.clip_facts(info)
