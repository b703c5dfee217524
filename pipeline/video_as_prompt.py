"""`VideoAsPromptPipeline`: the components, and the order of the stages."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.utils.torch_utils import get_module_execution_device, randn_tensor
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel, T5TokenizerFast, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline import checkpoint
from pipeline.conditioning import (
    DEFAULT_NEGATIVE_PROMPT,
    Conditions,
    Texts,
    TextStates,
    encode_condition,
    encode_image,
    encode_pixels,
    encode_text,
    latent_statistics,
    stretch_to_pixels,
)
from pipeline.denoise import EXACT, Approximations, DenoisingStep, LoopState, denoise, prepare_scheduler
from pipeline.encoding_cache import EncodingCache, fingerprint_files, make_key
from pipeline.errors import InvalidInputError
from pipeline.media import choose_frames
from pipeline.transformer import VideoAsPromptTransformer3DModel

ENCODERS = ("vae", "text_encoder", "tokenizer", "image_encoder", "image_processor")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

# (pipeline, step index, timestep, {"latents": ...}) -> tensors to go on with; the convention of diffusers
StepCallback = Callable[["VideoAsPromptPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

# what `denoise` gives, from the pipeline, conditions, start noise, number of steps, guidance, where to go on, and how
Loop = Callable[
    ["VideoAsPromptPipeline", Conditions, Tensor, int, float, LoopState | None, Approximations], Iterator[DenoisingStep]
]


class VideoAsPromptPipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Carries what happens in a reference video over to a start image.

    render_size: short and long side in pixels that this checkpoint always renders at; None: at any size.
    num_inference_steps, guidance_scale: the checkpoint's own number of denoising steps, and its own guidance.

    encoding_cache: where encodings are kept; in memory unless replaced by one with a folder.
    fingerprint: stands for the encoders' weights in the cache's keys.
    splits_guidance: whether guidance branches run one after the other, which takes less memory; see `denoise`.
    loop: runs the denoising loop; `pipeline.parallel` puts one in its place that several devices share.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(
        self,
        transformer: VideoAsPromptTransformer3DModel,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel,
        tokenizer: T5TokenizerFast,
        image_encoder: CLIPVisionModel,
        image_processor: CLIPImageProcessorPil,
        scheduler: Any,
        render_size: Sequence[int] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_processor=image_processor,
            scheduler=scheduler,
        )
        self.register_to_config(
            render_size=tuple(render_size) if render_size else None,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        self.video_processor = VideoProcessor(vae_scale_factor=vae.config.scale_factor_spatial)
        self._interrupt = False
        self.encoding_cache = EncodingCache()
        self.fingerprint = uuid.uuid4().hex
        self.loop: Loop = run_alone
        self.splits_guidance = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **components: Any,
    ) -> Self:
        """Load a checkpoint in the released layout, from a folder or from the hub, strictly.

        dtype: of transformer and text encoder; see `checkpoint.load_components`.
        components: parts to use as they are (`vae=...`, `scheduler=...`).
        Raises ModelError when files are missing, not whole, or another model's, TypeError for any other argument.
        """
        if unknown := sorted(set(components) - set(checkpoint.FOLDERS)):
            raise TypeError(
                f"from_pretrained() has no argument {', '.join(unknown)}. It takes dtype, revision, cache_dir, token, "
                f"local_files_only, and parts of the model to use as they are: {', '.join(checkpoint.FOLDERS)}."
            )
        folder = checkpoint.fetch_checkpoint(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        pipe = cls(**checkpoint.load_components(folder, dtype, components))
        if not components:
            pipe.fingerprint = fingerprint_files(folder, ENCODERS)
        return pipe

    @property
    def interrupt(self) -> bool:
        """Whether a step callback asked, by setting `_interrupt`, to decode what there is and end."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image,
        reference_video: Sequence[Image.Image],
        prompt: str,
        reference_prompt: str,
        negative_prompt: str | None = None,
        negative_reference_prompt: str | None = None,
        height: int = 480,
        width: int = 832,
        num_frames: int = 49,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        approximations: Approximations = EXACT,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        last_image: Image.Image | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> WanPipelineOutput | tuple[Any]:
        """Make a video; a list of generators makes one for each.

        image, last_image: the start image and, if wanted, where to end; stretched to the size.
        reference_video: frames of the clip; `num_frames` of them are chosen evenly and stretched to the size. None of
            the caller's pictures or lists is changed.
        prompt, reference_prompt: what should happen to the image; what the reference shows.
        negative_prompt, negative_reference_prompt: None is the model's published default, "" the empty text.
        height, width: pixels, multiples of 16. num_frames: 4k + 1.
        num_inference_steps, guidance_scale: None is the checkpoint's own, of the released one 50 and 5. Guidance of 1
            or less leaves out the unconditional pass, and with it the negative prompts.
        approximations: what to give up for speed; nothing unless asked.
        generator: on the CPU, which makes the start noise equal on every device. Or give that noise as `latents`,
            (B, z, T, h, w), standard normal.
        callback_on_step_end: called as diffusers calls it. It may return {"latents": ...} to go on with others, set
            `pipe._interrupt = True` to decode what there is, or raise, which ends the run.
        output_type: "pil", "np" (B, F, height, width, 3) in [0, 1], "pt" (B, F, 3, height, width) in [0, 1], or
            "latent", the final latents (B, z, T, h, w), float32 and still normalised.
        Raises InvalidInputError, naming the argument, before any work is done.
        """
        if num_inference_steps is None:
            num_inference_steps = self.config.num_inference_steps
        if guidance_scale is None:
            guidance_scale = self.config.guidance_scale
        self._check_inputs(image, reference_video, prompt, reference_prompt, height, width, num_frames)
        self._check_options(num_inference_steps, last_image, output_type)
        self._interrupt = False
        try:
            conditions = self.encode_conditions(
                image=image,
                reference_video=reference_video,
                texts=(prompt, reference_prompt),
                negative_texts=(negative_prompt, negative_reference_prompt) if guidance_scale > 1 else None,
                height=height,
                width=width,
                num_frames=num_frames,
                last_image=last_image,
            )
            latents = self.prepare_latents(conditions, generator, latents)
            steps = self.denoise(
                conditions, latents, num_inference_steps, guidance_scale, approximations=approximations
            )
            latents = self._run_loop(steps, num_inference_steps, callback_on_step_end)
            frames = latents if output_type == "latent" else self.decode_latents(latents, output_type)
        finally:
            self.maybe_free_model_hooks()
        return WanPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def encode_conditions(
        self,
        *,
        image: Image.Image,
        reference_video: Sequence[Image.Image],
        texts: tuple[str, str],
        negative_texts: tuple[str | None, str | None] | None,
        height: int,
        width: int,
        num_frames: int,
        last_image: Image.Image | None = None,
    ) -> Conditions:
        """Encode all that was given. texts, negative_texts: of the target and of the reference; see `__call__`."""
        # All texts in one visit, then all pictures: under offload each visit moves a whole encoder. And each is sent
        # away after it: on its own it makes room only for the next one, which the cache may leave uncalled.
        positive = self._encode_texts(texts)
        negative = None if negative_texts is None else self._encode_texts(negative_texts)
        self.maybe_free_model_hooks()
        frames = [reference_video[index] for index in choose_frames(len(reference_video), num_frames)]
        image_embeds, reference_image_embeds = (self._encode_image(picture) for picture in (image, frames[0]))
        self.maybe_free_model_hooks()

        size = (height, width)
        # Where the end is given, the reference shows the network what a given end looks like.
        reference_end = None if last_image is None else frames[-1]
        reference = [
            self._encode_clip(frames, size),
            self._encode_condition(frames[0], reference_end, num_frames, size),
        ]
        condition_latents = self._encode_condition(image, last_image, num_frames, size)
        self.maybe_free_model_hooks()
        return Conditions(
            positive=positive,
            negative=negative,
            image_embeds=image_embeds,
            reference_image_embeds=reference_image_embeds,
            condition_latents=condition_latents,
            reference_latents=torch.cat(reference, dim=1),
        )

    def _encode_texts(self, texts: tuple[str | None, str | None]) -> Texts:
        return Texts(*(self._encode_text(DEFAULT_NEGATIVE_PROMPT if text is None else text) for text in texts))

    # Each of these asks the cache first; what it computes depends on nothing but the key and the weights.

    def _encode_text(self, text: str) -> TextStates:
        def compute() -> dict[str, Tensor]:
            return vars(encode_text(text, self.tokenizer, self.text_encoder))

        key = make_key("text", self.fingerprint, _number_format(self.text_encoder), text)
        return TextStates(**self.encoding_cache.get(key, compute))

    def _encode_image(self, picture: Image.Image) -> Tensor:
        def compute() -> dict[str, Tensor]:
            return {"states": encode_image(picture, self.image_processor, self.image_encoder)}

        key = make_key("image", self.fingerprint, _number_format(self.image_encoder), picture)
        return self.encoding_cache.get(key, compute)["states"]

    def _encode_condition(
        self, first: Image.Image, last: Image.Image | None, num_frames: int, size: tuple[int, int]
    ) -> Tensor:
        def compute() -> dict[str, Tensor]:
            end = None if last is None else stretch_to_pixels([last], *size)
            return {"latents": encode_condition(stretch_to_pixels([first], *size), end, num_frames, self.vae)}

        key = make_key("condition", self.fingerprint, self._vae_format(), size, num_frames, first, last)
        return self.encoding_cache.get(key, compute)["latents"]

    def _encode_clip(self, frames: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
        def compute() -> dict[str, Tensor]:
            return {"latents": encode_pixels(stretch_to_pixels(frames, *size), self.vae)}

        key = make_key("clip", self.fingerprint, self._vae_format(), size, *frames)
        return self.encoding_cache.get(key, compute)["latents"]

    def _vae_format(self) -> tuple[str, bool]:
        return _number_format(self.vae), self.vae.use_tiling

    def prepare_latents(
        self,
        conditions: Conditions,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        """Give the start noise, (B, z, T, h, w), float32, on the CPU: the caller's, or drawn from the generators."""
        videos = len(generator) if isinstance(generator, list) else 1
        shape = (videos, self.transformer.config.out_channels, *conditions.condition_latents.shape[2:])
        if latents is None:
            return randn_tensor(shape, generator=generator, device=torch.device("cpu"), dtype=torch.float32)
        if latents.shape[1:] != shape[1:]:
            message = f"The start noise has the shape {tuple(latents.shape)}; for this size it is {shape}."
            raise InvalidInputError("latents", message)
        return latents.float()

    @torch.no_grad()
    def denoise(
        self,
        conditions: Conditions,
        latents: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        resume_from: LoopState | None = None,
        approximations: Approximations = EXACT,
    ) -> Iterator[DenoisingStep]:
        """Denoise start noise (B, z, T, h, w), float32, step by step; see `pipeline.denoise.denoise`."""
        latents = latents.to(self._execution_device)
        arguments = (num_inference_steps, guidance_scale, resume_from, approximations)
        yield from self.loop(self, conditions, latents, *arguments)

    def _run_loop(
        self, steps: Iterator[DenoisingStep], num_inference_steps: int, callback: StepCallback | None
    ) -> Tensor:
        with self.progress_bar(total=num_inference_steps) as bar:
            for step in steps:
                if callback is not None:
                    replaced = callback(self, step.index, step.timestep, {"latents": step.latents}) or {}
                    step.latents = replaced.get("latents", step.latents)
                bar.update()
                if self._interrupt:
                    break
        return step.latents

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, output_type: str) -> Any:
        """Decode normalised latents (B, z, T, h, w) to frames; `output_type` as in `__call__`."""
        latents = latents.to(get_module_execution_device(self.vae))
        mean, std = (statistic.to(latents) for statistic in latent_statistics(self.vae))
        pixels = self.vae.decode((latents / (1.0 / std) + mean).to(self.vae.dtype), return_dict=False)[0]
        return self.video_processor.postprocess_video(pixels, output_type=output_type)

    def _check_inputs(
        self,
        image: Image.Image,
        reference_video: Sequence[Image.Image],
        prompt: str,
        reference_prompt: str,
        height: int,
        width: int,
        num_frames: int,
    ) -> None:
        for field, text in (("prompt", prompt), ("reference_prompt", reference_prompt)):
            if not isinstance(text, str):
                raise InvalidInputError(field, f"`{field}` must be one text; give one video at a time.")
        _require_picture("image", image)
        if not isinstance(reference_video, Sequence) or not len(reference_video):
            raise InvalidInputError("reference_video", "`reference_video` must be a list of at least one picture.")
        for frame in reference_video:
            _require_picture("reference_video", frame)
        multiple = self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1]
        for field, size in (("height", height), ("width", width)):
            if size < multiple or size % multiple:
                below = max(size - size % multiple, multiple)
                message = f"A video cannot be {size} pixels in {field}; try {below} or {below + multiple}."
                raise InvalidInputError(field, message)
        stride = self.vae.config.scale_factor_temporal
        if num_frames < 1 or (num_frames - 1) % stride:
            below = max(num_frames - (num_frames - 1) % stride, 1)
            message = f"A video cannot have {num_frames} frames; try {below} or {below + stride}."
            raise InvalidInputError("num_frames", message)

    def _check_options(self, num_inference_steps: int, last_image: Image.Image | None, output_type: str) -> None:
        if num_inference_steps < 1:
            raise InvalidInputError("num_inference_steps", f"{num_inference_steps} steps make nothing; try 1 or more.")
        if last_image is not None:
            _require_picture("last_image", last_image)
        if output_type not in OUTPUT_TYPES:
            message = f"There is no output type {output_type!r}; try one of {', '.join(OUTPUT_TYPES)}."
            raise InvalidInputError("output_type", message)


def run_alone(
    pipe: VideoAsPromptPipeline,
    conditions: Conditions,
    latents: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    resume_from: LoopState | None,
    approximations: Approximations,
) -> Iterator[DenoisingStep]:
    """Run the denoising loop in this process."""
    scheduler = prepare_scheduler(pipe.scheduler, num_inference_steps, latents.device)
    options = (resume_from, approximations, pipe.splits_guidance)
    return denoise(pipe.transformer, scheduler, conditions, latents, guidance_scale, *options)


def _number_format(model: torch.nn.Module) -> str:
    return f"{model.dtype} {get_module_execution_device(model).type}"


def _require_picture(field: str, picture: Any) -> None:
    if not isinstance(picture, Image.Image):
        raise InvalidInputError(field, f"`{field}` takes PIL pictures, not {type(picture).__name__}.")
