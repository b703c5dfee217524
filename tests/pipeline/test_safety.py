"""What the safety checker declines, and what it must let pass."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from pipeline import safety
from pipeline.errors import UnsafeContentError
from tests.pipeline.clips import packaged


def blobs_that_fool_the_classifier() -> Image.Image:
    """Soft, skin-coloured ellipses: a harmless picture that the real classifier scores at 0.93."""
    rng = np.random.default_rng(273)
    picture = Image.new("RGB", (256, 256), (240, 225, 215))
    draw = ImageDraw.Draw(picture)
    for _ in range(8):
        x, y = rng.integers(0, 256, 2)
        a, b = rng.integers(20, 140, 2)
        shade = int(rng.integers(-20, 20))
        draw.ellipse((x - a, y - b, x + a, y + b), fill=(225 + shade, 170 + shade, 140 + shade))
    return picture.filter(ImageFilter.GaussianBlur(5))


DECLINED = ["a nude figure", "PORNOGRAPHIC scene", "ｎｕｄｅ in full width", "she is naked", "a man is beheaded"]
PASSED = [
    "The horse inflates and floats away.",
    "a comet seen with the naked eye",
    "a naked mole rat digs",
    "Middlesex, Essex and a peacock",
    "grapes and drapes",
    "",
]


@pytest.mark.parametrize("text", DECLINED)
def test_explicit_words_are_declined_at_their_field(text: str) -> None:
    """In any case and width, as whole words; the sentence quotes what was found."""
    with pytest.raises(UnsafeContentError, match="The safety checker declines") as refusal:
        safety.check_texts({"prompt": "a horse", "video_description": text})

    assert refusal.value.field == "video_description"


@pytest.mark.parametrize("text", PASSED)
def test_ordinary_words_pass(text: str) -> None:
    """Words that merely contain or resemble declined ones are let through."""
    assert safety.check_texts({"prompt": text}) is None


def test_one_frame_is_enough_to_decline_a_clip() -> None:
    """The classifier judges frames spread over the clip, and one above the threshold declines it."""
    plain = Image.new("RGB", (64, 64), "teal")
    clip = [plain] * 16 + [blobs_that_fool_the_classifier()]

    with pytest.raises(UnsafeContentError, match="The reference video looks like nudity") as refusal:
        safety.check_frames("reference_video", clip, "The reference video")

    assert refusal.value.field == "reference_video"


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"])
def test_ordinary_photographs_pass(name: str) -> None:
    """People, things, animals and machines are no reason to decline."""
    with Image.open(packaged("skimage", "data", name)) as photo:
        assert safety.check_frames("image", [photo], "The start image") is None
