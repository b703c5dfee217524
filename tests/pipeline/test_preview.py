"""The cheap look at latents."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.preview import LatentPreview, fit_preview_weights


def test_colours_are_recovered_from_latents_that_hold_them() -> None:
    """Where latents are a mixture of the clip's colours, the fit undoes it, also for latents it was not fitted to."""
    rng = np.random.default_rng(0)
    colours = torch.from_numpy(rng.uniform(0, 1, (3, 4, 6, 3)).astype(np.float32))
    mixing = torch.from_numpy(rng.normal(size=(3, 16)).astype(np.float32))
    frames = [
        Image.fromarray((colours[max(index + 3, 0) // 4] * 255).round().to(torch.uint8).numpy()) for index in range(9)
    ]

    weights = fit_preview_weights((colours @ mixing).permute(3, 0, 1, 2)[None], frames)
    fresh = torch.from_numpy(rng.uniform(0, 1, (3, 4, 6, 3)).astype(np.float32))
    pictures = LatentPreview((fresh @ mixing).permute(3, 0, 1, 2)[None], weights).frames(scale=1)

    assert len(pictures) == 3
    seen = np.stack([np.asarray(picture) for picture in pictures]) / 255
    assert np.abs(seen - fresh.numpy()).max() < 0.1


@pytest.mark.parametrize("frames", [1, 5])
def test_a_clip_of_one_colour_is_no_trouble(frames: int) -> None:
    """The fit stays defined where there is nothing to tell apart."""
    latents = torch.zeros(1, 16, (frames - 1) // 4 + 1, 2, 2)

    weights = fit_preview_weights(latents, [Image.new("RGB", (16, 16), "white")] * frames)

    assert torch.isfinite(weights).all()
