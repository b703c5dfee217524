"""Random scenes (a background, most with an object before it) and their rendering under a motion.

Coordinates are those of `effects.py`: the frame spans -1 to 1 along its short side, and more along its long side.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from training.effects import Motion, still
from training.photographs import load_photographs

CANVAS_MARGIN = 1.25  # a background is this much larger than the frame; beyond, it is mirrored
SPRITE_SIZE = 64
GLYPHS = "ABCDEFGHKMNPQRSTUVWXYZ2345679&?%@#"
HELD_OUT_GLYPHS = "JL8$"
MIN_CONTRAST = 0.3  # distance in RGB, 0 to 1, between an object's mean colour and what is behind it


@dataclass(frozen=True)
class Scene:
    """What a clip starts from.

    background: (3, height, width) and sprite: (4, SPRITE_SIZE, SPRITE_SIZE) with alpha last; float32, 0 to 1.
    """

    background: Tensor
    sprite: Tensor | None
    grains: Tensor  # (1, SPRITE_SIZE, SPRITE_SIZE), 0 to 1: the order in which the object's parts dissolve
    position: tuple[float, float]
    radius: float


# ---- random numbers ----


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _chance(generator: Generator, probability: float) -> bool:
    return torch.rand((), generator=generator).item() < probability


def _integer(generator: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=generator))


def _colour(generator: Generator) -> Tensor:
    return torch.rand(3, generator=generator)


# ---- backgrounds ----


def _resize(picture: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(picture[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def _plane(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Give rows and columns as coordinates, the frame's short side being 2 long."""
    short = min(height, width)
    rows = (torch.arange(height) + 0.5 - height / 2) * 2 / short
    columns = (torch.arange(width) + 0.5 - width / 2) * 2 / short
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return grid[0], grid[1]


def _along(generator: Generator, height: int, width: int) -> Tensor:
    angle = _uniform(generator, 0, 2 * math.pi)
    rows, columns = _plane(height, width)
    return rows * math.sin(angle) + columns * math.cos(angle)


def paint_gradient(generator: Generator, height: int, width: int) -> Tensor:
    """Paint one colour running into another, often hardly different."""
    first, second = _colour(generator), _colour(generator)
    second = torch.lerp(first, second, _uniform(generator, 0, 1))
    share = (_along(generator, height, width) / 2.5 + 0.5).clamp(0, 1)
    return torch.lerp(first[:, None, None], second[:, None, None], share)


def paint_clouds(generator: Generator, height: int, width: int) -> Tensor:
    """Paint noise with as much power at every scale as photographs have."""
    layers = torch.zeros(3, height, width)
    for level in range(2, 7):
        grain = torch.randn(3, 2**level, 2**level, generator=generator) * 0.6 ** (level - 2)
        layers += F.interpolate(grain[None], (height, width), mode="bicubic", align_corners=False)[0]
    mixing = torch.eye(3) * 0.3 + torch.rand(3, 3, generator=generator)
    contrast = _uniform(generator, 0.05, 0.2)
    return (torch.einsum("ij,jhw->ihw", mixing, layers) * contrast + _colour(generator)[:, None, None]).clamp(0, 1)


def paint_pattern(generator: Generator, height: int, width: int) -> Tensor:
    """Paint stripes or checks in two colours."""
    pitch = _uniform(generator, 2, 9)
    stripes = torch.sin(_along(generator, height, width) * pitch)
    if _chance(generator, 0.5):
        stripes = stripes * torch.sin(_along(generator, height, width) * pitch)
    first, second = _colour(generator), _colour(generator)
    second = torch.lerp(first, second, _uniform(generator, 0.2, 1))
    return torch.lerp(first[:, None, None], second[:, None, None], torch.sigmoid(stripes * 12))


