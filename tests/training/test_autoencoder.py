"""The autoencoder's whole-clip forms, and its first steps."""

import pytest
import torch
from torch import Generator

from training.autoencoder import (
    build_autoencoder,
    decode_clips,
    draw_crops,
    encode_clips,
    reconstruction_loss,
)
from training.sittings import Optimizers, Worker


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_a_whole_clip_gives_the_numbers_of_the_stock_chunks(frames: int) -> None:
    """What is trained is what `AutoencoderKLWan.encode` and `decode` run later."""
    torch.manual_seed(0)
    vae = build_autoencoder()
    for weight in vae.parameters():
        weight.data += 0.02 * torch.randn_like(weight)  # a new one is blind to time, which would hide mistakes
    clips = torch.rand(1, 3, frames, 32, 48) * 2 - 1

    with torch.no_grad():
        latents = encode_clips(vae, clips)
        decoded = decode_clips(vae, latents).clamp(-1, 1)
        stock_latents = vae.encode(clips).latent_dist.mode()
        stock_decoded = vae.decode(stock_latents).sample

    assert torch.allclose(latents, stock_latents, atol=1e-5)
    assert torch.allclose(decoded, stock_decoded, atol=1e-4)


def test_training_steps_lower_the_loss() -> None:
    """Ten steps on one picture bring the loss down clearly."""
    torch.manual_seed(0)
    vae = build_autoencoder()
    optimizers = Optimizers(vae, lr=4e-3, worker=Worker(0, 1))
    clips = draw_crops(Generator().manual_seed(1), 2, 1, 32, 48)
    losses = []

    for _ in range(10):
        loss = reconstruction_loss(vae, clips)
        loss.backward()
        optimizers.step(lr_scale=1.0)
        losses.append(loss.item())

    assert losses[-1] < 0.8 * losses[0]
