"""Scenes and effects: the same seed gives the same clip, and every effect shows."""

import pytest
import torch
from torch import Generator

from training.effects import EFFECTS, Effect, animate, combine, draw_parameters, still
from training.scenes import draw_scene, render


def draw_clip(seed: int, effect: Effect, height: int = 80, width: int = 144) -> torch.Tensor:
    generator = Generator().manual_seed(seed)
    motion = animate(effect, draw_parameters(generator), 9)
    return render(draw_scene(generator, height, width, motion, with_object=True), motion, height, width)


def test_the_same_seed_renders_the_same_clip() -> None:
    """A run can be repeated: nothing but the generator decides what a clip looks like."""
    effect = EFFECTS[0]

    first, second, other = draw_clip(3, effect), draw_clip(3, effect), draw_clip(4, effect)

    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.name)
def test_every_effect_starts_unseen_and_then_shows(effect: Effect) -> None:
    """The first frame is the scene as it is, since it becomes the start image; later ones differ from it visibly."""
    generator = Generator().manual_seed(5)
    motion = animate(effect, draw_parameters(generator), 9)
    scene = draw_scene(generator, 80, 144, motion, with_object=True)

    clip = render(scene, motion, 80, 144)
    unmoved = render(scene, still(9), 80, 144)

    assert torch.allclose(clip[:, 0], unmoved[:, 0], atol=0.02)
    assert (clip - unmoved).abs().mean(dim=(0, 2, 3)).max() > 0.01


def test_a_clip_upright_has_its_sides_swapped() -> None:
    """Clips are rendered in the size asked for, colours in -1 to 1."""
    clip = draw_clip(1, EFFECTS[4], height=144, width=80)

    assert clip.shape == (3, 9, 144, 80)
    assert clip.min() >= -1
    assert clip.max() <= 1


def test_two_effects_happen_at_once() -> None:
    """Combined motions add their ways and multiply their sizes."""
    generator = Generator().manual_seed(2)
    parameters = draw_parameters(generator)
    by_name = {effect.name: animate(effect, parameters, 5) for effect in EFFECTS}

    both = combine(by_name["move_right"], by_name["grow"])

    assert torch.equal(both.shift, by_name["move_right"].shift)
    assert torch.equal(both.scale, by_name["grow"].scale)


def test_held_out_scenes_use_photographs_that_training_never_shows() -> None:
    """The evaluation's photographs are not among those trained on."""
    from training.photographs import PHOTOGRAPHS, load_photographs

    held_out = [photo.name for photo in PHOTOGRAPHS if photo.held_out]

    assert held_out
    assert len(load_photographs(held_out=True)) == len(held_out)
    assert len(load_photographs(held_out=False)) == len(PHOTOGRAPHS) - len(held_out)