def paint_leaves(generator: Generator, height: int, width: int) -> Tensor:
    """Paint discs and boxes over each other, all smaller than an object, or nobody could tell which is the object."""
    picture = paint_gradient(generator, height, width)
    rows, columns = _plane(height, width)
    for _ in range(_integer(generator, 6, 40)):
        radius = 0.06 * _uniform(generator, 0.12, 1) ** -0.6
        y, x = (_uniform(generator, float(axis.min()), float(axis.max())) for axis in (rows, columns))
        across, down = (columns - x).abs(), (rows - y).abs()
        distance = torch.maximum(across, down * 1.5) if _chance(generator, 0.4) else (across**2 + down**2).sqrt()
        cover = ((radius - distance) * 40).clamp(0, 1)
        picture = torch.lerp(picture, (_colour(generator)[:, None, None] + 0.15 * rows).clamp(0, 1), cover)
    return picture


def paint_landscape(generator: Generator, height: int, width: int) -> Tensor:
    """Paint a sky over ground with hills between."""
    sky, ground, hills = _colour(generator) * 0.5 + 0.5, _colour(generator) * 0.7, _colour(generator) * 0.8
    rows, columns = _plane(height, width)
    picture = torch.lerp(sky[:, None, None], torch.ones(3, 1, 1), (rows / 2 + 0.5).clamp(0, 1) * 0.6)
    ridge = _uniform(generator, -0.2, 0.4) + 0.2 * torch.sin(
        columns * _uniform(generator, 1, 4) + _uniform(generator, 0, 6)
    )
    picture = torch.lerp(picture, hills[:, None, None].expand_as(picture), ((rows - ridge) * 30).clamp(0, 1))
    horizon = _uniform(generator, 0.2, 0.7)
    return torch.lerp(picture, ground[:, None, None].expand_as(picture), ((rows - horizon) * 30).clamp(0, 1))


def crop_photograph(generator: Generator, height: int, width: int, held_out: bool) -> Tensor:
    """Cut a piece out of a photograph; those to train on are also mirrored, turned and recoloured."""
    photographs = load_photographs(held_out)
    picture = photographs[_integer(generator, 0, len(photographs))]
    if not held_out and _chance(generator, 0.3):
        picture = picture.transpose(1, 2)
    scale = min(picture.shape[1] / height, picture.shape[2] / width) * _uniform(generator, 0.35, 1)
    rows, columns = int(height * scale), int(width * scale)
    top = _integer(generator, 0, picture.shape[1] - rows + 1)
    left = _integer(generator, 0, picture.shape[2] - columns + 1)
    crop = _resize(picture[:, top : top + rows, left : left + columns], height, width)
    return crop if held_out else _vary(generator, crop)


def _vary(generator: Generator, picture: Tensor) -> Tensor:
    if _chance(generator, 0.5):
        picture = picture.flip(2)
    if _chance(generator, 0.3):
        picture = picture[torch.randperm(3, generator=generator)]
    tint = 1 + 0.2 * torch.randn(3, 1, 1, generator=generator)
    return (picture * tint + 0.08 * torch.randn(3, 1, 1, generator=generator)).clamp(0, 1)


PAINTERS = (paint_gradient, paint_clouds, paint_pattern, paint_leaves, paint_landscape)
PLAIN_PAINTERS = (paint_gradient, paint_clouds, paint_landscape)
PHOTOGRAPH_SHARE = 0.45


def draw_background(generator: Generator, height: int, width: int, held_out: bool, plain: bool = False) -> Tensor:
    """Give a random background, (3, height, width), float32, 0 to 1. plain: few shapes in few colours."""
    if plain:
        return PLAIN_PAINTERS[_integer(generator, 0, len(PLAIN_PAINTERS))](generator, height, width)
    if _chance(generator, PHOTOGRAPH_SHARE):
        return crop_photograph(generator, height, width, held_out)
    return PAINTERS[_integer(generator, 0, len(PAINTERS))](generator, height, width)


# ---- objects ----


def _mask_of_outline(points: Tensor) -> Tensor:
    canvas = Image.new("L", (SPRITE_SIZE * 2, SPRITE_SIZE * 2))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in ((points + 1) * SPRITE_SIZE).tolist()], fill=255)
    return _to_mask(canvas)


def _to_mask(canvas: Image.Image) -> Tensor:
    small = canvas.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BOX)
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, SPRITE_SIZE, SPRITE_SIZE) / 255


