"""Prompts, images and the reference video -> `Conditions`: all that the denoising loop reads.

Shapes: z latent channels; F frames; T = (F - 1) / 4 + 1 latent frames; h, w = height / 8, width / 8 (the factors come
from the VAE's config). Pixels go in as (1, 3, frames, height, width) in [-1, 1]. The steps are those of the reference
implementation (`bytedance/Video-As-Prompt`, commit 0f30aed), whose numbers they reproduce.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import ftfy
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.utils.torch_utils import get_module_execution_device
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel, T5TokenizerFast, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.joint_attention import fold_padding

TEXT_LENGTH = 512  # tokens the network was trained with; zero rows fill up shorter texts

DEFAULT_NEGATIVE_PROMPT = (  # the published default, a fact of the model: Wan2.1's English negative prompt
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)


@dataclass(frozen=True)
class TextStates:
    """A text as the transformer takes it: states (1, n, text_dim) and how many equal rows each stands for, (1, n)."""

    states: Tensor
    row_counts: Tensor


@dataclass(frozen=True)
class Texts:
    """The two texts of one guidance branch."""

    target: TextStates
    reference: TextStates


@dataclass(frozen=True)
class Conditions:
    """All that the denoising loop reads besides noise.

    negative: None without guidance.
    image_embeds, reference_image_embeds: (1, m, image_dim), of the start image and of the reference's first frame.
    condition_latents: (1, 4 + z, T, h, w), the mask of given frames and the start image's latents.
    reference_latents: (1, z + 4 + z, T, h, w), the reference stream's whole input.
    """

    positive: Texts
    negative: Texts | None
    image_embeds: Tensor
    reference_image_embeds: Tensor
    condition_latents: Tensor
    reference_latents: Tensor


def clean_text(text: str) -> str:
    """Repair mojibake, resolve HTML entities (also doubly escaped ones) and fold white space."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def encode_text(text: str, tokenizer: T5TokenizerFast, text_encoder: UMT5EncoderModel) -> TextStates:
    """Encode one text; what exceeds 512 tokens is cut."""
    tokens = tokenizer(
        clean_text(text), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    device = get_module_execution_device(text_encoder)
    states = text_encoder(tokens.input_ids.to(device), tokens.attention_mask.to(device)).last_hidden_state
    return TextStates(*fold_padding(states[:, : int(tokens.attention_mask.sum())], TEXT_LENGTH))


def encode_image(image: Image.Image, processor: CLIPImageProcessorPil, image_encoder: CLIPVisionModel) -> Tensor:
    """Give CLIP's states of a picture from its last layer but one, (1, m, image_dim)."""
    pixels = processor(images=image.convert("RGB"), return_tensors="pt").pixel_values
    pixels = pixels.to(get_module_execution_device(image_encoder), image_encoder.dtype)
    return image_encoder(pixels, output_hidden_states=True).hidden_states[-2]


def stretch_to_pixels(images: Sequence[Image.Image], height: int, width: int) -> Tensor:
    """Resize pictures to height x width, ignoring their aspect, and stack them: (1, 3, n, height, width) in [-1, 1]."""
    stretched = [image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS) for image in images]
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in stretched]) / 255.0
    return torch.from_numpy(2.0 * pixels - 1.0).permute(3, 0, 1, 2).unsqueeze(0)


def latent_statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Give mean and standard deviation of the VAE's latents, (1, z, 1, 1, 1) each, float32, on the CPU."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def encode_pixels(pixels: Tensor, vae: AutoencoderKLWan) -> Tensor:
    """Encode a clip (1, 3, F, height, width) to normalised latents (1, z, T, h, w): the distribution's mode."""
    latents = vae.encode(pixels.to(get_module_execution_device(vae), vae.dtype)).latent_dist.mode()
    mean, std = (statistic.to(latents) for statistic in latent_statistics(vae))
    # The reciprocal first, as the reference implementation has it: dividing rounds differently.
    return (latents - mean) * (1.0 / std)


def encode_condition(first: Tensor, last: Tensor | None, num_frames: int, vae: AutoencoderKLWan) -> Tensor:
    """Encode what is given of a clip: its first picture, maybe its last, mid-grey between.

    first, last: (1, 3, 1, height, width).
    Returns (1, 4 + z, T, h, w): four mask channels, one for each pixel frame of a latent frame (the first pixel frame
    counts four times), then latents.
    """
    clip = first.new_zeros(*first.shape[:2], num_frames, *first.shape[3:])
    clip[:, :, :1] = first
    if last is not None:
        clip[:, :, -1:] = last
    latents = encode_pixels(clip, vae)

    stride = vae.config.scale_factor_temporal
    given = torch.zeros(stride * latents.shape[2])
    given[:stride] = 1
    if last is not None:
        given[-1] = 1
    mask = given.view(-1, stride).T[None, :, :, None, None].to(latents).expand(-1, -1, -1, *latents.shape[3:])
    return torch.cat([mask, latents], dim=1)
