"""The decoder's last lesson: to show what the denoiser makes."""

import pytest
import torch
from torch import Generator

from training.autoencoder import build_autoencoder, freeze_encoder
from training.components import build_tokenizer
from training.decoder import Made, decoder_loss, make_clips
from training.denoiser import Nano
from training.samples import Codec, Shape
from training.sittings import Optimizers, Worker

# the norm's weights stay in float32: what torch says of it is that this is no faster than before
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


def build_codec() -> Codec:
    torch.manual_seed(0)
    vae = build_autoencoder()
    freeze_encoder(vae)
    z = vae.config.z_dim
    return Codec(vae, torch.full((z, 1, 1, 1), 0.1), torch.full((z, 1, 1, 1), 2.0))


def make(codec: Codec) -> Made:
    torch.manual_seed(0)
    nano = Nano().eval().requires_grad_(False)
    return make_clips(nano, codec, build_tokenizer(), Generator().manual_seed(1), Shape(5, 32, 48))


def test_both_kinds_of_latents_are_the_decoders() -> None:
    """Not normalised; a denoiser before its training makes a still clip, from the first frame's latents."""
    codec = build_codec()

    made = make(codec)

    first = codec.encode(made.clips[:, :, :1]) * codec.std + codec.mean
    torch.testing.assert_close(made.true[:, :, :1], first, atol=0.05, rtol=0.05)
    assert made.made.shape == made.true.shape
    closeness = torch.cosine_similarity((made.made - codec.mean).flatten(), (made.true - codec.mean).flatten(), dim=0)
    assert closeness > 0.5


def test_training_steps_lower_the_loss_and_leave_the_encoder() -> None:
    """Steps on one pair: the denoiser relies on the latents."""
    codec = build_codec()
    made = make(codec)
    optimizers = Optimizers(codec.vae, lr=4e-3, worker=Worker(0, 1))
    encoder = {name: weight.clone() for name, weight in codec.vae.encoder.state_dict().items()}
    losses = []

    for _ in range(8):
        loss = decoder_loss(codec, made, which=0)
        loss.backward()
        optimizers.step(lr_scale=0.5)
        losses.append(loss.item())

    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(weight, encoder[name]) for name, weight in codec.vae.encoder.state_dict().items())
