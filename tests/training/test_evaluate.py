"""What the evaluation calls right is right, for two effects at a time too."""

import torch

from training.effects import EASY_EFFECTS, PAIRED_EFFECTS, animate
from training.evaluate import draw_trials, judge, retrieve


def test_a_pair_of_effects_is_both_at_once() -> None:
    """The object moves and the picture darkens, as each effect alone would have it."""
    trial = draw_trials(3, 1, 9, PAIRED_EFFECTS[:1])[0]
    singles = {effect.name: animate(effect, trial.parameters, 9) for effect in EASY_EFFECTS}

    both = animate(trial.effect, trial.parameters, 9)

    assert trial.effect.name == "move_right+night"
    torch.testing.assert_close(both.shift, singles["move_right"].shift)
    torch.testing.assert_close(both.colour, singles["night"].colour)


def test_a_true_video_is_told_apart_from_all_others() -> None:
    """A pair is not taken for one of its halves, nor a half for the pair."""
    effects = [*PAIRED_EFFECTS, *EASY_EFFECTS]
    trials = [*draw_trials(3, 1, 9, PAIRED_EFFECTS), *draw_trials(3, 1, 9, EASY_EFFECTS)]

    found = [retrieve(trial, trial.truth(trial.effect), effects).name for trial in trials]

    assert found == [trial.effect.name for trial in trials]


def test_a_still_copy_is_not_taken_for_the_truth() -> None:
    """Nothing happens in it: neither the effect is found nor the object's way."""
    trial = draw_trials(3, 1, 9, [effect for effect in EASY_EFFECTS if effect.name == "move_left"])[0]
    truth = trial.truth(trial.effect)

    figures = judge(trial, truth[:, :1].expand_as(truth), EASY_EFFECTS)

    assert figures["retrieved"] != "move_left"
    assert abs(figures["path"]) < 0.1
    assert figures["psnr_clip"] == figures["psnr_still"]
