"""The denoiser: how it starts, and that it learns."""

import pytest
import torch
from torch import Generator

from training.autoencoder import LATENT_CHANNELS, build_autoencoder
from training.components import build_tokenizer, build_transformer
from training.denoiser import Nano, Streams, encode_pictures, encode_texts, flow_loss, predict, with_condition
from training.samples import Codec, Shape, draw_pair
from training.sittings import Optimizers, Worker


def build_codec() -> Codec:
    ones = torch.ones(build_autoencoder().config.z_dim, 1, 1, 1)
    return Codec(build_autoencoder().requires_grad_(False), 0 * ones, ones)


# under autocast the states are bfloat16 and the norms' weights float32; the fused norm it misses is a tenth of the time
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_training_steps_lower_the_loss() -> None:
    """Steps on one pair, from the reference, bring the loss down; all parts take part."""
    torch.manual_seed(0)
    nano, tokenizer = Nano(), build_tokenizer()
    optimizers = Optimizers(nano, lr=2e-3)
    pair = draw_pair(Generator().manual_seed(1), Shape(5, 32, 48), build_codec())
    losses = []

    for _ in range(8):
        loss = flow_loss(nano, tokenizer, Generator().manual_seed(2), [pair])
        loss.backward()
        optimizers.step(Worker(0, 1), lr_scale=1.0)
        losses.append(loss.item())

    assert losses[-1] < losses[0]


def test_experts_start_as_copies_of_the_base() -> None:
    """Every reference twin holds the weights of its base module."""
    weights = build_transformer().state_dict()

    twins = [name for name in weights if "_mot_ref" in name]
    assert twins
    assert all(torch.equal(weights[name], weights[name.replace("_mot_ref", "")]) for name in twins)


def test_texts_of_different_lengths_always_stand_for_512_rows() -> None:
    """The padding rows that are folded away still count, whatever the other texts in the batch are."""
    nano = Nano()

    states, counts = encode_texts(nano, build_tokenizer(), ["", "the camera zooms in on a red star"])

    assert counts.sum(dim=1).tolist() == [512, 512]
    assert states[0, 1:].abs().max() == 0


def test_a_new_model_holds_the_start_image_still() -> None:
    """Before any training, the predicted video is nearly the start image in every frame."""
    torch.manual_seed(0)
    nano, tokenizer = Nano(), build_tokenizer()
    picture = torch.randn(1, LATENT_CHANNELS, 1, 6, 10)
    conditions = torch.cat([picture, 0.5 * torch.ones(1, LATENT_CHANNELS, 2, 6, 10)], dim=2)
    latents, noise = picture.expand(-1, -1, 3, -1, -1), torch.randn(1, LATENT_CHANNELS, 3, 6, 10)
    noisy = torch.lerp(latents, noise, 0.77)

    with torch.no_grad():
        states, counts = encode_texts(nano, tokenizer, [""])
        image = encode_pictures(nano, torch.rand(1, 3, 80, 144))
        target = Streams(with_condition(noisy, conditions), states, counts, image)
        reference = Streams(with_condition(noise, conditions), states, counts, image)
        velocity = predict(nano, torch.tensor([770.0]), target, reference)

    error = (noisy - 0.77 * velocity - latents).square().mean(dim=(0, 1, 3, 4))
    assert (error < 0.7).all()  # of a spread of 1
