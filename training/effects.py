"""The effects nano learns: each a pure function from random parameters to how a scene changes over time.

Lengths are in half short sides of the frame, so that 2 is the frame's short side in every aspect; x grows to the
right, y downwards; angles are in radians, positive turning clockwise on the screen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from torch import Tensor

IDENTITY_COLOUR = torch.eye(3)
OPEN_IRIS = 10.0
GREY_WEIGHTS = torch.tensor([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Motion:
    """What changes, frame by frame. Every field has the frames first; the defaults of `still` change nothing."""

    shift: Tensor  # (F, 2), the object's way from where it started
    scale: Tensor  # (F, 2), the object's size, across and down
    angle: Tensor  # (F,)
    sag: Tensor  # (F,), 0 or 1: how much of a change in height keeps the object's foot where it is
    opacity: Tensor  # (F,)
    dissolve: Tensor  # (F,), the share of the object's grains that are gone
    pan: Tensor  # (F, 2), the camera's way
    zoom: Tensor  # (F,), above 1 is nearer
    wave: Tensor  # (F,), sideways amplitude of a ripple over the whole picture
    colour: Tensor  # (F, 3, 3), multiplies the picture's RGB
    brightness: Tensor  # (F, 3), added to the picture's RGB
    object_colour: Tensor  # (F, 3, 3)
    object_brightness: Tensor  # (F, 3)
    iris: Tensor  # (F,), the radius outside which the picture is black


def still(frames: int) -> Motion:
    """Give the motion of a scene in which nothing happens."""
    zero, one = torch.zeros(frames), torch.ones(frames)
    eye = IDENTITY_COLOUR.expand(frames, 3, 3)
    return Motion(
        shift=torch.zeros(frames, 2),
        scale=torch.ones(frames, 2),
        angle=zero,
        sag=zero,
        opacity=one,
        dissolve=zero,
        pan=torch.zeros(frames, 2),
        zoom=one,
        wave=zero,
        colour=eye,
        brightness=torch.zeros(frames, 3),
        object_colour=eye,
        object_brightness=torch.zeros(frames, 3),
        iris=one * OPEN_IRIS,
    )


def combine(first: Motion, second: Motion) -> Motion:
    """Let two motions happen at once."""
    added = ("shift", "angle", "pan", "wave", "brightness", "object_brightness")
    multiplied = ("scale", "opacity", "zoom")
    merged = {}
    for field in fields(Motion):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name in added:
            merged[field.name] = one + other
        elif field.name in multiplied:
            merged[field.name] = one * other
        elif field.name.endswith("colour"):
            merged[field.name] = other @ one
        elif field.name == "iris":
            merged[field.name] = torch.minimum(one, other)
        else:
            merged[field.name] = torch.maximum(one, other)
    return Motion(**merged)


def is_rigid(motion: Motion) -> bool:
    """Tell whether a motion changes only where things are and how large, which `scenes.trace_sources` can follow."""
    unmoved = still(len(motion.angle))
    other = {"shift", "scale", "angle", "sag", "pan", "zoom", "iris"}
    same = (
        torch.equal(getattr(motion, f.name), getattr(unmoved, f.name)) for f in fields(Motion) if f.name not in other
    )
    return all(same) and bool((motion.iris >= OPEN_IRIS).all())


@dataclass(frozen=True)
class Parameters:
    """What is drawn at random for an effect, and shared by the reference and the target."""

    amount: float  # 0 to 1, from slight to strong
    turn: float  # -1 to 1, a deviation in direction
    easing: float  # 0 is constant speed, 1 starts and ends slowly
    cycles: float  # 1 to 3, for effects that repeat


@dataclass(frozen=True)
class Effect:
    """A named change. animate: (progress, parameters) -> Motion, where progress (F,) runs from 0 to 1."""

    name: str
    captions: tuple[str, ...]
    animate: Callable[[Tensor, Parameters], Motion]
    needs_object: bool = True
    follows_path: bool = False  # the object moves, and its path can be compared
    is_light: bool = False  # the whole picture's light or colour changes, and nothing moves


# What a motion is told in: its fields, each as a difference from `still`, of the order of one.
_DESCRIBED: tuple[Callable[[Motion], Tensor], ...] = (
    lambda motion: motion.shift,
    lambda motion: motion.scale.clamp(min=0.1).log(),
    lambda motion: motion.angle[:, None] / 3,
    lambda motion: 1 - motion.opacity[:, None],
    lambda motion: motion.dissolve[:, None],
    lambda motion: motion.pan,
    lambda motion: 2 * motion.zoom[:, None].log(),
    lambda motion: 5 * motion.wave[:, None],
    lambda motion: (motion.colour - IDENTITY_COLOUR).flatten(1),
    lambda motion: motion.brightness,
    lambda motion: (motion.object_colour - IDENTITY_COLOUR).flatten(1),
    lambda motion: motion.object_brightness,
    lambda motion: 2.2 - motion.iris[:, None].clamp(max=2.2),
)


def describe(motion: Motion) -> Tensor:
    """Give a motion in numbers, (T, DESCRIPTION), at the first and then every fourth frame, as latents have them."""
    return torch.cat([read(motion)[::4] for read in _DESCRIBED], dim=1)


@cache
def description_weights() -> Tensor:
    """Give weights (DESCRIPTION,) under which all fields of a motion count the same, and a mere mean costs one."""
    generator = torch.Generator().manual_seed(0)
    motions = [animate(effect, draw_parameters(generator), 17) for effect in EFFECTS * 8]
    variance = torch.cat([describe(motion) for motion in motions]).var(dim=0)
    sizes = [read(motions[0]).shape[1] for read in _DESCRIBED]
    shares = torch.cat([torch.full((size,), 1 / (size * len(sizes))) for size in sizes])
    return shares / variance


DESCRIPTION = 36


def draw_parameters(generator: torch.Generator, eased: bool = True, spread: float = 1.0) -> Parameters:
    """Draw an effect's parameters. eased: two in five start and end slowly. spread: from slight ones to how strong."""
    amount, turn, chance, easing, cycles = torch.rand(5, generator=generator).tolist()
    amount, turn = spread * amount, spread * (2 * turn - 1)
    return Parameters(amount, turn, easing if eased and chance < 0.4 else 0.0, 1 + 2 * cycles)