def _draw_polygon(generator: Generator) -> Tensor:
    corners = _integer(generator, 3, 8)
    notch = _uniform(generator, 0.4, 0.7) if _chance(generator, 0.4) else 1.0
    steps = torch.arange(2 * corners)
    radius = torch.where(steps % 2 == 0, 0.95, 0.95 * (notch if notch < 1 else math.cos(math.pi / corners)))
    angle = steps * math.pi / corners + _uniform(generator, 0, 2 * math.pi)
    stretch = torch.tensor([_uniform(generator, 0.55, 1), _uniform(generator, 0.75, 1)])
    return _mask_of_outline(torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1) * stretch)


def _draw_blob(generator: Generator) -> Tensor:
    angle = torch.linspace(0, 2 * math.pi, 60)
    radius = torch.full_like(angle, 0.7)
    for wave in range(2, 5):
        radius = radius + _uniform(generator, 0, 0.3 / wave) * torch.sin(wave * angle + _uniform(generator, 0, 6))
    radius = radius * 0.95 / radius.max()
    return _mask_of_outline(torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1))


@cache
def _draw_letter(letter: str) -> Tensor:
    canvas = Image.new("L", (SPRITE_SIZE * 2, SPRITE_SIZE * 2))
    middle = (SPRITE_SIZE, SPRITE_SIZE)
    # Pillow's own font; the outline makes it bold enough to survive 80 rows
    ImageDraw.Draw(canvas).text(middle, letter, 255, ImageFont.load_default(130), anchor="mm", stroke_width=5)
    return _to_mask(canvas)


def _draw_glyph(generator: Generator, held_out: bool) -> Tensor:
    letters = HELD_OUT_GLYPHS if held_out else GLYPHS
    return _draw_letter(letters[_integer(generator, 0, len(letters))])


def _draw_mask(generator: Generator, held_out: bool) -> Tensor:
    kind = _uniform(generator, 0, 1)
    if kind < 0.4:
        return _draw_polygon(generator)
    return _draw_blob(generator) if kind < 0.7 else _draw_glyph(generator, held_out)


def _draw_filling(generator: Generator, held_out: bool, plain: bool) -> Tensor:
    kind = 0.0 if plain else _uniform(generator, 0, 1)
    if kind < 0.35:
        return _colour(generator)[:, None, None].expand(3, SPRITE_SIZE, SPRITE_SIZE)
    if kind < 0.6:
        return paint_gradient(generator, SPRITE_SIZE, SPRITE_SIZE)
    if kind < 0.75:
        return paint_pattern(generator, SPRITE_SIZE, SPRITE_SIZE)
    return crop_photograph(generator, SPRITE_SIZE, SPRITE_SIZE, held_out)


def _contrast(filling: Tensor, mask: Tensor, behind: Tensor) -> float:
    mean = (filling * mask).sum(dim=(1, 2)) / mask.sum()
    return (mean - behind.mean(dim=(1, 2))).norm().item()


def draw_sprite(generator: Generator, behind: Tensor, held_out: bool, plain: bool = False) -> Tensor:
    """Give a random object, (4, SPRITE_SIZE, SPRITE_SIZE), that stands out from the picture behind it."""
    mask = _draw_mask(generator, held_out)
    filling = _draw_filling(generator, held_out, plain)
    while _contrast(filling, mask, behind) < MIN_CONTRAST:
        filling = _draw_filling(generator, held_out, plain)
    if _chance(generator, 0.3):
        inner = -F.max_pool2d(-mask[None], 7, stride=1, padding=3)[0]
        edge = (behind.mean(dim=(1, 2)) < 0.5).float()[:, None, None]
        filling = torch.lerp(edge.expand_as(filling), filling, inner)
    return torch.cat([filling, mask])


# ---- scenes ----


def _draw_position(generator: Generator, reach: tuple[float, float], way: Tensor) -> tuple[float, float]:
    """Place an object within reach of the middle, such that its way passes near it if there is room."""
    place = []
    for limit, distance in zip(reach, way.tolist(), strict=True):
        middle = min(max(-distance / 2, -limit), limit)
        place.append(min(max(middle + _uniform(generator, -0.45, 0.45), -limit), limit))
    return place[0], place[1]


