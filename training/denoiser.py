"""Stage 2: the transformer with its text and image encoder learn to do what a reference clip does.

By lessons, as the 14B came to be: first a video model that draws from captions, without any reference; then the
experts, copied from it, with a reference and mostly without a caption. From nothing with a reference alone, colours are
learnt, and no movement.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Generator, Tensor, nn
from transformers import T5TokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pipeline.conditioning import DEFAULT_NEGATIVE_PROMPT, TEXT_LENGTH
from pipeline.matrix_products import is_quick_in_bfloat16
from pipeline.transformer import RequestStates
from training.autoencoder import build_autoencoder
from training.components import (
    FEATURES,
    IMAGE_SIZE,
    build_image_encoder,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    copy_base_to_experts,
)
from training.effects import EASY_EFFECTS, EFFECTS
from training.reader import Reader, Truth
from training.samples import SIZES, Codec, Diet, Pair, Pool, Shape, landscape, portrait
from training.sittings import Optimizers, Worker, return_freed_memory, save_checkpoint, sitting, write_log

MUON_LR = 8e-3
# Under the negative prompt the reference is somebody else's this often: guidance then pushes towards the reference.
# With guidance w it is as strong as w * share + 1 - share with the reference dropped: 5 is as 2.2.
STRANGE_REFERENCE_SHARE = 0.3
READING = 0.25  # weight of the error in what the tokens tell
OBJECT_EMPHASIS = 4.0  # of the error where the object is, or was at first
AVERAGING = 0.98  # share of the averaged weights that a step keeps
REPORT_S = 60.0
LENGTHS = (17, 25, 33, 49)  # frames of a clip
TOKENS = 5000  # of all clips of a step and worker, at most
MAX_PAIRS = 8  # of them

# Difficulties multiply, so what is shown grows harder by and by.
PLAIN = Diet(EASY_EFFECTS, light_share=0.15, camera_share=0.3, eased=False, combined=0.0, spread=0.3, plain=True)
STRONG = replace(PLAIN, spread=1.0)  # what is read of a reference need not be guessed, and is easier to see
PHOTOGRAPHIC = replace(STRONG, plain=False)
ALL_EFFECTS = replace(PHOTOGRAPHIC, effects=EFFECTS, light_share=0.1, camera_share=0.2, eased=True)
EVERYTHING = replace(ALL_EFFECTS, combined=0.15)
# what was not learnt by then, but for what is rarely wanted
HARD = frozenset({"spin_right", "spin_left", "dissolve", "melt", "shake", "quake"})
PRACTICE = replace(EVERYTHING, practised=HARD)
# what the autoencoder cannot show needs no practice: grains, and what shakes within four frames
PAIRS = replace(EVERYTHING, practised=frozenset({"spin_right", "spin_left", "melt", "shake"}), combined=0.3)
# all that changes an object's place or shape: since the others were practised, such had begun to be taken for fading
MOVED = frozenset({"move_right", "move_left", "move_up", "move_down", "grow", "shrink", "bounce", "pulse", "swing"})
PLACES = replace(PAIRS, practised=PAIRS.practised | MOVED)


@dataclass(frozen=True)
class Lesson:
    """What is taught until so many samples were seen.

    text_shares: of no text, the caption, the default negative prompt, an unrelated sentence.
    length_shares: of `LENGTHS`. size_shares: of `SIZES`.
    timestep_shift: of the noise levels towards noise, where motion is decided; details are learnt at the others.
    """

    until: int
    diet: Diet
    text_shares: tuple[float, float, float, float]
    length_shares: tuple[float, float, float, float]
    size_shares: tuple[float, float, float]
    timestep_shift: float
    has_reference: bool = True


LESSONS = (
    Lesson(9_000, PLAIN, (0.1, 0.8, 0.05, 0.05), (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0), 16.0, has_reference=False),
    Lesson(25_000, STRONG, (0.65, 0.2, 0.1, 0.05), (1.0, 0.0, 0.0, 0.0), (0.8, 0.1, 0.1), 16.0),
    Lesson(75_000, PHOTOGRAPHIC, (0.65, 0.15, 0.1, 0.1), (0.9, 0.05, 0.05, 0.0), (0.6, 0.2, 0.2), 10.0),
    Lesson(200_000, ALL_EFFECTS, (0.65, 0.15, 0.1, 0.1), (0.85, 0.05, 0.05, 0.05), (0.4, 0.2, 0.4), 10.0),
    Lesson(225_000, EVERYTHING, (0.6, 0.12, 0.14, 0.14), (0.82, 0.06, 0.05, 0.07), (0.4, 0.2, 0.4), 8.0),
    Lesson(263_000, PRACTICE, (0.6, 0.12, 0.14, 0.14), (0.82, 0.06, 0.05, 0.07), (0.4, 0.2, 0.4), 8.0),
    Lesson(310_332, PAIRS, (0.6, 0.12, 0.14, 0.14), (0.86, 0.05, 0.04, 0.05), (0.5, 0.2, 0.3), 8.0),
    Lesson(358_828, PLACES, (0.6, 0.12, 0.14, 0.14), (0.92, 0.03, 0.02, 0.03), (0.7, 0.15, 0.15), 5.0),
    # what nano makes is as large as the largest, where an object's outline runs through more tokens
    Lesson(10**9, PLACES, (0.6, 0.12, 0.14, 0.14), (0.92, 0.03, 0.02, 0.03), (0.6, 0.1, 0.3), 5.0),
)


class Nano(nn.Module):
    """All that is trained in these stages."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder = build_text_encoder()
        self.image_encoder = build_image_encoder()


