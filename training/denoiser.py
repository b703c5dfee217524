"""Stage 2: the transformer with its text and image encoder learn to do what a reference clip does.

Captions and the reference are learnt together: a caption, given in some of the samples, teaches to draw an effect;
where it is missing, only the reference tells what is to happen.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Generator, Tensor, nn
from transformers import T5TokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pipeline.conditioning import DEFAULT_NEGATIVE_PROMPT, TEXT_LENGTH
from training.autoencoder import build_autoencoder
from training.components import (
    IMAGE_SIZE,
    build_image_encoder,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
)
from training.samples import Codec, Pair, Pool, Shape, landscape, portrait
from training.sittings import Optimizers, Worker, save_checkpoint, sitting, write_log

TIMESTEP_SHIFT = 5.0  # of the training noise levels towards noise, where motion is decided
MUON_LR = 8e-3
EARLY_SAMPLES = 45_000  # so long captions help to learn what an effect looks like
# of no text, the caption, the default negative prompt, an unrelated sentence; early and later
EARLY_TEXT_SHARES = (0.3, 0.4, 0.15, 0.15)
TEXT_SHARES = (0.55, 0.12, 0.18, 0.15)
# Under the negative prompt the reference is somebody else's this often: guidance then pushes towards the reference.
# With guidance w it is as strong as w * share + 1 - share with the reference dropped: 5 is as 2.2.
STRANGE_REFERENCE_SHARE = 0.3
AVERAGING = 0.995  # share of the averaged weights that a step keeps
REPORT_S = 60.0


# frames of a clip, how often early and later, and how many pairs of such clips a step and worker
LENGTHS = (17, 25, 33, 49)
EARLY_LENGTH_SHARES = (0.9, 0.0, 0.0, 0.1)
LENGTH_SHARES = (0.75, 0.06, 0.05, 0.14)
PAIRS = {17: 4, 25: 3, 33: 2, 49: 2}


class Nano(nn.Module):
    """All that is trained in these stages."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder = build_text_encoder()
        self.image_encoder = build_image_encoder()


@dataclass(frozen=True)
class Streams:
    """Inputs of one stream of the transformer: latents with mask and condition, encoded text and image."""

    latents: Tensor
    text: Tensor
    row_counts: Tensor
    image: Tensor


@cache
def unrelated_texts() -> tuple[str, ...]:
    """Give sentences that say nothing about the video; people write such, and they must do no harm."""
    lines = (line.strip() for text in topics.values() for line in text.splitlines())
    return tuple(line for line in lines if line.isascii() and len(line) > 30)


def draw_text(generator: Generator, caption: str, shares: Sequence[float]) -> str:
    """Draw the text that goes with a clip: none, its caption, the default negative prompt, or something unrelated."""
    texts = unrelated_texts()
    choices = ("", caption, DEFAULT_NEGATIVE_PROMPT, texts[int(torch.randint(0, len(texts), (), generator=generator))])
    return choices[int(torch.multinomial(torch.tensor(shares), 1, generator=generator))]


def draw_texts(generator: Generator, caption: str, shares: Sequence[float]) -> tuple[str, str]:
    """Draw the texts of target and reference: the negative prompt is given to both, as guidance does."""
    target, reference = (draw_text(generator, caption, shares) for _ in range(2))
    if target == DEFAULT_NEGATIVE_PROMPT:
        return target, target
    return target, "" if reference == DEFAULT_NEGATIVE_PROMPT else reference


def draw_references(generator: Generator, texts: Sequence[str]) -> Tensor:
    """Give the index of each clip's reference: the clip beside it in its pair, now and then somebody else's."""
    beside = torch.arange(len(texts)).view(-1, 2).flip(1).flatten()
    negative = torch.tensor([text == DEFAULT_NEGATIVE_PROMPT for text in texts])
    strange = negative & (torch.rand(len(texts), generator=generator) < STRANGE_REFERENCE_SHARE)
    return torch.where(strange, beside.roll(2), beside)


