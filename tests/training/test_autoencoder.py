"""The autoencoder's whole-clip forms, and its first steps."""

import pytest
import torch
from torch import Generator

from training.autoencoder import (
    LATENT_CHANNELS,
    autoencoder_loss,
    build_autoencoder,
    compare_with_sources,
    decode_clips,
    draw_crops,
    encode_clips,
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
    clips, sources = draw_crops(Generator().manual_seed(1), 2, 1, 32, 48)
    losses = []

    for _ in range(10):
        loss = autoencoder_loss(vae, clips, sources)
        loss.backward()
        optimizers.step(lr_scale=1.0)
        losses.append(loss.item())

    assert losses[-1] < 0.8 * losses[0]


def test_following_sources_draws_no_channel_towards_nothing() -> None:
    """The loss asks what latents tell, and not how large they are: or channels die out, as most of nano's once did."""
    _, sources = draw_crops(Generator().manual_seed(6), 2, 9, 64, 64)
    latents = torch.randn(2, LATENT_CHANNELS, 3, 8, 8, requires_grad=True)

    compare_with_sources(latents, sources).backward()

    assert latents.grad is not None
    shrinking = (latents * latents.grad).sum(dim=(0, 2, 3, 4))
    assert (shrinking.abs() < 1e-3 * latents.grad.norm() * latents.norm()).all()


def test_crops_know_where_their_latents_came_from() -> None:
    """Within the crop, x before y: where something moves, the first frame there looks as the crop does later."""
    clips, sources = draw_crops(Generator().manual_seed(6), 12, 17, 64, 64)
    errors = {"source": 0.0, "place": 0.0}
    small = torch.nn.functional.avg_pool2d(clips[:, :, ::4].transpose(1, 2).flatten(0, 1), 8)
    small = small.unflatten(0, (12, 5)).transpose(1, 2)

    for clip, places in zip(small, sources, strict=True):
        known = places.isfinite().all(dim=-1)
        for time in range(1, 5):
            grid = places[time].nan_to_num(0)[None]
            moved = torch.nn.functional.grid_sample(clip[None, :, 0], grid, align_corners=False)[0]
            errors["source"] += (moved - clip[:, time])[:, known[time]].abs().sum().item()
            errors["place"] += (clip[:, 0] - clip[:, time])[:, known[time]].abs().sum().item()

    assert sources.isfinite().any()
    assert errors["source"] < 0.5 * errors["place"]
