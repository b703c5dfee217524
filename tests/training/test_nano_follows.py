"""The shipped weights take the effect from the reference: a short version of `make nano-eval`."""

import pytest
import torch

from pipeline import VideoAsPromptPipeline
from pipeline.models import NANO_FOLDER
from training.components import build_transformer
from training.effects import EFFECTS, Effect
from training.evaluate import Trial, draw_trials, generate
from training.export import NUM_INFERENCE_STEPS
from training.sittings import psnr

TOLD_APART = (
    *("pan_right", "pan_left", "pan_up", "pan_down", "zoom_in", "zoom_out"),
    *("night", "sunset", "grey", "black", "white", "negative", "iris"),
    *("turn_red", "turn_green", "turn_blue", "fade", "move_left"),
)
OPTIONS = {"num_inference_steps": NUM_INFERENCE_STEPS, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe() -> VideoAsPromptPipeline:
    pipe = VideoAsPromptPipeline.from_pretrained(NANO_FOLDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def results(pipe: VideoAsPromptPipeline) -> dict[str, torch.Tensor]:
    """What the shipped model makes of each trial."""
    return make_videos(pipe)


def choose_trials() -> list[Trial]:
    """One held-out scene for each of the effects to tell apart."""
    trials = {trial.effect.name: trial for trial in draw_trials(5, 1, 17, EFFECTS)}
    return [trials[name] for name in TOLD_APART]


def nearest(trial: Trial, result: torch.Tensor) -> str:
    """Give the effect whose true video of the same scene is nearest to a result."""
    effects: list[Effect] = [effect for effect in EFFECTS if effect.name in TOLD_APART]
    return min(effects, key=lambda effect: (trial.truth(effect) - result).square().mean().item()).name


def make_videos(pipe: VideoAsPromptPipeline) -> dict[str, torch.Tensor]:
    return {trial.effect.name: generate(pipe, trial, OPTIONS) for trial in choose_trials()}


def count_hits(results: dict[str, torch.Tensor]) -> int:
    return sum(nearest(trial, results[trial.effect.name]) == trial.effect.name for trial in choose_trials())


@pytest.mark.slow
def test_the_effect_comes_from_the_reference(results: dict[str, torch.Tensor]) -> None:
    """Without a caption, on scenes never trained on, each result is nearest to its reference's effect.

    A model that does not look at the reference is right once in eighteen, by chance.
    """
    assert count_hits(results) == len(TOLD_APART)


@pytest.mark.slow
def test_an_untrained_model_fails_this_evaluation(pipe: VideoAsPromptPipeline) -> None:
    """Or it would show nothing: a transformer before its training holds the start image still."""
    torch.manual_seed(0)
    untrained = VideoAsPromptPipeline(**{**pipe.components, "transformer": build_transformer().eval()})
    untrained.set_progress_bar_config(disable=True)

    assert count_hits(make_videos(untrained)) < 3


@pytest.mark.slow
def test_another_reference_gives_another_video(pipe: VideoAsPromptPipeline) -> None:
    """The start image of one trial with the reference of another follows the reference."""
    trials = {trial.effect.name: trial for trial in choose_trials()}
    swapped = Trial(
        trials["white"].effect,
        trials["white"].parameters,
        trials["white"].reference,
        trials["sunset"].scene,
        trials["sunset"].shape,
    )

    assert nearest(swapped, generate(pipe, swapped, OPTIONS)) == "white"


@pytest.mark.slow
def test_the_first_frame_is_the_start_image(results: dict[str, torch.Tensor]) -> None:
    """On average at least 24 dB at nano's own size, on scenes with photographs and drawings."""
    figures = [psnr(results[trial.effect.name][:, 0], trial.truth(trial.effect)[:, 0]) for trial in choose_trials()[:3]]

    assert sum(figures) / len(figures) > 24
