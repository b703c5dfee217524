"""Stage 1: the autoencoder, a stock `AutoencoderKLWan` trained on single pictures and then on clips.

Besides the pictures, it learns that latents can be moved: what nano draws of a movement, it copies from the first
frame, latent by latent. Latents that were never asked for this, moved by the true amounts, were no nearer to the true
latents of a spinning object than those of a still one.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, patchify, unpatchify
from torch import Generator, Tensor, nn

from training.effects import draw_motion, is_rigid
from training.scenes import crop_photograph, draw_scene, render, trace_sources
from training.sittings import Optimizers, Worker, psnr, save_checkpoint, sitting, write_log

LATENT_CHANNELS = 16
SCENE = (80, 144)  # height and width of what is drawn
LATENT_NOISE = 0.1  # the decoder learns from latents this uncertain; the encoder's spread is fixed to it


class _PictureConv(WanCausalConv3d):
    """A causal convolution that skips, for single frames, the taps that would only meet padding: a third of the work
    remains.
    """

    def forward(self, states: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Convolve (B, C, T, H, W)."""
        if states.shape[2] > 1 or cache_x is not None:
            return super().forward(states, cache_x)
        padding = (self._padding[2], self._padding[0])
        return F.conv2d(states[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding)[:, :, None]


def build_autoencoder() -> AutoencoderKLWan:
    """Make a new autoencoder: 8 x 8 x 4 pixels to LATENT_CHANNELS numbers.

    It starts out blind to time: taps of the convolutions on earlier frames are zero, the temporal resampling repeats or
    drops frames. So what pictures teach serves clips from the first step on.
    """
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            module.weight.data[:, :, :-1] = 0
        if isinstance(module, WanResample) and module.mode.endswith("3d"):
            copies = module.time_conv.out_channels // module.dim
            module.time_conv.weight.data[:, :, -1, 0, 0] = torch.eye(module.dim).repeat(copies, 1)
            module.time_conv.bias.data.zero_()
        if type(module) is WanCausalConv3d:
            module.__class__ = _PictureConv
    vae.quant_conv.weight.data[LATENT_CHANNELS:] = 0
    vae.quant_conv.bias.data[LATENT_CHANNELS:] = 2 * torch.tensor(LATENT_NOISE).log()
    return vae


# The stock encode and decode walk through a clip by chunks of four frames. Here the whole clip goes through each layer
# at once, which gives the same numbers (tests/training/test_autoencoder.py), is quicker and can be differentiated.


def encode_clips(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Give the mean latents (B, z, T, H / 8, W / 8), not normalised, of clips (B, 3, 4 T - 3, H, W) in -1 to 1."""
    encoder = vae.encoder
    states = encoder.conv_in(patchify(clips, vae.config.patch_size))
    for block in encoder.down_blocks:
        inner = states
        for resnet in block.resnets:
            inner = resnet(inner)
        if block.downsampler is not None:
            inner = _halve(block.downsampler, inner)
        states = inner + block.avg_shortcut(states)
    states = encoder.nonlinearity(encoder.norm_out(encoder.mid_block(states)))
    return vae.quant_conv(encoder.conv_out(states)).chunk(2, dim=1)[0]


def decode_clips(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Give the clips (B, 3, 4 T - 3, H, W), not clamped, of latents (B, z, T, H / 8, W / 8)."""
    decoder = vae.decoder
    states = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        inner = states
        for resnet in block.resnets:
            inner = resnet(inner)
        if block.upsampler is not None:
            inner = _double(block.upsampler, inner)
        states = inner if block.avg_shortcut is None else inner + block.avg_shortcut(states, first_chunk=True)
    states = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(states)))
    return unpatchify(states, vae.config.patch_size)


def _halve(resample: WanResample, states: Tensor) -> Tensor:
    states = _resample_frames(resample, states)
    if resample.mode != "downsample3d" or states.shape[2] == 1:
        return states
    return torch.cat([states[:, :, :1], resample.time_conv(states)], dim=2)


