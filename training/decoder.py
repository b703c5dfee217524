"""Stage 3: the autoencoder's decoder learns to show what the denoiser makes.

It has seen latents of true clips only. What the denoiser makes is nearly, never quite, the latents of some clip, and
where an object's edge is a little off, such a decoder draws fringes. So here it decodes both: what the denoiser makes
of a scene, to be compared with the true clip, and the true latents, which it is not to forget.
"""

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Generator, Tensor
from transformers import T5TokenizerFast

from training.autoencoder import (
    MUON_LR,
    decode_clips,
    decode_uncertain,
    decoding_loss,
    freeze_encoder,
    measure_autoencoder,
)
from training.denoiser import (
    PLACES,
    Nano,
    Stream,
    encode_pictures,
    encode_texts,
    load_codec,
    load_nano,
    load_tokenizer,
    predict,
    with_condition,
)
from training.export import FLOW_SHIFT
from training.samples import Codec, Shape, draw_captioned_motion, landscape, portrait
from training.scenes import draw_scene, render
from training.sittings import Optimizers, Worker, save_checkpoint, sitting, write_log

FRAMES = 17
STEPS = 4  # of the denoiser, when nano was used with six: fewer, for more clips in the time
PACE = 0.1  # of the learning rate with which the autoencoder was trained: five times as much did harm
CLIPS = 3  # of a step
MADE_SHARE = 0.6  # of the loss, that in what the denoiser made; the rest is that in true latents
POOL_SIZE = 150  # pairs of clips, of which the oldest give way
FRESH_SHARE = 0.35  # of the draws make another
REPORT_S = 90.0


@dataclass(frozen=True)
class Made:
    """Two clips of one motion, and what the denoiser makes of their start images, each with the other as reference.

    clips: (2, 3, F, height, width), -1 to 1. true, made: their latents and the denoiser's, (2, z, T, h, w), not
    normalised.
    """

    clips: Tensor
    true: Tensor
    made: Tensor


@torch.no_grad()
def make_clips(nano: Nano, codec: Codec, tokenizer: T5TokenizerFast, generator: Generator, shape: Shape) -> Made:
    """Draw two scenes under one motion, and let the denoiser make each, without a caption."""
    motion, _ = draw_captioned_motion(generator, PLACES, shape.frames, with_object=True)
    size = (shape.height, shape.width)
    scenes = [draw_scene(generator, *size, motion, with_object=True) for _ in range(2)]
    clips = torch.stack([render(scene, motion, *size) for scene in scenes])
    with torch.autocast("cpu", torch.bfloat16):
        true = codec.encode(clips).float()
        conditions = codec.encode_conditions(clips[:, :, 0], shape.frames).float()
        images = encode_pictures(nano, clips[:, :, 0])
        text = encode_texts(nano, tokenizer, ["", ""])
        reference = Stream(with_condition(true, conditions).flip(0), *text, images.flip(0))
        even = torch.linspace(1, 0, STEPS + 1)
        sigmas = FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)
        made = torch.randn(true.shape, generator=generator)
        for sigma, lower in pairwise(sigmas):
            target = Stream(with_condition(made, conditions), *text, images)
            velocity, _ = predict(nano, (sigma * 1000).expand(2), target, reference)
            made = made + (lower - sigma) * velocity.float()
    return Made(clips, true * codec.std + codec.mean, made * codec.std + codec.mean)


def train_decoder(worker: Worker, runs: Path, minutes: float) -> None:
    """Train the decoder of runs/autoencoder.pt for some minutes, on what runs/denoiser.pt makes."""
    nano = load_nano(runs, averaged=True)[0].eval().requires_grad_(False)
    codec, tokenizer = load_codec(runs), load_tokenizer(runs)
    vae, path = codec.vae.requires_grad_(True), runs / "autoencoder.pt"
    freeze_encoder(vae)
    optimizers, step = Optimizers(vae, MUON_LR, worker), torch.load(path)["step"]
    generator = Generator().manual_seed(1000 * step + worker.rank)
    torch.manual_seed(1000 * step + worker.rank)
    pool: list[Made] = []
    losses: list[float] = []
    reported = time.monotonic()

    def report() -> None:
        loss = sum(losses) / max(1, len(losses))
        write_log(runs / "decoder.jsonl", step=step, loss=loss, **measure_autoencoder(vae))
        save_checkpoint(path, vae=vae.state_dict(), step=step, decoder_only=True)

    for lr_scale in sitting(minutes, PACE):
        for _ in range(CLIPS):
            if len(pool) < CLIPS or torch.rand((), generator=generator) < FRESH_SHARE:
                shape = (landscape, portrait)[int(torch.randint(0, 2, (), generator=generator))](FRAMES)
                pool = [*pool[1 - POOL_SIZE :], make_clips(nano, codec, tokenizer, generator, shape)]
            chosen = pool[int(torch.randint(0, len(pool), (), generator=generator))]
            loss = decoder_loss(codec, chosen, int(torch.randint(0, 2, (), generator=generator)))
            (loss / CLIPS).backward()
            losses.append(loss.item())
        optimizers.step(lr_scale)
        step += 1
        if worker.leads and time.monotonic() - reported > REPORT_S:
            report()
            reported, losses = time.monotonic(), []
    if worker.leads:
        report()


def decoder_loss(codec: Codec, chosen: Made, which: int) -> Tensor:
    """Judge what is decoded of the denoiser's latents of one clip, and of a window of the other's true ones.

    which: 0 or 1, whose latents are the denoiser's.
    """
    with torch.autocast("cpu", torch.bfloat16):
        shown = decode_clips(codec.vae, chosen.made[which : which + 1])
    other = slice(1 - which, 2 - which)
    rows, columns = chosen.true.shape[3:]
    side = min(8, rows, columns)
    top, left = (int(torch.randint(0, size - side + 1, ())) for size in (rows, columns))
    window = chosen.true[other, :, :, top : top + side, left : left + side]
    kept = chosen.clips[other, :, :, 8 * top : 8 * (top + side), 8 * left : 8 * (left + side)]
    made_loss = decoding_loss(shown.float(), chosen.clips[which : which + 1])
    return MADE_SHARE * made_loss + (1 - MADE_SHARE) * decoding_loss(decode_uncertain(codec.vae, window), kept)
