"""The denoiser: how it starts, and that it learns."""

import pytest
import torch
from torch import Generator

from training.autoencoder import LATENT_CHANNELS, build_autoencoder
from training.components import TRACKING, build_tokenizer, build_transformer
from training.denoiser import (
    LENGTHS,
    LESSONS,
    PLAIN,
    TOKENS,
    Lesson,
    Nano,
    Stream,
    draw_shape,
    encode_pictures,
    encode_texts,
    flow_loss,
    predict,
    with_condition,
)
from training.effects import EFFECTS, describe, description_weights, still
from training.reader import Reader
from training.samples import FIRST_BLOCKS, FRESH_SHARE, SIZES, Codec, Pool, Shape, draw_block
from training.sittings import Optimizers, Worker


def build_codec() -> Codec:
    ones = torch.ones(build_autoencoder().config.z_dim, 1, 1, 1)
    return Codec(build_autoencoder().requires_grad_(False), 0 * ones, ones)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: f"until {lesson.until}")
def test_training_steps_lower_the_loss(lesson: Lesson) -> None:
    """Steps on one pair bring both losses down, in every lesson."""
    torch.manual_seed(0)
    nano, tokenizer = Nano(), build_tokenizer()
    reader = Reader(nano.transformer)
    optimizers = Optimizers(torch.nn.ModuleList([nano, reader]), lr=2e-3, worker=Worker(0, 1))
    generator = Generator().manual_seed(1)
    pair = draw_block(generator, Shape(5, 32, 48), build_codec(), lesson.diet, scenes=2).draw_pair(generator)
    losses = []

    for _ in range(8):
        loss, told = flow_loss(nano, reader, tokenizer, Generator().manual_seed(2), [pair], lesson)
        (loss + told).backward()
        optimizers.step(lr_scale=1.0)
        losses.append((loss.item(), told.item()))

    assert losses[-1][0] < losses[0][0]
    assert losses[-1][1] < losses[0][1]


# the norm's weights stay in float32: what torch says of it is that this is no faster than before
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_bfloat16_teaches_the_same() -> None:
    """As training runs where the processor is quick at it: the same losses and nearly the same gradients."""
    torch.manual_seed(0)
    nano, tokenizer = Nano(), build_tokenizer()
    reader = Reader(nano.transformer)
    generator = Generator().manual_seed(1)
    pair = draw_block(generator, Shape(5, 32, 48), build_codec(), LESSONS[1].diet, scenes=2).draw_pair(generator)
    losses, gradients = [], []

    for quick in (False, True):
        nano.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=quick):
            loss, told = flow_loss(nano, reader, tokenizer, Generator().manual_seed(2), [pair], LESSONS[1])
        (loss + told).backward()
        losses.append(torch.stack([loss, told]))
        gradients.append(torch.cat([w.grad.flatten() for w in nano.transformer.parameters() if w.grad is not None]))

    torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0)
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


def test_without_a_reference_the_experts_learn_nothing() -> None:
    """The lesson of captions trains the base alone."""
    nano, tokenizer = Nano(), build_tokenizer()
    generator = Generator().manual_seed(1)
    pair = draw_block(generator, Shape(5, 32, 48), build_codec(), LESSONS[0].diet, scenes=2).draw_pair(generator)

    loss, told = flow_loss(nano, Reader(nano.transformer), tokenizer, Generator(), [pair], LESSONS[0])
    (loss + told).backward()

    blocks = dict(nano.transformer.blocks.named_parameters())
    assert all(weight.grad is None for name, weight in blocks.items() if "_mot_ref" in name)
    assert any(weight.grad is not None for weight in blocks.values())


def test_a_motion_is_described_by_what_it_changes() -> None:
    """Nothing for a still scene; and all fields weigh the same in the mean over the effects."""
    assert describe(still(17)).abs().max() == 0
    assert description_weights().isfinite().all()
    assert len(EFFECTS) > 16


def test_experts_start_as_copies_of_the_base() -> None:
    """Every reference twin behind the tracking head holds the weights of its base module."""
    weights = build_transformer().state_dict()

    twins = [name for name in weights if "_mot_ref" in name and name.startswith("blocks.")]
    twins = [name for name in twins if int(name.split(".")[1]) > TRACKING]
    assert twins
    assert all(torch.equal(weights[name], weights[name.replace("_mot_ref", "")]) for name in twins)


def test_a_step_has_as_many_clips_as_fit() -> None:
    """Whatever their length and size, and never none."""
    generator = Generator().manual_seed(1)

    drawn = {draw_shape(generator, LESSONS[-1]) for _ in range(200)}

    assert len({shape.frames for shape, _ in drawn}) == len(LENGTHS)
    assert len({(shape.height, shape.width) for shape, _ in drawn}) == 2 * len(SIZES)
    assert all(pairs == 1 or 2 * pairs * shape.tokens <= TOKENS for shape, pairs in drawn)
    assert min(pairs for _, pairs in drawn) >= 1


def test_clips_serve_several_steps() -> None:
    """The first ones are all new; after that a new block comes by chance, the oftener the more pairs are drawn."""
    pool = Pool(Generator().manual_seed(1), build_codec(), PLAIN)
    shape = Shape(5, 32, 48)

    for _ in range(FIRST_BLOCKS):
        pool.draw(shape, 2, chance=1.0)
    first = list(pool.blocks[shape])
    kept = pool.draw(shape, 2, chance=2.1 * FRESH_SHARE)
    assert pool.blocks[shape] == first

    pool.draw(shape, 2, chance=1.9 * FRESH_SHARE)

    assert len(kept) == 2
    assert len(pool.blocks[shape]) == len(first) + 1


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
        target = Stream(with_condition(noisy, conditions), states, counts, image)
        reference = Stream(with_condition(noise, conditions), states, counts, image)
        velocity, _ = predict(nano, torch.tensor([770.0]), target, reference)

    error = (noisy - 0.77 * velocity - latents).square().mean(dim=(0, 1, 3, 4))
    assert (error < 0.7).all()  # of a spread of 1
