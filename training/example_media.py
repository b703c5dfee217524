"""Makes the media of the shipped examples: `python -m training.example_media` writes assets/examples/.

References are drawn scenes under one of nano's effects. Start images are drawings, or photographs out of scikit-image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor

from training.effects import EFFECTS, Parameters, animate
from training.scenes import CANVAS_MARGIN, Scene, render

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "examples"
TALL, WIDE = (512, 288), (288, 512)  # height, width
FRAMES, FPS = 49, 16
SMOOTHING = 4  # everything is drawn this much larger, then shrunk: Pillow's shapes have hard edges
PARAMETERS = Parameters(amount=0.9, turn=0.0, easing=0.3, cycles=2.0)

Colour = tuple[int, int, int]
Paint = Callable[[ImageDraw.ImageDraw, int, int], None]  # draws onto (width, height) pixels


@dataclass(frozen=True)
class Example:
    """What an example is made of."""

    name: str
    effect: str
    size: tuple[int, int]
    background: Image.Image
    sprite: Image.Image | None
    position: tuple[float, float]
    radius: float
    image: Image.Image


# ---- drawing ----


def draw(height: int, width: int, paint: Paint, mode: str = "RGB") -> Image.Image:
    """Draw a picture with smooth edges."""
    canvas = Image.new(mode, (width * SMOOTHING, height * SMOOTHING))
    paint(ImageDraw.Draw(canvas), width * SMOOTHING, height * SMOOTHING)
    return canvas.resize((width, height), Image.Resampling.LANCZOS)


def blend(top: Colour, bottom: Colour, height: int, width: int) -> Image.Image:
    """Paint one colour running into another, from top to bottom."""
    share = np.linspace(0, 1, height)[:, None, None]
    pixels = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(np.broadcast_to(pixels, (height, width, 3)).astype(np.uint8))


def paint_hills(sky: tuple[Colour, Colour], far: Colour, near: Colour, height: int, width: int) -> Image.Image:
    """Paint two ridges of hills under a sky."""
    picture = blend(*sky, height, width)
    for colour, level, swing, waves in ((far, 0.62, 0.07, 1.6), (near, 0.78, 0.05, 1.0)):
        ridge = level + swing * np.sin(np.linspace(0.4, waves * 2 * np.pi, width))
        mask = (np.arange(height)[:, None] > ridge[None] * height) * np.uint8(255)
        picture.paste(colour, mask=Image.fromarray(mask).filter(ImageFilter.GaussianBlur(0.8)))
    return picture


def paint_star(pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Draw a five-pointed star."""
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    reach = np.where(np.arange(10) % 2 == 0, 0.48, 0.2)
    corners = np.stack([0.5 + reach * np.cos(angle), 0.52 + reach * np.sin(angle)], axis=1) * (width, height)
    pen.polygon([tuple(corner) for corner in corners], fill=(255, 176, 46, 255))