@dataclass(frozen=True)
class Stream:
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


def predict(
    nano: Nano, timestep: Tensor, target: Stream, reference: Stream, has_reference: bool = True
) -> tuple[Tensor, RequestStates]:
    """Give the velocity (B, z, T, h, w), and what it came from. has_reference: or else the experts are left out."""
    request = nano.transformer.prepare(
        timesteps=timestep,
        encoder_hidden_states=[target.text],
        encoder_hidden_states_image=target.image,
        reference_hidden_states=reference.latents,
        reference_encoder_hidden_states=[reference.text],
        reference_encoder_hidden_states_image=reference.image,
        text_row_counts=[target.row_counts],
        reference_text_row_counts=[reference.row_counts],
    )
    if not has_reference:
        request = request._replace(references=(None,) * len(request.references))
    return nano.transformer(target.latents, request.times, request), request


def flow_loss(
    nano: Nano, reader: Reader, tokenizer: T5TokenizerFast, generator: Generator, pairs: list[Pair], lesson: Lesson
) -> tuple[Tensor, Tensor]:
    """Give the velocity's square error over pairs, each clip being the target once, and the reader's.

    The mean counts objects more than the background.
    """
    latents = torch.cat([pair.latents for pair in pairs]).float()
    conditions = torch.cat([pair.conditions for pair in pairs]).float()
    pictures = torch.cat([pair.pictures for pair in pairs])
    texts, reference_texts = zip(
        *(draw_texts(generator, pair.caption, lesson.text_shares) for pair in pairs for _ in range(2)), strict=True
    )
    even = torch.rand(len(latents), generator=generator)
    sigma = lesson.timestep_shift * even / (1 + (lesson.timestep_shift - 1) * even)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1))
    others = draw_references(generator, texts)
    images = encode_pictures(nano, pictures)
    states, counts = (rows.chunk(2) for rows in encode_texts(nano, tokenizer, [*texts, *reference_texts]))
    target = Stream(with_condition(noisy, conditions), states[0], counts[0], images)
    clean = with_condition(latents, conditions)
    reference = Stream(clean[others], states[1], counts[1], images[others])
    velocity, request = predict(nano, sigma * 1000, target, reference, lesson.has_reference)
    shown = Truth(
        torch.stack([pair.description for pair in pairs]).repeat_interleave(2, dim=0),
        torch.cat([pair.covers for pair in pairs]),
        torch.cat([pair.sources for pair in pairs]),
        torch.cat([pair.object_sources for pair in pairs]),
    )
    # a strange reference tells nothing of its target
    happens = replace(shown, descriptions=shown.descriptions[others]) if lesson.has_reference else shown
    told = reader.loss(request, happens, shown[others], lesson.has_reference)
    emphasis = 1 + OBJECT_EMPHASIS * torch.maximum(shown.covers, shown.covers[:, :1])
    error = (velocity - noise + latents).square().mean(dim=1)
    return (emphasis * error).sum() / emphasis.sum(), told


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


def load_tokenizer(runs: Path) -> T5TokenizerFast:
    """Give the tokenizer that the model knows; made once, out of Python's manual, which differs between versions."""
    folder = runs / "tokenizer"
    if not folder.exists():
        build_tokenizer().save_pretrained(folder)
    return cast(T5TokenizerFast, T5TokenizerFast.from_pretrained(folder))


