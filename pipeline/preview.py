"""A cheap look at latents while they are being made: colours without the VAE's decoder, for any VAE.

Every run encodes its reference clip, so latents and the pixels they stand for are at hand. A least-squares fit from the
one to the other, at the latents' own size, colours the run's own latents well enough to judge them by.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class LatentPreview:
    """Latents (1, z, T, h, w) and how they become colours: weights (z + 1, 3), the last row a constant."""

    latents: Tensor
    weights: Tensor

    def frames(self, scale: int = 2) -> list[Image.Image]:
        """Give one small picture for each latent frame, `scale` times the latents' height and width."""
        values = self.latents[0].float().cpu().permute(1, 2, 3, 0)
        colours = (values @ self.weights[:-1] + self.weights[-1]).clamp(0, 1)
        levels = (colours * 255).round().to(torch.uint8).numpy()
        _, height, width, _ = levels.shape
        size = (width * scale, height * scale)
        return [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in levels]


def fit_preview_weights(latents: Tensor, frames: Sequence[Image.Image]) -> Tensor:
    """Fit colours to latents: (1, z, T, h, w) and the clip's F = stride * (T - 1) + 1 frames -> weights (z + 1, 3)."""
    _, _, latent_frames, height, width = latents.shape
    stride = (len(frames) - 1) // max(latent_frames - 1, 1)
    chosen = [frames[stride * index] for index in range(latent_frames)]
    small = [frame.convert("RGB").resize((width, height), Image.Resampling.BOX) for frame in chosen]
    colours = torch.from_numpy(np.stack([np.asarray(picture, dtype=np.float32) / 255.0 for picture in small]))

    inputs = latents[0].float().cpu().permute(1, 2, 3, 0).reshape(-1, latents.shape[1])
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    # A little ridge keeps the fit defined for a clip of one colour.
    gram = inputs.T @ inputs + 1e-3 * len(inputs) * torch.eye(inputs.shape[1])
    return torch.linalg.solve(gram, inputs.T @ colours.reshape(-1, 3))
