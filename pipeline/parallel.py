"""One video on several devices: each process of a `torchrun` holds a share of the tokens.

    torchrun --nproc-per-node 8 app.py

Rank 0 serves; the others follow it through every denoising loop. Encoding and decoding are rank 0's alone: they are a
few seconds, and the results would have to be sent around. Source: Ulysses, arXiv:2309.14509, as diffusers has it.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor

from pipeline.conditioning import Conditions
from pipeline.denoise import Approximations, DenoisingStep, LoopState
from pipeline.ranks import is_follower
from pipeline.video_as_prompt import VideoAsPromptPipeline, run_alone

IDLE = timedelta(days=365)  # how long followers wait for the next request


def choose_degrees(heads: int, processes: int) -> ContextParallelConfig:
    """Share attention out by heads as far as they divide, by tokens in a ring beyond that.

    Ulysses alone also takes token counts that do not divide, on GPUs (gloo cannot gather unequal shares).
    """
    if heads % processes == 0:
        return ContextParallelConfig(ulysses_degree=processes, ulysses_anything=True)
    ulysses = max(degree for degree in range(1, processes + 1) if processes % degree == 0 and heads % degree == 0)
    return ContextParallelConfig(ulysses_degree=ulysses, ring_degree=processes // ulysses)


def join() -> torch.device:
    """Meet the other processes; give this one's device."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # gloo beside nccl: requests travel as objects on the CPU, and waiting for them must not occupy a GPU
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=IDLE)
    return device


def share_out(pipe: VideoAsPromptPipeline) -> None:
    """Let the transformer, on this process's device, work on its share of the tokens."""
    heads = pipe.transformer.config.num_attention_heads
    pipe.transformer.enable_parallelism(config=choose_degrees(heads, dist.get_world_size()))
    if not is_follower():
        pipe.loop = lead


def lead(
    pipe: VideoAsPromptPipeline,
    conditions: Conditions,
    latents: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    resume_from: LoopState | None,
    approximations: Approximations,
) -> Iterator[DenoisingStep]:
    """Run the denoising loop with all followers in step; ended early, they end too."""
    arguments = (num_inference_steps, guidance_scale, resume_from, approximations)
    _send((pipe.splits_guidance, conditions, latents.cpu(), *arguments))
    try:
        for step in run_alone(pipe, conditions, latents, *arguments):
            yield step
            if step.index + 1 < step.total:
                _send(step.latents.cpu())  # a caller may have put others in their place
    finally:
        _send(None)


def follow(pipe: VideoAsPromptPipeline) -> None:
    """Take part in the leader's loops until it ends."""
    while (request := _await_request()) is not None:
        take_part(pipe, request)


def _await_request() -> Any:
    try:
        return _receive()
    except RuntimeError:  # the connection is closed: the leader has gone
        return None


@torch.no_grad()
def take_part(pipe: VideoAsPromptPipeline, request: Any) -> None:
    """Take part in one of the leader's loops, from what it sent."""
    pipe.splits_guidance, conditions, latents, *arguments = request
    latents = latents.to(pipe._execution_device)
    for step in run_alone(pipe, conditions, latents, *arguments):
        replaced = _receive()
        if replaced is None:
            return
        step.latents = replaced.to(latents.device)


def _send(message: object) -> None:
    dist.broadcast_object_list([message], src=0, device=torch.device("cpu"))


def _receive() -> Any:
    box: list[object] = [None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]