def encode_texts(nano: Nano, tokenizer: T5TokenizerFast, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Give states (B, n + 1, text_dim) and row counts (B, n + 1); as `fold_padding`, for texts of different lengths."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    mask = tokens.attention_mask.float()
    states = nano.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state * mask[:, :, None]
    counts = torch.cat([mask, TEXT_LENGTH - mask.sum(dim=1, keepdim=True)], dim=1)
    return F.pad(states, (0, 0, 0, 1)), counts


def encode_pictures(nano: Nano, pictures: Tensor) -> Tensor:
    """Give the image states of pictures (B, 3, height, width), -1 to 1, prepared as the image processor does."""
    short = min(pictures.shape[2:])
    top, left = ((size - short) // 2 for size in pictures.shape[2:])
    square = pictures[:, :, top : top + short, left : left + short]
    square = F.interpolate(square, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True).clamp(-1, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return nano.image_encoder((square / 2 + 0.5 - mean) / std, output_hidden_states=True).hidden_states[-2]


def with_condition(latents: Tensor, conditions: Tensor) -> Tensor:
    """Stack latents, mask and condition latents along the channels."""
    mask = torch.zeros_like(latents[:, :4])
    mask[:, :, 0] = 1
    return torch.cat([latents, mask, conditions], dim=1)


def predict(nano: Nano, timestep: Tensor, target: Streams, reference: Streams) -> Tensor:
    """Give the velocity (B, z, T, h, w)."""
    request = nano.transformer.prepare(
        timesteps=timestep,
        encoder_hidden_states=target.text,
        encoder_hidden_states_image=target.image,
        reference_hidden_states=reference.latents,
        reference_encoder_hidden_states=reference.text,
        reference_encoder_hidden_states_image=reference.image,
        text_row_counts=target.row_counts,
        reference_text_row_counts=reference.row_counts,
    )
    return nano.transformer(target.latents, request.times, request)


def flow_loss(
    nano: Nano,
    tokenizer: T5TokenizerFast,
    generator: Generator,
    pairs: list[Pair],
    text_shares: Sequence[float] = TEXT_SHARES,
) -> Tensor:
    """Give the mean square error of the velocity over pairs, in which each clip is once the target.

    In float32: without matrix units for bfloat16, CPUs multiply it at half the speed.
    """
    latents = torch.cat([pair.latents for pair in pairs]).float()
    conditions = torch.cat([pair.conditions for pair in pairs]).float()
    pictures = torch.cat([pair.pictures for pair in pairs])
    texts, reference_texts = zip(
        *(draw_texts(generator, pair.caption, text_shares) for pair in pairs for _ in range(2)), strict=True
    )
    even = torch.rand(len(latents), generator=generator)
    sigma = TIMESTEP_SHIFT * even / (1 + (TIMESTEP_SHIFT - 1) * even)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1))
    others = draw_references(generator, texts)
    images = encode_pictures(nano, pictures)
    states, counts = (rows.chunk(2) for rows in encode_texts(nano, tokenizer, [*texts, *reference_texts]))
    target = Streams(with_condition(noisy, conditions), states[0], counts[0], images)
    clean = with_condition(latents, conditions)
    reference = Streams(clean[others], states[1], counts[1], images[others])
    velocity = predict(nano, sigma * 1000, target, reference)
    return F.mse_loss(velocity, noise - latents)


def load_codec(runs: Path) -> Codec:
    """Load the autoencoder and its latents' statistics."""
    vae: AutoencoderKLWan = build_autoencoder().eval().requires_grad_(False)
    vae.load_state_dict(torch.load(runs / "autoencoder.pt")["vae"])
    statistics = torch.load(runs / "latents.pt")
    return Codec(vae, statistics["mean"], statistics["std"])


def load_nano(runs: Path, averaged: bool = False) -> tuple[Nano, dict[str, Any] | None]:
    """Give the model to train, and the checkpoint it comes from; a new one, without, if there is none yet.

    averaged: with the weights' running average instead, which is better to use but not to train.
    """
    nano, path = Nano(), runs / "denoiser.pt"
    if not path.exists():
        return nano, None
    saved = torch.load(path)
    nano.load_state_dict(saved["average" if averaged else "nano"])
    return nano, saved


def draw_shape(generator: Generator, shares: Sequence[float]) -> tuple[Shape, int]:
    """Draw the shape of a step's clips, and how many pairs of them it takes."""
    frames = LENGTHS[int(torch.multinomial(torch.tensor(shares), 1, generator=generator))]
    upright = torch.rand((), generator=generator) < 0.5
    return (portrait(frames) if upright else landscape(frames)), PAIRS[frames]


def train_denoiser(worker: Worker, runs: Path, minutes: float) -> None:
    """Train for some minutes, going on from runs/denoiser.pt if there is one."""
    torch.manual_seed(0)
    nano, saved = load_nano(runs)
    optimizers, samples = Optimizers(nano, MUON_LR), 0
    average = {name: weight.clone() for name, weight in nano.state_dict().items()}
    if saved:
        optimizers.load_state_dict(saved["optimizers"])
        samples, average = saved["samples"], saved["average"]
    for block in nano.transformer.blocks:
        block.compile(dynamic=True)  # a seventh quicker
    tokenizer = build_tokenizer()
    generator = Generator().manual_seed(samples * worker.count + worker.rank)
    # both workers train on the same shape at the same time, or the quicker one would wait
    shapes = Generator().manual_seed(samples)
    pool = Pool(generator, load_codec(runs))
    reported = time.monotonic()
    losses: list[float] = []

    def report() -> None:
        write_log(runs / "denoiser.jsonl", samples=samples, loss=sum(losses) / len(losses))
        state = {"nano": nano.state_dict(), "average": average, "optimizers": optimizers.state_dict()}
        save_checkpoint(runs / "denoiser.pt", samples=samples, **state)

    for lr_scale in sitting(minutes):
        early = samples < EARLY_SAMPLES
        pairs = pool.draw(*draw_shape(shapes, EARLY_LENGTH_SHARES if early else LENGTH_SHARES), early)
        loss = flow_loss(nano, tokenizer, generator, pairs, EARLY_TEXT_SHARES if early else TEXT_SHARES)
        loss.backward()
        losses.append(loss.item())
        optimizers.step(worker, lr_scale)
        samples += 2 * len(pairs) * worker.count
        if not worker.leads:
            continue
        for name, weight in nano.state_dict().items():
            average[name].lerp_(weight, 1 - AVERAGING)
        if time.monotonic() - reported > REPORT_S:
            report()
            losses, reported = [], time.monotonic()
    if worker.leads:
        report()
