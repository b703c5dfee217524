"""What the page says, as markup."""

from typing import get_args

import pytest

from pipeline.generate import Stage
from pipeline.media import VideoInfo
from pipeline.spec import ModelFacts
from server import panels
from server.runs import News

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


@pytest.mark.parametrize("stage", ["waiting", "loading", *get_args(Stage)])
def test_every_stage_has_words_and_a_place_on_the_bar(stage: str) -> None:
    """A new stage of the pipeline needs a line here before anyone sees it."""
    assert panels.STAGES[stage] in panels.progress_bar(News(stage))
    assert 0 <= panels.fraction_done(News(stage)) < 1


def test_progress_tells_the_step_and_the_time_left() -> None:
    """In words for people, as a value for screen readers."""
    news = News("denoising", 10, 20, 42.0)

    markup = panels.progress_bar(news, panels.fraction_done(news))

    assert "step 10 of 20, about 40 s left" in markup
    assert 'role="progressbar"' in markup
    assert 'aria-valuenow="47"' in markup


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
    assert "Small model “nano”: 144x80, scaled up" in panels.model_ready(ModelFacts("nano", 20, (80, 144)))
    assert "small" not in panels.model_ready(ModelFacts("14b")).lower()
    assert "There is no model “x”." in panels.model_failed("There is no model “x”.")
    assert "Loading the model nano" in panels.model_loading("nano")


def test_a_clip_is_told_by_its_facts() -> None:
    """Size, length and rate, rounded."""
    info = VideoInfo(height=720, width=1280, num_frames=132, duration_s=5.28, fps=25.0, has_audio=True)

    assert "1280 × 720, 5.3 s, 25 frames per second" in panels.clip_facts(info)