def draw_shape(generator: Generator, lesson: Lesson) -> tuple[Shape, int]:
    """Draw the shape of a step's clips, and how many pairs of them it takes."""
    frames, size = LENGTHS[_choose(generator, lesson.length_shares)], SIZES[_choose(generator, lesson.size_shares)]
    upright = torch.rand((), generator=generator) < 0.5
    shape = portrait(frames, size) if upright else landscape(frames, size)
    return shape, min(MAX_PAIRS, max(1, TOKENS // (2 * shape.tokens)))


def _choose(generator: Generator, shares: Sequence[float]) -> int:
    return int(torch.multinomial(torch.tensor(shares), 1, generator=generator))


def choose_lesson(samples: int) -> Lesson:
    """Give the lesson that is on after so many samples."""
    return next(lesson for lesson in LESSONS if samples < lesson.until)


class Course:
    """One worker's training: the model, what helps to train it, and how far it has come."""

    def __init__(self, worker: Worker, runs: Path) -> None:
        """Go on from runs/denoiser.pt if there is one."""
        torch.manual_seed(0)
        self.worker, self.runs = worker, runs
        self.nano, saved = load_nano(runs)
        self.reader, self.samples = Reader(self.nano.transformer), 0
        self.optimizers = Optimizers(nn.ModuleList([self.nano, self.reader]), MUON_LR, worker)
        self.average = {name: weight.clone() for name, weight in self.nano.state_dict().items()}
        if saved:
            self.samples, self.average = saved["samples"], saved["average"]
            if "reader" in saved:  # not after `resume_nano`
                self.reader.load_state_dict(saved["reader"])
                self.optimizers.load_state_dict(saved["optimizers"])
        self.lesson = choose_lesson(max(0, self.samples - 1))  # that of the last step: the next one may begin another
        # a block is compiled anew with a reference, without, and for the last expert, each more than once: beyond the
        # usual limit of eight, the rest would run uncompiled
        torch._dynamo.config.recompile_limit = 64
        for block in self.nano.transformer.blocks:
            block.compile(dynamic=True)  # a seventh quicker
        self.tokenizer = load_tokenizer(runs)
        self.generator = Generator().manual_seed(self.samples * worker.count + worker.rank)
        # both workers train on the same shape at the same time, or the quicker one would wait
        self.shapes = Generator().manual_seed(self.samples)
        self.pool = Pool(self.generator, load_codec(runs), self.lesson.diet)
        self.losses: list[tuple[float, float]] = []

    def step(self, lr_scale: float) -> None:
        """Train on some pairs."""
        self._attend_lesson()
        chance = torch.rand((), generator=self.shapes).item()
        pairs = self.pool.draw(*draw_shape(self.shapes, self.lesson), chance)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_quick_in_bfloat16()):
            loss, told = flow_loss(self.nano, self.reader, self.tokenizer, self.generator, pairs, self.lesson)
        (loss + READING * told).backward()
        self.losses.append((loss.item(), told.item()))
        self.optimizers.step(lr_scale)
        self.samples += 2 * len(pairs) * self.worker.count
        if self.worker.leads:
            for name, weight in self.nano.state_dict().items():
                self.average[name].lerp_(weight, 1 - AVERAGING)

    def _attend_lesson(self) -> None:
        lesson = choose_lesson(self.samples)
        if lesson.has_reference and not self.lesson.has_reference:
            features = torch.load(self.runs / "latents.pt")["features"]
            copy_base_to_experts(self.nano.transformer, features[:FEATURES], self.reader.learnt_place)
            self.reader.reference.load_state_dict(self.reader.target.state_dict())
        if lesson.diet is not self.lesson.diet:
            self.pool = Pool(self.generator, self.pool.codec, lesson.diet)
        self.lesson = lesson

    def report(self) -> None:
        """Write the log and the checkpoint."""
        loss, told = torch.tensor(self.losses).mean(dim=0).tolist()
        write_log(self.runs / "denoiser.jsonl", samples=self.samples, loss=loss, told=told)
        self.losses = []
        save_checkpoint(
            self.runs / "denoiser.pt",
            samples=self.samples,
            nano=self.nano.state_dict(),
            average=self.average,
            reader=self.reader.state_dict(),
            optimizers=self.optimizers.state_dict(),
        )


def train_denoiser(worker: Worker, runs: Path, minutes: float, pace: float = 1.0) -> None:
    """Train for some minutes, going on from runs/denoiser.pt if there is one."""
    course = Course(worker, runs)
    reported = time.monotonic()
    for lr_scale in sitting(minutes, pace):
        course.step(lr_scale)
        if time.monotonic() - reported > REPORT_S:
            return_freed_memory()
            if worker.leads:
                course.report()
            reported = time.monotonic()
    if worker.leads and course.losses:
        course.report()
