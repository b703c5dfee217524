"""What the denoiser learns from: pairs of clips in which the same thing happens to two scenes, as latents.

Encoding costs more than a training step may take, so clips stay in a pool for a while and serve several steps. They
come in blocks, some scenes each under some motions: if a start image always came with the same motion, the denoiser
would remember what happens to which image, and read neither caption nor reference.
"""

from dataclasses import dataclass, field
from functools import reduce

import torch
from diffusers import AutoencoderKLWan
from torch import Generator, Tensor

from training.autoencoder import encode_clips
from training.effects import Effect, Motion, Parameters, animate, combine, describe, draw_parameters, still
from training.scenes import draw_scene, render, trace_object, trace_object_sources, trace_sources

SHORT_SIDE, LONG_SIDE = 80, 144  # nano's own size
# Motions are told in half short sides, so small clips teach the same, in a fifth of the time.
SIZES = ((48, 80), (64, 112), (SHORT_SIDE, LONG_SIDE))
# frames after the start image of a condition are grey; what it leaves in the latents has faded by this many frames
CONDITION_FRAMES = 13
POOL_SIZE = 75  # blocks of one shape
SCENES, MOTIONS = 4, 4  # of a block: each scene under each motion
FRESH_SHARE = 0.04  # of the pairs that are drawn, another block is made
# So many blocks of one shape are made before any serves again; fewer of large ones, or much of a sitting would go by
# with making clips of shapes that seldom come.
FIRST_BLOCKS, FIRST_TOKENS = 9, 2700
WITHOUT_OBJECT = 0.15  # of the blocks
PRACTICE = 3.0
STRENGTHS = ("a little", "a lot")  # said of amounts below and above a third and two thirds, half of the time


@dataclass(frozen=True)
class Shape:
    """Length and size of clips."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Count the latents, which are nano's tokens."""
        return (self.frames + 3) // 4 * (self.height // 8) * (self.width // 8)


def landscape(frames: int, size: tuple[int, int] = SIZES[-1]) -> Shape:
    """Give the 16:9 shape of short and long side."""
    return Shape(frames, *size)


def portrait(frames: int, size: tuple[int, int] = SIZES[-1]) -> Shape:
    """Give the 9:16 shape of short and long side."""
    return Shape(frames, *size[::-1])


@dataclass(frozen=True)
class Diet:
    """What happens in the clips.

    light_share: of the effects that change light and colour alone, which are learnt at once. camera_share: of those
    that move the whole picture, which are learnt next; the rest happens to objects.
    eased: whether some start and end slowly. combined: the share with two effects, of two kinds. spread: of their
    parameters. plain: scenes of few shapes in few colours. practised: names of effects drawn `PRACTICE` times as often
    as the others of their kind.
    """

    effects: tuple[Effect, ...]
    light_share: float
    camera_share: float
    eased: bool
    combined: float
    spread: float
    plain: bool
    practised: frozenset[str] = frozenset()

    def draw_effects(self, generator: Generator, with_object: bool) -> list[Effect]:
        """Draw what happens: one effect, or one and another of another kind at once."""
        effects = [effect for effect in self.effects if with_object or not effect.needs_object]
        first = self._draw_effect(generator, effects)
        if torch.rand((), generator=generator) >= self.combined:
            return [first]
        others = [effect for effect in effects if _kind(effect) != _kind(first)]
        return [first, self._draw_effect(generator, others)]

    def _draw_effect(self, generator: Generator, effects: list[Effect]) -> Effect:
        kinds = [_kind(effect) for effect in effects]
        shares = {
            "light": self.light_share,
            "camera": self.camera_share,
            "object": 1 - self.light_share - self.camera_share,
        }
        turns = torch.tensor([PRACTICE if effect.name in self.practised else 1.0 for effect in effects])
        weights = torch.zeros(len(effects))
        for kind, share in shares.items():
            of_kind = turns * torch.tensor([kind == other for other in kinds])
            weights += share * of_kind / of_kind.sum().clamp(min=1)
        return effects[int(torch.multinomial(weights, 1, generator=generator))]


def _kind(effect: Effect) -> str:
    if effect.is_light:
        return "light"
    return "object" if effect.needs_object else "camera"


@dataclass(frozen=True)
class Pair:
    """Two clips of one effect, each the other's reference.

    latents, conditions: (2, z, T, h, w), normalised, bfloat16.
    pictures: (2, 3, height, width), the first frames, -1 to 1.
    description: (T, DESCRIPTION), what happens, as `effects.describe` gives it.
    covers: (2, T, rows, columns), where the objects are, as `scenes.trace_object` gives it.
    sources: (2, T, h, w, 2), where what is shown stood at first, as `scenes.trace_sources` gives it.
    object_sources: the same if it is the object, as `scenes.trace_object_sources` gives it.
    """

    latents: Tensor
    conditions: Tensor
    pictures: Tensor
    caption: str
    description: Tensor
    covers: Tensor
    sources: Tensor
    object_sources: Tensor