def animate(effect: Effect, parameters: Parameters, frames: int) -> Motion:
    """Give an effect's motion over a clip of some frames."""
    even = torch.linspace(0, 1, frames)
    eased = even * even * (3 - 2 * even)
    return effect.animate(torch.lerp(even, eased, parameters.easing), parameters)


def _move(heading: float) -> Callable[[Tensor, Parameters], Motion]:
    def animate_move(progress: Tensor, parameters: Parameters) -> Motion:
        angle = heading + 0.35 * parameters.turn
        way = torch.tensor([math.cos(angle), math.sin(angle)]) * (0.7 + 0.9 * parameters.amount)
        return replace(still(len(progress)), shift=progress[:, None] * way)

    return animate_move


def _grow(progress: Tensor, parameters: Parameters) -> Motion:
    scale = (1.6 + 0.9 * parameters.amount) ** progress
    return replace(still(len(progress)), scale=scale[:, None].expand(-1, 2))


def _shrink(progress: Tensor, parameters: Parameters) -> Motion:
    scale = 1 - progress * (0.6 + 0.4 * parameters.amount)
    return replace(still(len(progress)), scale=scale[:, None].expand(-1, 2))


def _spin(sign: int) -> Callable[[Tensor, Parameters], Motion]:
    def animate_spin(progress: Tensor, parameters: Parameters) -> Motion:
        return replace(still(len(progress)), angle=sign * progress * math.pi * (0.8 + 1.2 * parameters.amount))

    return animate_spin


def _fade(progress: Tensor, parameters: Parameters) -> Motion:
    return replace(still(len(progress)), opacity=1 - progress * (0.8 + 0.2 * parameters.amount))


def _dissolve(progress: Tensor, parameters: Parameters) -> Motion:
    return replace(still(len(progress)), dissolve=progress * (0.8 + 0.25 * parameters.amount))


def _melt(progress: Tensor, parameters: Parameters) -> Motion:
    height = 1 - progress * (0.6 + 0.25 * parameters.amount)
    width = 1 + progress * (0.3 + 0.3 * parameters.amount)
    return replace(still(len(progress)), scale=torch.stack([width, height], dim=1), sag=torch.ones(len(progress)))


def _wobble(progress: Tensor, parameters: Parameters) -> Tensor:
    return torch.sin(2 * math.pi * parameters.cycles * progress)


def _shake(progress: Tensor, parameters: Parameters) -> Motion:
    way = _wobble(progress, parameters) * (0.2 + 0.2 * parameters.amount)
    return replace(still(len(progress)), shift=torch.stack([way, torch.zeros_like(way)], dim=1))


def _bounce(progress: Tensor, parameters: Parameters) -> Motion:
    height = _wobble(progress / 2, parameters).abs() * (0.4 + 0.4 * parameters.amount)
    return replace(still(len(progress)), shift=torch.stack([torch.zeros_like(height), -height], dim=1))


