"""What the denoiser learns from: pairs of clips in which the same thing happens to two scenes, as latents.

Encoding costs more than a training step may take, so each pair stays in a pool for a while and serves several steps.
"""

from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKLWan
from torch import Generator, Tensor

from training.autoencoder import encode_clips
from training.effects import EFFECTS, Effect, Motion, animate, combine, draw_parameters
from training.scenes import draw_scene, render

SHORT_SIDE, LONG_SIDE = 80, 144
# frames after the start image of a condition are grey; what it leaves in the latents has faded by this many frames
CONDITION_FRAMES = 13
POOL_SIZE = 256  # pairs of one shape
FRESH_SHARE = 0.45  # of the steps begin with a new pair
COMBINED_SHARE = 0.15  # two effects at once; none early
# What is too hard for the beginning; difficulties multiply.
LATER = {"spin_right", "spin_left", "dissolve", "melt", "shake", "bounce", "pulse", "swing"}
LATER |= {"pan_up", "pan_down", "quake", "ripple"}
EARLY_EFFECTS = tuple(effect for effect in EFFECTS if effect.name not in LATER)


@dataclass(frozen=True)
class Shape:
    """Length and size of clips."""

    frames: int
    height: int
    width: int


def landscape(frames: int) -> Shape:
    """Give the 16:9 shape."""
    return Shape(frames, SHORT_SIDE, LONG_SIDE)


def portrait(frames: int) -> Shape:
    """Give the 9:16 shape."""
    return Shape(frames, LONG_SIDE, SHORT_SIDE)


@dataclass(frozen=True)
class Pair:
    """Two clips of one effect, each the other's reference.

    latents, conditions: (2, z, T, h, w), normalised, bfloat16.
    pictures: (2, 3, height, width), the first frames, -1 to 1.
    """

    latents: Tensor
    conditions: Tensor
    pictures: Tensor
    caption: str


@dataclass(frozen=True)
class Codec:
    """The frozen autoencoder with its latents' statistics, (z, 1, 1, 1) each."""

    vae: AutoencoderKLWan
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Give normalised latents (B, z, T, h, w), float32, of clips (B, 3, F, height, width)."""
        return (encode_clips(self.vae, clips) - self.mean) / self.std

    def encode_conditions(self, pictures: Tensor, frames: int) -> Tensor:
        """Give the condition latents (B, z, T, h, w) of start images (B, 3, height, width)."""
        clips = pictures.new_zeros(*pictures.shape[:2], min(frames, CONDITION_FRAMES), *pictures.shape[2:])
        clips[:, :, 0] = pictures
        latents = self.encode(clips)
        faded = latents[:, :, -1:].expand(-1, -1, (frames - clips.shape[2]) // 4, -1, -1)
        return torch.cat([latents, faded], dim=2)


def draw_effects(generator: Generator, early: bool = False) -> list[Effect]:
    """Draw what happens: one effect, sometimes two at once. early: only the easy ones, one at a time."""
    effects = EARLY_EFFECTS if early else EFFECTS
    count = 2 if not early and torch.rand((), generator=generator) < COMBINED_SHARE else 1
    return [effects[index] for index in torch.randperm(len(effects), generator=generator)[:count]]


def draw_caption(generator: Generator, effects: list[Effect]) -> str:
    """Say what happens."""
    choices = [
        effect.captions[int(torch.randint(0, len(effect.captions), (), generator=generator))] for effect in effects
    ]
    return " and ".join(choices)


def draw_clip(generator: Generator, effects: list[Effect], motion: Motion, shape: Shape) -> Tensor:
    """Give a clip of a new scene, (3, F, height, width)."""
    needs_object = any(effect.needs_object for effect in effects)
    with_object = needs_object or bool(torch.rand((), generator=generator) < 0.5)
    scene = draw_scene(generator, shape.height, shape.width, motion, with_object)
    return render(scene, motion, shape.height, shape.width)


def draw_pair(generator: Generator, shape: Shape, codec: Codec, early: bool = False) -> Pair:
    """Draw an effect and show it on two scenes."""
    effects = draw_effects(generator, early)
    motions = [animate(effect, draw_parameters(generator), shape.frames) for effect in effects]
    motion = motions[0] if len(motions) == 1 else combine(*motions)
    clips = torch.stack([draw_clip(generator, effects, motion, shape) for _ in range(2)])
    pictures = clips[:, :, 0]
    latents, conditions = codec.encode(clips), codec.encode_conditions(pictures, shape.frames)
    return Pair(latents.bfloat16(), conditions.bfloat16(), pictures, draw_caption(generator, effects))


@dataclass
class Pool:
    """Pairs by shape; old ones give way to new ones."""

    generator: Generator
    codec: Codec
    pairs: dict[Shape, list[Pair]] = field(default_factory=dict)

    def draw(self, shape: Shape, count: int, early: bool = False) -> list[Pair]:
        """Give `count` pairs of a shape, some new and the others from the pool. early: as in `draw_effects`."""
        pool = self.pairs.setdefault(shape, [])
        wanted = int(torch.rand((), generator=self.generator) < FRESH_SHARE)
        fresh = max(wanted, count - len(pool))
        pool.extend(draw_pair(self.generator, shape, self.codec, early) for _ in range(fresh))
        del pool[:-POOL_SIZE]
        older = torch.randperm(len(pool) - fresh, generator=self.generator)[: count - fresh].tolist()
        return pool[len(pool) - fresh :] + [pool[index] for index in older]
