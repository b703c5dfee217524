"""Scenes and effects: the same seed gives the same clip, and every effect shows."""

import pytest
import torch
from torch import Generator
from torch.nn import functional

from training.autoencoder import LATENT_CHANNELS, build_autoencoder
from training.denoiser import LESSONS
from training.effects import EFFECTS, Effect, animate, combine, draw_parameters, still
from training.samples import MOTIONS, Codec, Shape, draw_block
from training.scenes import Scene, draw_scene, render, trace_object, trace_object_sources, trace_sources


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
    generator = Generator().manual_seed(2)
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


def test_the_trace_of_an_object_goes_where_the_object_goes() -> None:
    """Token by token, it is where the clip differs from the same scene without its object."""
    generator = Generator().manual_seed(3)
    motion = animate(EFFECTS[0], draw_parameters(generator, spread=0.1), 17)
    scene = draw_scene(generator, 80, 144, motion, with_object=True, plain=True)
    empty = Scene(scene.background, None, scene.grains, scene.position, scene.radius)

    cover = trace_object(scene, motion, 80, 144)
    difference = (render(scene, motion, 80, 144) - render(empty, motion, 80, 144)).abs().mean(dim=0)[::4]

    assert cover.shape == (5, 10, 18)
    assert trace_object(empty, motion, 80, 144).abs().max() == 0
    differs = torch.nn.functional.avg_pool2d(difference[:, None], 8)[:, 0] > 0.02
    assert (differs != (cover > 0.02)).float().mean() < 0.05
    columns = torch.arange(18.0)
    middles = (cover.sum(dim=1) * columns).sum(dim=1) / cover.sum(dim=(1, 2))
    assert (middles.diff() > 0.6).all()


@pytest.mark.parametrize("name", ["move_right", "grow", "spin_left", "pan_up", "zoom_in", "melt"])
def test_sources_are_where_the_shown_stood_at_first(name: str) -> None:
    """The first frame, read at the sources, gives the later frames."""
    generator = Generator().manual_seed(3)
    effect = next(effect for effect in EFFECTS if effect.name == name)
    motion = animate(effect, draw_parameters(generator, spread=0.1), 17)
    scene = draw_scene(generator, 80, 144, motion, with_object=True, plain=True)
    clip = render(scene, motion, 80, 144).transpose(0, 1)

    sources = trace_sources(scene, motion, 80, 144)
    known = sources.isfinite().all(dim=-1)
    first = clip[:1].expand(5, -1, -1, -1)
    read = functional.grid_sample(first, sources.nan_to_num() * torch.tensor([80 / 144, 1]), align_corners=False)
    shown = functional.avg_pool2d(clip[::4, :, 3:, 3:], 2, stride=8)  # in the middle of each latent

    assert sources.shape == (5, 10, 18, 2)
    assert known.float().mean() > 0.5
    assert ((read - shown).abs().mean(dim=1)[known] < 0.1).float().mean() > 0.9


@pytest.mark.parametrize("name", ["move_left", "grow", "spin_right", "fade"])
def test_object_sources_are_those_of_what_shows_the_object(name: str) -> None:
    """Where the object is seen they agree with `trace_sources`; beside it they go on as smoothly."""
    generator = Generator().manual_seed(3)
    effect = next(effect for effect in EFFECTS if effect.name == name)
    motion = animate(effect, draw_parameters(generator, spread=0.1), 17)
    scene = draw_scene(generator, 80, 144, motion, with_object=True, plain=True)

    supposed, sources = trace_object_sources(scene, motion, 80, 144), trace_sources(scene, motion, 80, 144)

    known, shown = supposed.isfinite().all(dim=-1), trace_object(scene, motion, 80, 144) > 0.5
    seen = shown & sources.isfinite().all(dim=-1)
    assert seen[1:].sum() >= 10
    alike = torch.isclose(supposed[seen], sources[seen], atol=1e-5)
    assert alike.float().mean() > 0.9  # a latent at the rim may show either
    assert (known & ~shown)[1:].any()
    assert (supposed[known] - torch.tensor(scene.position)).abs().max() <= scene.radius + 1e-5


def test_scenes_of_a_block_come_with_every_of_its_motions() -> None:
    """So that a start image alone does not tell what will happen to it."""
    mean, std = torch.zeros(LATENT_CHANNELS, 1, 1, 1), torch.ones(LATENT_CHANNELS, 1, 1, 1)
    codec = Codec(build_autoencoder().requires_grad_(False), mean, std)

    block = draw_block(Generator().manual_seed(2), Shape(5, 32, 48), codec, LESSONS[-1].diet, scenes=3)

    assert block.latents.shape[:2] == (MOTIONS, 3)
    assert len(set(block.captions)) > 1
    first = block.latents[:, :, :, 0].float()
    assert torch.allclose(first[0], first[1], atol=0.1)
    assert (block.latents[0] - block.latents[1]).abs().max() > 0.01