def _pulse(progress: Tensor, parameters: Parameters) -> Motion:
    scale = 1 + _wobble(progress / 2, parameters).abs() * (0.4 + 0.4 * parameters.amount)
    return replace(still(len(progress)), scale=scale[:, None].expand(-1, 2))


def _swing(progress: Tensor, parameters: Parameters) -> Motion:
    return replace(still(len(progress)), angle=_wobble(progress, parameters) * (0.4 + 0.5 * parameters.amount))


def _blend_colour(progress: Tensor, matrix: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    step = progress[:, None, None]
    return torch.lerp(IDENTITY_COLOUR.expand(len(progress), 3, 3), matrix, step), progress[:, None] * offset


def _recolour_object(red: float, green: float, blue: float) -> Callable[[Tensor, Parameters], Motion]:
    def animate_recolour(progress: Tensor, parameters: Parameters) -> Motion:
        strength = 0.75 + 0.25 * parameters.amount
        # keeps the object's light and shade: a third of its grey, on top of the new colour
        matrix = torch.lerp(IDENTITY_COLOUR, GREY_WEIGHTS.expand(3, 3) / 3, strength)
        colour, brightness = _blend_colour(progress, matrix, 0.7 * strength * torch.tensor([red, green, blue]))
        return replace(still(len(progress)), object_colour=colour, object_brightness=brightness)

    return animate_recolour


def _pan(x: int, y: int) -> Callable[[Tensor, Parameters], Motion]:
    def animate_pan(progress: Tensor, parameters: Parameters) -> Motion:
        way = torch.tensor([float(x), float(y)]) * (0.4 + 0.6 * parameters.amount)
        return replace(still(len(progress)), pan=progress[:, None] * way)

    return animate_pan


def _zoom_in(progress: Tensor, parameters: Parameters) -> Motion:
    return replace(still(len(progress)), zoom=(1.4 + 0.8 * parameters.amount) ** progress)


def _zoom_out(progress: Tensor, parameters: Parameters) -> Motion:
    return replace(still(len(progress)), zoom=(1.35 + 0.5 * parameters.amount) ** -progress)


def _quake(progress: Tensor, parameters: Parameters) -> Motion:
    strength = 0.06 + 0.08 * parameters.amount
    phase = 2 * math.pi * 2 * parameters.cycles * progress
    pan = torch.stack([torch.sin(phase), torch.sin(1.5 * phase)], dim=1) * strength
    return replace(still(len(progress)), pan=pan)


def _ripple(progress: Tensor, parameters: Parameters) -> Motion:
    return replace(still(len(progress)), wave=_wobble(progress, parameters) * (0.12 + 0.12 * parameters.amount))


def _grade(matrix: Tensor, offset: Tensor) -> Callable[[Tensor, Parameters], Motion]:
    def animate_grade(progress: Tensor, parameters: Parameters) -> Motion:
        strength = 0.7 + 0.3 * parameters.amount
        goal = torch.lerp(IDENTITY_COLOUR, matrix, strength)
        colour, brightness = _blend_colour(progress, goal, strength * offset)
        return replace(still(len(progress)), colour=colour, brightness=brightness)

    return animate_grade


def _close_iris(progress: Tensor, parameters: Parameters) -> Motion:
    return replace(still(len(progress)), iris=2.2 - progress * (1.6 + 0.5 * parameters.amount))


def _rgb(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue])


