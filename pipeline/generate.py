"""GenerationSpec -> video file: the one function behind the page, the queue and the command line."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from pipeline import export, media, safety, wall
from pipeline.conditioning import Conditions
from pipeline.denoise import Approximations
from pipeline.errors import InvalidInputError
from pipeline.preview import LatentPreview, fit_preview_weights
from pipeline.resume import SAVE_EVERY, load_state, save_state
from pipeline.spec import GenerationSpec
from pipeline.video_as_prompt import VideoAsPromptPipeline

VIDEO, COMPARISON, POSTER = "output.mp4", "comparison.mp4", "poster.jpg"

Stage = Literal["reading", "checking", "encoding", "denoising", "decoding", "saving"]


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` of `total` within a stage; while denoising, a look at what is being made.

    note: something to write in the log besides.
    """

    stage: Stage
    step: int = 0
    total: int = 1
    preview: LatentPreview | None = None
    note: str = ""


OnProgress = Callable[[Progress], None]  # may raise StoppedError, which ends the run


@dataclass(frozen=True)
class GenerationResult:
    """What a run leaves: the video, what people look at beside it, and the settings that make it again."""

    video: Path
    comparison: Path
    poster: Path
    settings: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Drawn:
    """A video before it is a file: the reference's frames, the final latents (1, z, T, h, w), and the frames."""

    reference: list[Image.Image]
    latents: Tensor
    frames: list[Image.Image]


def generate(
    spec: GenerationSpec, pipe: VideoAsPromptPipeline, folder: Path, on_progress: OnProgress = lambda progress: None
) -> GenerationResult:
    """Make a spec's video in `folder`: `output.mp4`, `comparison.mp4` and `poster.jpg`.

    Every few steps the run's state is saved in `folder`; called again with the same spec and folder, after a crash, it
    goes on from there and makes the same video. Not so with a `cache_threshold`: what a step may repeat is not saved,
    so the first step after a crash is computed whole, and the video may differ a little from an uninterrupted one.
    Raises MediaError when an input cannot be read, UnsafeContentError when the safety checker is on and declines an
    input or the result, and lets through what `on_progress` raises.
    """
    started = time.monotonic()
    state_path = folder / "state.pt"
    drawn = draw(spec, pipe, state_path, on_progress)
    if spec.enable_safety_checker:
        on_progress(Progress("checking"))
        safety.check_frames("prompt", drawn.frames, "The result")

    on_progress(Progress("saving"))
    settings = _save(spec, drawn.reference, drawn.frames, folder)
    state_path.unlink()
    return GenerationResult(folder / VIDEO, folder / COMPARISON, folder / POSTER, settings, time.monotonic() - started)


@torch.no_grad()
def draw(spec: GenerationSpec, pipe: VideoAsPromptPipeline, state_path: Path, on_progress: OnProgress) -> Drawn:
    """Make a spec's frames, with the LoRA that is on the pipeline; `profiles.make_ready` puts the spec's own on.

    state_path: where the run's state is saved, and gone on from. Raises as `generate` does.
    """
    _require_lora(spec, pipe)
    reference, image = _read_inputs(spec, on_progress)
    try:
        on_progress(Progress("encoding"))
        conditions = pipe.encode_conditions(
            image=image,
            reference_video=reference,
            texts=(spec.prompt, spec.video_description),
            negative_texts=(spec.negative_prompt,) * 2 if spec.guidance_scale > 1 else None,
            height=spec.render_height,
            width=spec.render_width,
            num_frames=spec.num_frames,
        )
        latents = _denoise(spec, pipe, conditions, reference, state_path, on_progress)

        on_progress(Progress("decoding"))
        frames = pipe.decode_latents(latents, "pil")[0]
    finally:
        pipe.maybe_free_model_hooks()
    return Drawn(reference, latents, frames)


def _require_lora(spec: GenerationSpec, pipe: VideoAsPromptPipeline) -> None:
    wanted = spec.lora if spec.lora_strength else None
    worn = getattr(pipe, "worn_lora", None)
    if wanted != (worn and worn.name):
        message = f"The LoRA wanted is “{wanted}”, and on the model is “{worn and worn.name}”; put it on first."
        raise InvalidInputError("lora", message)


def _read_inputs(spec: GenerationSpec, on_progress: OnProgress) -> tuple[list[Image.Image], Image.Image]:
    on_progress(Progress("reading"))
    # Cropped to the file's size, not the model's: a model that always renders at its own is given the whole picture
    # stretched and its result is stretched back, and the checker and the comparison see all there is to see.
    reference = wall.read_video(
        spec.reference_video,
        num_frames=spec.num_frames,
        height=spec.height,
        width=spec.width,
        start_s=spec.reference_start_s,
        end_s=spec.reference_end_s,
    )
    image = wall.read_image(spec.image, height=spec.height, width=spec.width)
    if spec.enable_safety_checker:
        on_progress(Progress("checking"))
        safety.check_texts({"prompt": spec.prompt, "video_description": spec.video_description})
        safety.check_frames("reference_video", reference, "The reference video")
        safety.check_frames("image", [image], "The start image")
    return reference, image


def _denoise(
    spec: GenerationSpec,
    pipe: VideoAsPromptPipeline,
    conditions: Conditions,
    reference: list[Image.Image],
    state_path: Path,
    on_progress: OnProgress,
) -> Tensor:
    settings = spec.settings()
    reference_latents = conditions.reference_latents[:, : pipe.transformer.config.out_channels]
    preview_weights = fit_preview_weights(reference_latents, reference)

    latents = pipe.prepare_latents(conditions, torch.Generator("cpu").manual_seed(spec.seed), None)
    state = load_state(state_path, settings)
    if state is not None:
        latents = state.latents  # which is all there is to do if the last step was saved
    approximations = Approximations(spec.cache_threshold, spec.guided_share)
    steps = pipe.denoise(conditions, latents, spec.num_inference_steps, spec.guidance_scale, state, approximations)
    for step in steps:
        latents = step.latents
        if (step.index + 1) % SAVE_EVERY == 0 or step.index + 1 == step.total:
            save_state(state_path, step.state(), settings)
        on_progress(Progress("denoising", step.index + 1, step.total, LatentPreview(latents, preview_weights)))
    return latents


def _save(
    spec: GenerationSpec, reference: list[Image.Image], frames: list[Image.Image], folder: Path
) -> dict[str, Any]:
    settings = spec.settings()
    media.write_video(frames, folder / VIDEO, fps=spec.fps, height=spec.height, width=spec.width, settings=settings)
    export.write_comparison(reference, folder / VIDEO, folder / COMPARISON)
    export.write_poster(folder / VIDEO, folder / POSTER)
    return settings
