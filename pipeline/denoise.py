"""The denoising loop: schedule, guidance, steps. It takes conditions and noise and gives latents."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor

from pipeline.conditioning import Conditions, TextStates
from pipeline.heap import give_back_freed_memory, keep_freed_memory
from pipeline.transformer import RequestStates, VideoAsPromptTransformer3DModel

# What diffusers' multistep flow schedulers carry from step to step; Euler has the first alone.
SOLVER_MEMORY = ("_step_index", "model_outputs", "timestep_list", "lower_order_nums", "this_order", "last_sample")


@dataclass(frozen=True)
class LoopState:
    """All that is needed to go on after a step: how many are done, the latents then, and the solver's memory.

    The solver is a multistep one: it looks back at earlier predictions, so latents alone would not give the same video.
    """

    steps_done: int
    latents: Tensor
    solver: dict[str, Any]


@dataclass
class DenoisingStep:
    """One finished step: `index` counts from 0; latents (B, z, T, h, w), float32, after it.

    Whoever receives it may put other latents in their place; the loop goes on with those.
    """

    index: int
    total: int
    timestep: Tensor
    latents: Tensor
    scheduler: Any

    def state(self) -> LoopState:
        """Give what `denoise` needs to go on after this step in another process; `torch.save` can write it."""
        present = vars(self.scheduler)
        solver = {name: copy(present[name]) for name in SOLVER_MEMORY if name in present}
        return LoopState(self.index + 1, self.latents, solver)


def prepare_scheduler(scheduler: Any, num_inference_steps: int, device: torch.device) -> Any:
    """Give a fresh scheduler like the given one, its timesteps set by the schedule the model was published with.

    Schedulers keep state, so each run has its own. UniPC changed its flow schedule after diffusers 0.34, with which the
    model was published: unshifted sigmas ran from 0.999 to 0.999 / n there. Given by hand, they are taken as they are,
    and the scheduler applies its shift. The expression is the old one to the letter, since timesteps are truncated.
    """
    scheduler = type(scheduler).from_config(scheduler.config)
    if scheduler.config.get("use_flow_sigmas") and "sigmas" in _parameters(scheduler.set_timesteps):
        last = 1 / scheduler.config.num_train_timesteps
        sigmas = np.flip(1 - np.linspace(1, last, num_inference_steps + 1))[:-1].copy()
        scheduler.set_timesteps(sigmas=sigmas, device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    return scheduler


def _parameters(function: Any) -> tuple[str, ...]:
    return function.__code__.co_varnames[: function.__code__.co_argcount]


def apply_guidance(noise_pred: Tensor, noise_uncond: Tensor, guidance_scale: float) -> Tensor:
    """Push the prediction away from the unconditional one.

    noise_pred, noise_uncond: (B, z, T, h, w), float32. Source: Imagen, arXiv:2205.11487, eq. 2, where the scale is w.
    """
    return noise_uncond + guidance_scale * (noise_pred - noise_uncond)


@dataclass(frozen=True)
class Approximations:
    """What makes the loop quicker and its result another one; the defaults are exact.

    cache_threshold: 0 to 1; a step whose first block changes by less than this share repeats what the other blocks
        added in the step before (first-block cache, as diffusers has it); 0 never does.
    guided_share: 0 to 1, of the steps that are guided, the first ones; the others follow the texts alone.
    """

    cache_threshold: float = 0.0
    guided_share: float = 1.0


EXACT = Approximations()


def denoise(
    transformer: VideoAsPromptTransformer3DModel,
    scheduler: Any,
    conditions: Conditions,
    latents: Tensor,
    guidance_scale: float,
    resume_from: LoopState | None = None,
    approximations: Approximations = EXACT,
    splits_guidance: bool = False,
) -> Iterator[DenoisingStep]:
    """Denoise step by step, giving the latents after each.

    scheduler: with its timesteps set, used by this run alone.
    conditions: without `negative` there is no guidance.
    latents: (B, z, T, h, w), float32, standard normal noise.
    resume_from: go on after that step instead, with its latents.
    splits_guidance: run the guidance branches one after the other: half the memory, twice the reading of weights.
    """
    total, done = len(scheduler.timesteps), 0
    if resume_from is not None:
        done, latents = resume_from.steps_done, resume_from.latents.to(latents.device)
        for name, value in resume_from.solver.items():
            setattr(scheduler, name, _to_device(value, latents.device))
    condition_latents = _spread(conditions.condition_latents, latents, transformer.dtype)
    request = prepare_request(transformer, conditions, scheduler.timesteps, latents)
    guided_steps = 0 if conditions.negative is None else math.ceil(total * approximations.guided_share)
    branches = [request.branch(0), request.branch(1)] if splits_guidance else [request]
    with _first_block_cache(transformer, approximations.cache_threshold):
        for index, timestep in list(enumerate(scheduler.timesteps))[done:]:
            if index == guided_steps:
                branches = [request.branch(0)]
                transformer._reset_stateful_cache()  # it may hold both branches
            model_input = torch.cat([latents.to(transformer.dtype), condition_latents], dim=1)
            noise_preds = []
            for number, branch in enumerate(branches):
                with transformer.cache_context(f"branch {number}"):
                    noise_preds.append(transformer(model_input, request.times.at(index), branch))
            # float32: some schedulers return the prediction's type, and latents must not lose precision over the steps
            noise_pred = torch.cat(noise_preds).float()
            if index < guided_steps:
                noise_pred, noise_uncond = noise_pred.chunk(2)
                noise_pred = apply_guidance(noise_pred, noise_uncond, guidance_scale)
            latents = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
            step = DenoisingStep(index, total, timestep, latents, scheduler)
            yield step
            latents = step.latents


@contextmanager
def _first_block_cache(transformer: VideoAsPromptTransformer3DModel, threshold: float) -> Iterator[None]:
    """Let steps that change little repeat the one before, for the time of one run."""
    if not threshold:
        yield
        return
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        yield
    finally:
        transformer.disable_cache()


def prepare_request(
    transformer: VideoAsPromptTransformer3DModel, conditions: Conditions, timesteps: Tensor, latents: Tensor
) -> RequestStates:
    """Let the transformer compute what all steps share, for videos like latents (B, z, T, h, w).

    The positive guidance branch is the first.
    """
    give_back_freed_memory()
    dtype = transformer.dtype
    branches = [texts for texts in (conditions.positive, conditions.negative) if texts is not None]
    text, counts = _spread_texts([texts.target for texts in branches], latents, dtype)
    reference_text, reference_counts = _spread_texts([texts.reference for texts in branches], latents, dtype)
    request = transformer.prepare(
        timesteps=timesteps.to(latents.device),
        encoder_hidden_states=text,
        encoder_hidden_states_image=conditions.image_embeds.to(latents.device, dtype),
        reference_hidden_states=conditions.reference_latents.to(latents.device, dtype),
        reference_encoder_hidden_states=reference_text,
        reference_encoder_hidden_states_image=conditions.reference_image_embeds.to(latents.device, dtype),
        text_row_counts=counts,
        reference_text_row_counts=reference_counts,
    )
    keep_freed_memory()
    return request


def _spread_texts(
    texts: Sequence[TextStates], latents: Tensor, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Give states (B, n, text_dim) and row counts (B, n), float32, of each text."""
    states = [_spread(text.states, latents, dtype) for text in texts]
    return states, [_spread(text.row_counts, latents, torch.float32) for text in texts]


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to_device(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _spread(tensor: Tensor, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Give a tensor of one video for all videos of latents (B, ...)."""
    return tensor.to(latents.device, dtype).expand(len(latents), *tensor.shape[1:])