def paint_ball(pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Draw a red ball with a light on it."""
    pen.ellipse((0.04 * width, 0.04 * height, 0.96 * width, 0.96 * height), fill=(218, 60, 56, 255))
    pen.ellipse((0.22 * width, 0.18 * height, 0.46 * width, 0.42 * height), fill=(244, 142, 128, 255))


def paint_mushroom(pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Draw a red mushroom with white dots."""
    pen.rounded_rectangle(
        (0.39 * width, 0.45 * height, 0.61 * width, 0.97 * height), 0.08 * width, fill=(246, 236, 214, 255)
    )
    pen.chord((0.06 * width, 0.06 * height, 0.94 * width, 1.0 * height), 180, 360, fill=(206, 48, 48, 255))
    for x, y, radius in ((0.3, 0.36, 0.075), (0.52, 0.2, 0.085), (0.73, 0.38, 0.065)):
        box = ((x - radius) * width, (y - radius) * height, (x + radius) * width, (y + radius) * height)
        pen.ellipse(box, fill=(255, 248, 240, 255))


def paint_boat(pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Draw a sailing boat."""
    left = ((0.47, 0.04), (0.47, 0.7), (0.08, 0.7))
    right = ((0.53, 0.14), (0.53, 0.7), (0.9, 0.7))
    hull = ((0.04, 0.76), (0.96, 0.76), (0.8, 0.96), (0.2, 0.96))
    pen.rectangle((0.48 * width, 0.02 * height, 0.52 * width, 0.78 * height), fill=(92, 62, 44, 255))
    for corners, fill in ((left, (255, 252, 244, 255)), (right, (240, 120, 66, 255)), (hull, (150, 44, 48, 255))):
        pen.polygon([(x * width, y * height) for x, y in corners], fill=fill)


def paint_village(height: int, width: int) -> Image.Image:
    """Paint houses and a sun before hills."""
    hills = paint_hills(((120, 190, 236), (226, 242, 250)), (126, 178, 120), (92, 150, 84), height, width)

    def paint(pen: ImageDraw.ImageDraw, wide: int, high: int) -> None:
        pen.ellipse((0.7 * wide, 0.14 * high, 0.7 * wide + 0.2 * high, 0.34 * high), fill=(255, 222, 110, 255))
        for left, colour in ((0.2, (238, 226, 204, 255)), (0.36, (222, 168, 132, 255)), (0.53, (244, 236, 222, 255))):
            x, side = left * wide, 0.12 * wide
            pen.rectangle((x, 0.6 * high, x + side, 0.8 * high), fill=colour)
            pen.polygon(
                [(x - 0.02 * wide, 0.6 * high), (x + side / 2, 0.44 * high), (x + side + 0.02 * wide, 0.6 * high)],
                fill=(168, 76, 58, 255),
            )
            pen.rectangle((x + 0.38 * side, 0.68 * high, x + 0.62 * side, 0.8 * high), fill=(92, 66, 52, 255))

    houses = draw(height, width, paint, "RGBA")
    hills.paste(houses, mask=houses)
    return hills


def place(background: Image.Image, sprite: Image.Image, position: tuple[float, float], radius: float) -> Image.Image:
    """Put an object before a background, in the coordinates of `training.scenes`."""
    picture, half = background.copy(), min(background.size) / 2
    size = int(2 * radius * half)
    small = sprite.resize((size, size), Image.Resampling.LANCZOS)
    x, y = (
        int(length / 2 + offset * half - size / 2) for length, offset in zip(background.size, position, strict=True)
    )
    picture.paste(small, (x, y), small)
    return picture


# ---- examples ----


def list_examples() -> tuple[Example, ...]:
    """Give the examples in the order people see them."""
    return _grow(), _pan(), _night(), _sunset(), _iris(), _negative()


def _pan() -> Example:
    boat = draw(256, 256, paint_boat, "RGBA")
    sea = paint_hills(((240, 190, 150), (252, 226, 190)), (150, 120, 150), (60, 90, 140), *WIDE)
    scene = place(sea, boat, (0.35, 0.15), 0.6)
    return Example("pan", "pan_right", WIDE, paint_village(*_canvas(WIDE)), None, (0, 0), 0.4, scene)


def _grow() -> Example:
    star, mushroom = draw(256, 256, paint_star, "RGBA"), draw(256, 256, paint_mushroom, "RGBA")
    water = blend((24, 60, 92), (60, 140, 150), *_canvas(WIDE))
    meadow = paint_hills(((170, 214, 240), (236, 246, 250)), (132, 186, 122), (96, 158, 84), *WIDE)
    return Example("grow", "grow", WIDE, water, star, (0.1, 0), 0.4, place(meadow, mushroom, (-0.2, 0.1), 0.42))


def _sunset() -> Example:
    ball, boat = draw(256, 256, paint_ball, "RGBA"), draw(256, 256, paint_boat, "RGBA")
    hills = paint_hills(((188, 222, 240), (240, 248, 250)), (150, 196, 140), (112, 168, 98), *_canvas(WIDE))
    sea = paint_hills(((170, 206, 236), (232, 242, 248)), (70, 140, 170), (44, 108, 146), *WIDE)
    return Example("sunset", "sunset", WIDE, hills, ball, (-0.62, 0.25), 0.34, place(sea, boat, (-0.2, 0.1), 0.48))


def _negative() -> Example:
    star, mushroom = draw(256, 256, paint_star, "RGBA"), draw(256, 256, paint_mushroom, "RGBA")
    water = blend((24, 60, 92), (60, 140, 150), *_canvas(TALL))
    meadow = paint_hills(((170, 214, 240), (236, 246, 250)), (132, 186, 122), (96, 158, 84), *TALL)
    return Example("negative", "negative", TALL, water, star, (0, 0), 0.42, place(meadow, mushroom, (0, 0.5), 0.42))


def _night() -> Example:
    cat = _photograph(skimage.data.chelsea(), WIDE)
    return Example("night", "night", WIDE, paint_village(*_canvas(WIDE)), None, (0, 0), 0.4, cat)


def _iris() -> Example:
    dawn = paint_hills(((246, 196, 160), (252, 232, 206)), (190, 120, 110), (140, 84, 96), *_canvas(WIDE))
    star = place(dawn, draw(256, 256, paint_star, "RGBA"), (0, -0.1), 0.3)
    return Example("iris", "iris", WIDE, star, None, (0, 0), 0.4, _photograph(skimage.data.coffee(), WIDE))


def _canvas(size: tuple[int, int]) -> tuple[int, int]:
    return int(size[0] * CANVAS_MARGIN), int(size[1] * CANVAS_MARGIN)


def _photograph(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(Image.fromarray(pixels), (size[1], size[0]), Image.Resampling.LANCZOS)


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def render_reference(example: Example) -> np.ndarray:
    """Give an example's reference clip, (frames, height, width, 3), uint8."""
    effect = next(effect for effect in EFFECTS if effect.name == example.effect)
    sprite = _to_tensor(example.sprite) if example.sprite else None
    grains = torch.zeros(1, 256, 256)
    scene = Scene(_to_tensor(example.background), sprite, grains, example.position, example.radius)
    clip = render(scene, animate(effect, PARAMETERS, FRAMES), *example.size)
    return ((clip + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def write_clip(frames: np.ndarray, path: Path) -> None:
    """Write frames as a small H.264 file."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "20", "preset": "slow"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())


def write_poster(frames: np.ndarray, path: Path) -> None:
    """Show an effect at a glance: three frames side by side."""
    side = 160
    strip = Image.new("RGB", (3 * side, side))
    for column, index in enumerate((0, len(frames) * 2 // 3, len(frames) - 1)):
        strip.paste(ImageOps.fit(Image.fromarray(frames[index]), (side, side)), (column * side, 0))
    strip.save(path, quality=86)


def main() -> None:
    """Write reference, start image and poster of every example."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for example in list_examples():
        frames = render_reference(example)
        write_clip(frames, FOLDER / f"{example.name}-reference.mp4")
        write_poster(frames, FOLDER / f"{example.name}-poster.jpg")
        example.image.save(FOLDER / f"{example.name}-image.jpg", quality=90)


if __name__ == "__main__":
    main()