def _double(resample: WanResample, states: Tensor) -> Tensor:
    if resample.mode == "upsample3d" and states.shape[2] > 1:
        # the first frame stays single and is not seen by the others
        later = resample.time_conv(states[:, :, 1:]).unflatten(1, (2, -1))
        states = torch.cat([states[:, :, :1], later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
    return _resample_frames(resample, states)


def _resample_frames(resample: WanResample, states: Tensor) -> Tensor:
    frames = states.transpose(1, 2)
    resized = resample.resample(frames.flatten(0, 1))
    return resized.unflatten(0, frames.shape[:2]).transpose(1, 2)


# ---- training ----


@dataclass(frozen=True)
class Diet:
    """What one step sees. crops: (how many, frames, height, width) of each kind."""

    crops: tuple[tuple[int, int, int, int], ...]


PICTURES = Diet(crops=((16, 1, 80, 80),))
CLIPS = Diet(crops=((3, 17, 64, 64), (6, 1, 80, 80)))
SHARPNESS = 0.5  # weight of the error in differences of neighbouring pixels, which a blur would get wrong
ENERGY = 1e-4  # weight of the latents' squares: with the fixed spread, this is the KL term
WARPED_SHARE = 0.6  # of the crops are decoded from latents that were scaled, turned and shifted
MAX_WARP = (0.35, 0.3, 0.3)  # the logarithm of the scale, radians, half sides
TRACKING = 0.2  # weight of the difference between latents and those they came from, in their variance
MUON_LR = 4e-3
REPORT_S = 90.0


def train_autoencoder(worker: Worker, runs: Path, diet: Diet, minutes: float) -> None:
    """Train for some minutes, going on from runs/autoencoder.pt if there is one.

    Once the latents were measured (`measure_latents`) the denoiser relies on them: only the decoder goes on learning.
    """
    vae, path = build_autoencoder(), runs / "autoencoder.pt"
    decoder_only = (runs / "latents.pt").exists()
    if decoder_only:
        freeze_encoder(vae)
    optimizers, step = Optimizers(vae, MUON_LR, worker), 0
    if path.exists():
        saved = torch.load(path)
        vae.load_state_dict(saved["vae"])
        step = saved["step"]
        if saved["decoder_only"] == decoder_only and "optimizers" in saved:
            optimizers.load_state_dict(saved["optimizers"])
    generator = Generator().manual_seed(1000 * step + worker.rank)
    reported, loss = time.monotonic(), torch.zeros(())

    def report() -> None:
        write_log(runs / "autoencoder.jsonl", step=step, loss=loss.item(), **measure_autoencoder(vae))
        save_checkpoint(
            path, vae=vae.state_dict(), optimizers=optimizers.state_dict(), step=step, decoder_only=decoder_only
        )

    for lr_scale in sitting(minutes):
        for crop in diet.crops:
            loss = autoencoder_loss(vae, *draw_crops(generator, *crop)) / len(diet.crops)
            loss.backward()
        optimizers.step(lr_scale)
        step += 1
        if worker.leads and time.monotonic() - reported > REPORT_S:
            report()
            reported = time.monotonic()
    if worker.leads:
        report()


def freeze_encoder(vae: AutoencoderKLWan) -> None:
    """Let only the decoder learn."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)


@torch.no_grad()
def measure_latents(runs: Path, clips: int = 150) -> None:
    """Freeze the encoder: write what is to be known of its latents to runs/latents.pt.

    mean, std: (z, 1, 1, 1) each. features: (z, z), by which normalised latents become uncorrelated numbers of variance
    one, those that vary most first.
    """
    vae = build_autoencoder()
    vae.load_state_dict(torch.load(runs / "autoencoder.pt")["vae"])
    generator = Generator().manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        latents = torch.cat([encode_clips(vae, draw_crops(generator, 1, 17, *SCENE)[0]) for _ in range(clips)]).float()
    std, mean = torch.std_mean(latents, dim=(0, 2, 3, 4))
    spread, directions = torch.linalg.eigh(torch.corrcoef(latents.transpose(0, 1).flatten(1)))
    features = (directions / spread.sqrt()).T.flip(0)
    save_checkpoint(runs / "latents.pt", mean=mean.view(-1, 1, 1, 1), std=std.view(-1, 1, 1, 1), features=features)


def draw_crops(generator: Generator, count: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Give random windows out of random clips, and where in its first frame that was which each latent shows.

    Clips: (count, 3, frames, height, width), float32, -1 to 1. Sources: (count, T, height / 8, width / 8, 2), x before
    y, -1 to 1 over the window; NaN where there is none, and everywhere if more than places changes.
    """
    crops, sources = [], []
    for _ in range(count):
        motion = draw_motion(generator, frames)
        scene = draw_scene(generator, *SCENE, motion, with_object=True)
        clip = render(scene, motion, *SCENE)
        top, left = (
            8 * int(torch.randint(0, (whole - part) // 8 + 1, (), generator=generator))
            for whole, part in zip(SCENE, (height, width), strict=True)
        )
        crops.append(clip[:, :, top : top + height, left : left + width])
        traced = trace_sources(scene, motion, *SCENE) if is_rigid(motion) else torch.full((1, 1, 1, 2), math.nan)
        traced = traced.expand((frames + 3) // 4, SCENE[0] // 8, SCENE[1] // 8, 2)
        traced = traced[:, top // 8 : (top + height) // 8, left // 8 : (left + width) // 8]
        pixels = (traced * min(SCENE) + torch.tensor(SCENE[::-1])) / 2 - torch.tensor([left, top])
        places = pixels / torch.tensor([width, height]) * 2 - 1
        sources.append(places.masked_fill((places.abs() >= 1).any(dim=-1, keepdim=True), math.nan))
    return torch.stack(crops), torch.stack(sources)


def autoencoder_loss(vae: AutoencoderKLWan, clips: Tensor, sources: Tensor) -> Tensor:
    """Compare clips with what comes back through uncertain and often warped latents, and latents with their sources."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = encode_clips(vae, clips)
    latents = latents.float()
    kept, expected = latents, clips
    if torch.rand(()) < WARPED_SHARE:
        warp = _draw_warp(len(clips), clips.shape[3] / clips.shape[4])
        kept, expected = _warp(latents, warp), _warp(clips, warp)
    loss = decoding_loss(decode_uncertain(vae, kept), expected)
    return loss + ENERGY * latents.square().mean() + TRACKING * compare_with_sources(latents, sources)


def decode_uncertain(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode latents (B, z, T, h, w), not normalised, with as much noise as the encoder's spread."""
    with torch.autocast("cpu", torch.bfloat16):
        return decode_clips(vae, latents + LATENT_NOISE * torch.randn_like(latents)).float()


def decoding_loss(decoded: Tensor, clips: Tensor) -> Tensor:
    """Compare decoded clips (B, 3, F, height, width), float32, with true ones."""
    error = decoded - clips
    sharpness = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + SHARPNESS * sharpness


def _draw_warp(count: int, height_to_width: float) -> Tensor:
    """Give (count, 2, 3), random, as `affine_grid` takes it."""
    scale, angle, across, down = (limit * (2 * torch.rand(count) - 1) for limit in (*MAX_WARP, MAX_WARP[2]))
    cos, sin = scale.exp() * angle.cos(), scale.exp() * angle.sin()
    rows = [cos, -sin * height_to_width, across, sin / height_to_width, cos, down]
    return torch.stack(rows, dim=1).view(count, 2, 3)


def _warp(clips: Tensor, warp: Tensor) -> Tensor:
    """Warp every frame of clips (B, C, T, H, W) alike."""
    frames = clips.transpose(1, 2).flatten(0, 1)
    grid = F.affine_grid(warp.repeat_interleave(clips.shape[2], dim=0), list(frames.shape), align_corners=False)
    warped = F.grid_sample(frames, grid, padding_mode="reflection", align_corners=False)
    return warped.unflatten(0, (-1, clips.shape[2])).transpose(1, 2)


def compare_with_sources(latents: Tensor, sources: Tensor) -> Tensor:
    """Give the mean square difference of latents to those of the first frame at their sources, in their variance."""
    known = sources.isfinite().all(dim=-1)[:, None].float()
    known[:, :, 0] = 0  # the first frame itself
    first = latents[:, :, :1].expand_as(latents).transpose(1, 2).flatten(0, 1)
    moved = F.grid_sample(first, sources.nan_to_num(0).flatten(0, 1), padding_mode="border", align_corners=False)
    moved = moved.unflatten(0, (-1, latents.shape[2])).transpose(1, 2)
    # With its gradient, so that what is all small costs the same: else every channel is drawn towards nothing.
    variance = latents.var(dim=(0, 2, 3, 4), keepdim=True) + 1e-3
    error = ((moved - latents).square() / variance * known).sum()
    return error / (known.sum() * latents.shape[1]).clamp(min=1)


@torch.no_grad()
def measure_autoencoder(vae: AutoencoderKLWan) -> dict[str, float]:
    """Give the PSNR, in dB, on held-out scenes: of single photographs and of clips of 17 frames, at full size."""
    generator = Generator().manual_seed(7)
    photographs = torch.stack([crop_photograph(generator, *SCENE, held_out=True) for _ in range(8)])[:, :, None] * 2 - 1
    clips = []
    for _ in range(3):
        motion = draw_motion(generator, 17)
        clips.append(render(draw_scene(generator, *SCENE, motion, with_object=True, held_out=True), motion, *SCENE))
    figures = {}
    for name, pixels in (("photographs", photographs), ("clips", torch.stack(clips))):
        with torch.autocast("cpu", torch.bfloat16):
            decoded = decode_clips(vae, encode_clips(vae, pixels))
        figures[f"psnr_{name}"] = psnr(decoded.clamp(-1, 1), pixels)
    return figures