@dataclass(frozen=True)
class Block:
    """Some scenes under some motions.

    latents: (motions, scenes, z, T, h, w); conditions: (scenes, z, T, h, w); pictures: (scenes, 3, height, width).
    captions, descriptions: of the motions. covers: (motions, scenes, T, rows, columns).
    sources, object_sources: (motions, scenes, T, h, w, 2).
    """

    latents: Tensor
    conditions: Tensor
    pictures: Tensor
    captions: list[str]
    descriptions: list[Tensor]
    covers: Tensor
    sources: Tensor
    object_sources: Tensor

    def draw_pair(self, generator: Generator) -> Pair:
        """Choose a motion and two scenes."""
        motion = int(torch.randint(len(self.captions), (), generator=generator))
        scenes = torch.randperm(len(self.pictures), generator=generator)[:2]
        return Pair(
            self.latents[motion, scenes],
            self.conditions[scenes],
            self.pictures[scenes],
            self.captions[motion],
            self.descriptions[motion],
            self.covers[motion, scenes],
            self.sources[motion, scenes],
            self.object_sources[motion, scenes],
        )


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


def draw_caption(generator: Generator, effect: Effect, parameters: Parameters) -> str:
    """Say what happens, and sometimes how much of it."""
    caption = effect.captions[int(torch.randint(0, len(effect.captions), (), generator=generator))]
    strength = STRENGTHS[int(parameters.amount > 0.5)]
    is_told = abs(parameters.amount - 0.5) > 1 / 6 and torch.rand((), generator=generator) < 0.5
    return f"{caption} {strength}" if is_told else caption


def draw_captioned_motion(generator: Generator, diet: Diet, frames: int, with_object: bool) -> tuple[Motion, str]:
    """Give a motion over a clip, and a caption that says it."""
    effects = diet.draw_effects(generator, with_object)
    drawn = [(effect, draw_parameters(generator, diet.eased, diet.spread)) for effect in effects]
    caption = " and ".join(draw_caption(generator, effect, parameters) for effect, parameters in drawn)
    return reduce(combine, (animate(effect, parameters, frames) for effect, parameters in drawn)), caption


def draw_block(generator: Generator, shape: Shape, codec: Codec, diet: Diet, scenes: int = SCENES) -> Block:
    """Draw some motions, and show each on the same new scenes."""
    with_object = bool(torch.rand((), generator=generator) >= WITHOUT_OBJECT)
    motions, captions = zip(
        *(draw_captioned_motion(generator, diet, shape.frames, with_object) for _ in range(MOTIONS)), strict=True
    )
    size = (shape.height, shape.width)
    drawn = [draw_scene(generator, *size, still(shape.frames), with_object, plain=diet.plain) for _ in range(scenes)]
    clips = [torch.stack([render(scene, motion, *size) for scene in drawn]) for motion in motions]
    pictures = clips[0][:, :, 0]
    return Block(
        torch.stack([codec.encode(shown) for shown in clips]).bfloat16(),
        codec.encode_conditions(pictures, shape.frames).bfloat16(),
        pictures,
        list(captions),
        [describe(motion) for motion in motions],
        *(
            torch.stack([torch.stack([trace(scene, motion, *size) for scene in drawn]) for motion in motions])
            for trace in (trace_object, trace_sources, trace_object_sources)
        ),
    )


def first_blocks(shape: Shape) -> int:
    """Give how many blocks of a shape are made before any serves again."""
    return min(FIRST_BLOCKS, max(2, FIRST_TOKENS // shape.tokens))


@dataclass
class Pool:
    """Blocks by shape; old ones give way to new ones."""

    generator: Generator
    codec: Codec
    diet: Diet
    blocks: dict[Shape, list[Block]] = field(default_factory=dict)

    def draw(self, shape: Shape, count: int, chance: float) -> list[Pair]:
        """Give `count` pairs of a shape, each out of another block, one of them sometimes new.

        chance: 0 to 1, whether one is; workers that wait for each other make theirs at the same time.
        """
        pool = self.blocks.setdefault(shape, [])
        wanted = int(len(pool) < first_blocks(shape) or chance < FRESH_SHARE * count)
        fresh = max(wanted, count - len(pool))
        pool.extend(draw_block(self.generator, shape, self.codec, self.diet) for _ in range(fresh))
        del pool[:-POOL_SIZE]
        chosen = torch.randperm(len(pool), generator=self.generator)[:count].tolist()
        return [pool[index].draw_pair(self.generator) for index in chosen]