def draw_scene(
    generator: Generator,
    height: int,
    width: int,
    motion: Motion,
    with_object: bool,
    held_out: bool = False,
    plain: bool = False,
) -> Scene:
    """Draw what a clip starts from. The motion only helps to place the object where it stays visible."""
    background = draw_background(generator, int(height * CANVAS_MARGIN), int(width * CANVAS_MARGIN), held_out, plain)
    radius = _uniform(generator, 0.35, 0.75)
    short = min(height, width)
    reach = (width / short - radius, height / short - radius)
    position = _draw_position(generator, reach, motion.shift[-1])
    grains = torch.rand(1, 12, 12, generator=generator)
    grains = F.interpolate(grains[None], (SPRITE_SIZE, SPRITE_SIZE))[0]
    behind = _behind(background, position, radius, short)
    sprite = draw_sprite(generator, behind, held_out, plain) if with_object else None
    return Scene(background, sprite, grains, position, radius)


def _behind(background: Tensor, position: tuple[float, float], radius: float, short: int) -> Tensor:
    """Cut out what the object at a position will cover."""
    middle = [
        size // 2 + int(place * short / 2) for size, place in zip(background.shape[1:], position[::-1], strict=True)
    ]
    half = max(2, int(radius * short / 2))
    top, left = max(0, middle[0] - half), max(0, middle[1] - half)
    return background[:, top : middle[0] + half, left : middle[1] + half]


def render(scene: Scene, motion: Motion, height: int, width: int) -> Tensor:
    """Give the clip of a scene under a motion: (3, F, height, width), float32, -1 to 1."""
    short, frames = min(height, width), len(motion.angle)
    world = _to_world(motion, height, width)
    extent = torch.tensor([width, height]) * CANVAS_MARGIN / short
    picture = F.grid_sample(
        scene.background.expand(frames, -1, -1, -1), world / extent, padding_mode="reflection", align_corners=False
    )
    if scene.sprite is not None:
        picture = _place_object(picture, scene, scene.sprite, motion, world)
    picture = torch.einsum("fij,fjhw->fihw", motion.colour, picture) + motion.brightness[:, :, None, None]
    picture = picture * _open_iris(motion, height, width)
    return picture.clamp(0, 1).transpose(0, 1) * 2 - 1


def _to_world(motion: Motion, height: int, width: int) -> Tensor:
    """Give the place in the scene that each pixel of each frame shows, (F, height, width, 2), x before y."""
    rows, columns = _plane(height, width)
    grid = torch.stack([columns, rows], dim=-1)[None]
    ripple = motion.wave[:, None, None] * torch.sin(rows * 6)
    grid = grid + torch.stack([ripple, torch.zeros_like(ripple)], dim=-1)
    return grid / motion.zoom[:, None, None, None] + motion.pan[:, None, None, :]


def trace_object(scene: Scene, motion: Motion, height: int, width: int) -> Tensor:
    """Give how much of each latent the object covers, (T, height / 8, width / 8), at the latents' frames."""
    rows, columns = height // 8, width // 8
    if scene.sprite is None:
        return torch.zeros(len(motion.angle[::4]), rows, columns)
    seldom = Motion(**{name: values[::4] for name, values in vars(motion).items()})
    _, cover = _sample_object(scene, scene.sprite, seldom, _to_world(seldom, 2 * rows, 2 * columns))
    return F.avg_pool2d(cover, 2)[:, 0]


