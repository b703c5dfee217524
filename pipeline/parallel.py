"""One video on several devices: each process of a `torchrun` holds a share of the tokens.

    torchrun --nproc-per-node 8 app.py

Rank 0 serves; the others follow it through every denoising loop. Encoding and decoding are rank 0's alone: they are a
few seconds, and the results would have to be sent around. Sources, as diffusers has them: Ulysses, arXiv:2309.14509;
rings, arXiv:2310.01889; both together, arXiv:2405.07719.
"""

import atexit
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor

from pipeline.attention import use_attention
from pipeline.conditioning import Conditions
from pipeline.denoise import Approximations, DenoisingStep, LoopState
from pipeline.errors import InvalidInputError
from pipeline.ranks import is_follower
from pipeline.video_as_prompt import VideoAsPromptPipeline, run_alone

# What a ring passes around is put together by the logarithms of softmax's sums, which torch's usual one does not tell.
RING_ATTENTION = "_native_flash"
IDLE = timedelta(days=365)  # how long followers wait for the next request
LETTING_GO_S = 0.5


def choose_degrees(heads: int, processes: int, ring_degree: int = 1) -> ContextParallelConfig:
    """Share attention out: `ring_degree` processes in a ring hold the keys of some tokens each, and those that do not
    stand in it (Ulysses) all tokens of some heads.

    By heads alone any number of heads and tokens will do, and in a ring alone any number of tokens (on GPUs: gloo
    cannot gather unequal shares). Where both are wanted, the heads must divide.
    Raises InvalidInputError where they do not, or where the processes form no such rings.
    """
    if processes % ring_degree:
        fitting = ", ".join(str(degree) for degree in range(1, processes + 1) if processes % degree == 0)
        message = f"{processes} processes cannot form rings of {ring_degree}; give one of {fitting}."
        raise InvalidInputError("ring_degree", message)
    ulysses_degree = processes // ring_degree
    if ring_degree == 1:
        return ContextParallelConfig(ulysses_degree=ulysses_degree, ulysses_anything=True)
    if ulysses_degree == 1:
        return ContextParallelConfig(ring_degree=ring_degree, ring_anything=True)
    if heads % ulysses_degree:
        message = (
            f"{heads} heads cannot be dealt out to {ulysses_degree} processes beside rings of {ring_degree}; try 1."
        )
        raise InvalidInputError("ring_degree", message)
    return ContextParallelConfig(ring_degree=ring_degree, ulysses_degree=ulysses_degree)


def join() -> torch.device:
    """Meet the other processes; give this one's device."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # gloo beside nccl: requests travel as objects on the CPU, and waiting for them must not occupy a GPU
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=IDLE)
        atexit.register(_leave)
    return device


def _leave() -> None:
    # One of gloo's threads may still be about to let go of what was sent last. If it gets to that when the interpreter
    # is going already, the process ends with SIGABRT: github.com/pytorch/pytorch, pull request 179291.
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(LETTING_GO_S)


def share_out(pipe: VideoAsPromptPipeline, ring_degree: int = 1) -> None:
    """Let the transformer, on this process's device, work on its share of the tokens.

    Raises InvalidInputError as `choose_degrees` does, and where no attention on this machine can go in a ring.
    """
    transformer = pipe.transformer
    config = choose_degrees(transformer.config.num_attention_heads, dist.get_world_size(), ring_degree)
    if config.ring_degree > 1 and transformer.blocks[0].attn1.processor._attention_backend is None:
        use_attention(transformer, RING_ATTENTION)
    transformer.enable_parallelism(config=config)
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