EFFECTS = (
    Effect("move_right", ("the object moves to the right", "it slides right"), _move(0.0), follows_path=True),
    Effect("move_down", ("the object moves down", "it falls down"), _move(math.pi / 2), follows_path=True),
    Effect("move_left", ("the object moves to the left", "it slides left"), _move(math.pi), follows_path=True),
    Effect("move_up", ("the object moves up", "it rises up"), _move(-math.pi / 2), follows_path=True),
    Effect("grow", ("the object grows", "it becomes bigger"), _grow),
    Effect("shrink", ("the object shrinks", "it becomes smaller"), _shrink),
    Effect("spin_right", ("the object spins clockwise", "it turns clockwise"), _spin(1)),
    Effect("spin_left", ("the object spins counterclockwise", "it turns counterclockwise"), _spin(-1)),
    Effect("fade", ("the object fades away", "it becomes transparent"), _fade),
    Effect("dissolve", ("the object dissolves into grains", "it crumbles to dust"), _dissolve),
    Effect("melt", ("the object melts", "it melts into a puddle"), _melt),
    Effect("shake", ("the object shakes", "it trembles from side to side"), _shake, follows_path=True),
    Effect("bounce", ("the object bounces", "it jumps up and down"), _bounce, follows_path=True),
    Effect("pulse", ("the object pulses", "it beats like a heart"), _pulse),
    Effect("swing", ("the object swings", "it rocks to and fro"), _swing),
    Effect("turn_red", ("the object turns red", "it becomes red"), _recolour_object(1.0, 0.0, 0.0)),
    Effect("turn_green", ("the object turns green", "it becomes green"), _recolour_object(0.0, 0.8, 0.1)),
    Effect("turn_blue", ("the object turns blue", "it becomes blue"), _recolour_object(0.0, 0.2, 1.0)),
    Effect("pan_right", ("the camera pans to the right",), _pan(1, 0), needs_object=False),
    Effect("pan_left", ("the camera pans to the left",), _pan(-1, 0), needs_object=False),
    Effect("pan_up", ("the camera tilts up",), _pan(0, -1), needs_object=False),
    Effect("pan_down", ("the camera tilts down",), _pan(0, 1), needs_object=False),
    Effect("zoom_in", ("the camera zooms in", "everything comes nearer"), _zoom_in, needs_object=False),
    Effect("zoom_out", ("the camera zooms out", "everything gets farther away"), _zoom_out, needs_object=False),
    Effect("quake", ("the camera shakes", "an earthquake shakes the picture"), _quake, needs_object=False),
    Effect("ripple", ("the picture ripples like water",), _ripple, needs_object=False),
    Effect(
        "night",
        ("day turns into night", "night falls"),
        _grade(torch.diag(_rgb(0.12, 0.18, 0.42)), _rgb(0.0, 0.0, 0.06)),
        needs_object=False,
        is_light=True,
    ),
    Effect(
        "sunset",
        ("the light turns warm like a sunset", "a golden sunset"),
        _grade(torch.diag(_rgb(0.95, 0.5, 0.22)), _rgb(0.18, 0.03, 0.0)),
        needs_object=False,
        is_light=True,
    ),
    Effect(
        "grey",
        ("the colours drain away", "the picture turns black and white"),
        _grade(GREY_WEIGHTS.expand(3, 3), _rgb(0.0, 0.0, 0.0)),
        needs_object=False,
        is_light=True,
    ),
    Effect(
        "black",
        ("the picture fades to black",),
        _grade(torch.zeros(3, 3), _rgb(0.0, 0.0, 0.0)),
        needs_object=False,
        is_light=True,
    ),
    Effect(
        "white",
        ("the picture fades to white", "a white light swallows everything"),
        _grade(0.1 * IDENTITY_COLOUR, _rgb(0.88, 0.88, 0.88)),
        needs_object=False,
        is_light=True,
    ),
    Effect(
        "negative",
        ("the colours turn into their negative",),
        _grade(-IDENTITY_COLOUR, _rgb(1.0, 1.0, 1.0)),
        needs_object=False,
        is_light=True,
    ),
    Effect("iris", ("a black circle closes in", "an iris closes"), _close_iris, needs_object=False, is_light=True),
)


# What is taught first. These are too hard for the beginning.
LATER = {"spin_right", "spin_left", "dissolve", "melt", "shake", "bounce", "pulse", "swing", "quake", "ripple"}
EASY_EFFECTS = tuple(effect for effect in EFFECTS if effect.name not in LATER)


def pair_up(one: Effect, other: Effect) -> Effect:
    """Give two effects that happen at once as an effect."""

    def animate_both(progress: Tensor, parameters: Parameters) -> Motion:
        return combine(one.animate(progress, parameters), other.animate(progress, parameters))

    return Effect(
        f"{one.name}+{other.name}",
        tuple(f"{first}, and {second}" for first in one.captions for second in other.captions),
        animate_both,
        one.needs_object or other.needs_object,
        one.follows_path or other.follows_path,
    )


# For evaluation: something happens to an object, and something to the whole picture.
PAIRS_OF_NAMES = (
    *(("move_right", "night"), ("move_down", "sunset"), ("move_left", "grey"), ("move_up", "pan_right")),
    *(("grow", "sunset"), ("shrink", "night"), ("fade", "pan_left")),
    *(("turn_red", "zoom_in"), ("turn_green", "zoom_out"), ("turn_blue", "iris")),
)
_BY_NAME = {effect.name: effect for effect in EFFECTS}
PAIRED_EFFECTS = tuple(pair_up(_BY_NAME[one], _BY_NAME[other]) for one, other in PAIRS_OF_NAMES)


def draw_motion(generator: torch.Generator, frames: int) -> Motion:
    """Give the motion of a random effect."""
    effect = EFFECTS[int(torch.randint(0, len(EFFECTS), (), generator=generator))]
    return animate(effect, draw_parameters(generator), frames)