def trace_sources(scene: Scene, motion: Motion, height: int, width: int) -> Tensor:
    """Give where in the first frame that stands which each latent shows, (T, height / 8, width / 8, 2), x before y.

    NaN where it cannot be seen in the first frame. At the latents' frames.
    """
    seldom = Motion(**{name: values[::4] for name, values in vars(motion).items()})
    world = _to_world(seldom, height // 8, width // 8)
    sources = world
    if scene.sprite is not None:
        _, cover = _sample_object(scene, scene.sprite, seldom, world)
        is_object = cover[:, 0] > 0.5
        sources = torch.tensor(scene.position) + scene.radius * _to_object(scene, seldom, world)
        sources = torch.where(is_object[..., None], sources, world)
        at_rest = still(len(sources))
        _, first_cover = _sample_object(scene, scene.sprite, at_rest, sources)
        sources = sources.masked_fill((is_object != (first_cover[:, 0] > 0.5))[..., None], math.nan)
    return _forget_outside(sources, height, width)


def trace_object_sources(scene: Scene, motion: Motion, height: int, width: int) -> Tensor:
    """Give where in the first frame stood what of the object each latent would show, if it showed the object.

    As `trace_sources`; NaN where that is beyond the object's square. So it follows from the motion alone, and not from
    where the object's outline runs.
    """
    seldom = Motion(**{name: values[::4] for name, values in vars(motion).items()})
    sources = torch.full((len(seldom.angle), height // 8, width // 8, 2), math.nan)
    if scene.sprite is None:
        return sources
    part = _to_object(scene, seldom, _to_world(seldom, height // 8, width // 8))
    sources = torch.tensor(scene.position) + scene.radius * part
    sources = sources.masked_fill((part.abs() > 1).any(dim=-1, keepdim=True), math.nan)
    return _forget_outside(sources, height, width)


def _forget_outside(sources: Tensor, height: int, width: int) -> Tensor:
    """Give NaN for the places that are outside the frame."""
    is_outside = (sources.abs() >= torch.tensor([width, height]) / min(height, width)).any(dim=-1, keepdim=True)
    return sources.masked_fill(is_outside, math.nan)


def _place_object(picture: Tensor, scene: Scene, sprite: Tensor, motion: Motion, world: Tensor) -> Tensor:
    """Draw the object over a clip (F, 3, height, width)."""
    return torch.lerp(picture, *_sample_object(scene, sprite, motion, world))


def _to_object(scene: Scene, motion: Motion, world: Tensor) -> Tensor:
    """Give the place on the object, -1 to 1, that stands at each place in the scene, (F, height, width, 2)."""
    foot = scene.radius * (1 - motion.scale[:, 1]) * motion.sag
    middle = torch.tensor(scene.position) + motion.shift + torch.stack([torch.zeros_like(foot), foot], dim=1)
    offset = world - middle[:, None, None]
    cos, sin = motion.angle.cos()[:, None, None], motion.angle.sin()[:, None, None]
    x = offset[..., 0] * cos + offset[..., 1] * sin
    y = offset[..., 1] * cos - offset[..., 0] * sin
    return torch.stack([x, y], dim=-1) / (motion.scale * scene.radius).clamp(min=1e-3)[:, None, None]


def _sample_object(scene: Scene, sprite: Tensor, motion: Motion, world: Tensor) -> tuple[Tensor, Tensor]:
    """Give the object's colour (F, 3, height, width) and how much it covers (F, 1, height, width)."""
    # a last channel of ones tells how much of a pixel is inside the sprite: without it, a black rim would show
    layers = torch.cat([sprite, scene.grains, torch.ones_like(scene.grains)]).expand(len(world), -1, -1, -1)
    sampled = F.grid_sample(layers, _to_object(scene, motion, world), align_corners=False)
    colour, alpha, grains, inside = sampled.split([3, 1, 1, 1], dim=1)
    colour = torch.einsum("fij,fjhw->fihw", motion.object_colour, colour / inside.clamp(min=1e-3))
    colour = colour + motion.object_brightness[:, :, None, None]
    left = ((grains - motion.dissolve[:, None, None, None]) * 8 + 1).clamp(0, 1)
    return colour.clamp(0, 1), alpha * left * motion.opacity[:, None, None, None]


def _open_iris(motion: Motion, height: int, width: int) -> Tensor:
    rows, columns = _plane(height, width)
    distance = (rows**2 + columns**2).sqrt()
    return ((motion.iris[:, None, None] - distance) * 15).clamp(0, 1)[:, None]
