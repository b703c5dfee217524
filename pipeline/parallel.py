"""One video on several devices: each process of a `torchrun` holds a share of the tokens.

    torchrun --nproc-per-node 8 app.py

Rank 0 serves; the others follow it through every denoising loop. Encoding and decoding are rank 0's alone: they are a
few seconds, and the results would have to be sent around. Sources, as diffusers has them: Ulysses, arXiv:2309.14509;
rings, arXiv:2310.01889; both together, arXiv:2405.07719.

A step that fails in one process leaves the others in a collective that nothing ends, and those who left it cannot come
back. So the failure is told to all; who leads gets the error, those who follow end, and torchrun then starts all anew.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor

from pipeline.attention import use_attention
from pipeline.conditioning import Conditions
from pipeline.denoise import Approximations, DenoisingStep, LoopState
from pipeline.errors import InvalidInputError, StudioError, is_out_of_memory
from pipeline.profiles import apply_profile
from pipeline.ranks import find_rank, is_follower
from pipeline.video_as_prompt import VideoAsPromptPipeline, run_alone

# What a ring passes around is put together by the logarithms of softmax's sums, which torch's usual one does not tell.
RING_ATTENTION = "_native_flash"
IDLE = timedelta(days=365)  # how long followers wait for the next request
COLLECTIVE = timedelta(minutes=30)  # how long processes wait for each other within a step
LETTING_GO_S = 0.5
LISTEN_EVERY_S = 0.5
HEARD_S = 2.0  # until all have heard of a failure
FAILED_END_S = 5.0  # then a follower ends, wherever it is
ENDED_END_S = 30.0  # the same once the leader has ended; long before, it ends by itself
ENDED_BY_S = 60.0  # all processes, by torchrun, once followers have failed
ENDED = "The leader has ended."


def choose_degrees(heads: int, processes: int, ring_degree: int = 1) -> ContextParallelConfig:
    """Share attention out: `ring_degree` processes in a ring hold the keys of some tokens each, and those that do not
    stand in it (Ulysses) all tokens of some heads.

    By heads alone any number of heads and tokens will do, and in a ring alone any number of tokens (on GPUs: gloo
    cannot gather unequal shares). Where both are wanted, the heads must divide, and the tokens of each request, as
    `profiles.generate_as_planned` makes sure of.
    Raises InvalidInputError where the heads do not, or where the processes form no such rings.
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


class Alarm:
    """Tells all processes, by the store they met at, that it is over, and why: once, whoever comes first."""

    def __init__(self, store: Any) -> None:
        # A connection of its own: on the other one, a thread that waits keeps all others waiting.
        self._store = store.clone()
        self._reason: str | None = None

    def ring(self, reason: str) -> str:
        """Tell that it is over. Gives the reason that holds: an earlier one, if there is one."""
        self._reason = self._store.compare_set("over", "", reason).decode()
        return self._reason

    def check(self) -> None:
        """Raise RuntimeError with the reason if it is over."""
        if self._reason is not None:
            raise RuntimeError(self._reason)

    @property
    def is_ringing(self) -> bool:
        """Whether this process has heard that it is over."""
        return self._reason is not None

    def listen(self, on_end: Callable[[str], None]) -> None:
        """Call `on_end` with the reason once it is over, in a thread of its own."""

        def wait() -> None:
            with suppress(RuntimeError):  # the store has gone, and who kept it, as every connection will tell
                while not self._store.check(["over"]):
                    time.sleep(LISTEN_EVERY_S)
                self._reason = self._store.get("over").decode()
                on_end(self._reason)

        threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class Team:
    """What a process has in common with the others. device: this one's. requests: the group they are sent in.

    store: where they met; small things are left there for each other.
    """

    device: torch.device
    requests: Any
    store: Any
    alarm: Alarm
    _aborting: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: object) -> None:
        """Send something from the leader to all others."""
        dist.broadcast_object_list([message], src=0, group=self.requests, device=torch.device("cpu"))

    def receive(self) -> Any:
        """Wait for what the leader sends next."""
        box: list[object] = [None]
        dist.broadcast_object_list(box, src=0, group=self.requests, device=torch.device("cpu"))
        return box[0]

    def hear_end(self, reason: str) -> None:
        """End a follower that does not end by itself; free a leader that waits on its card for others."""
        if is_follower():
            time.sleep(ENDED_END_S if reason == ENDED else FAILED_END_S)
            os._exit(int(reason != ENDED))
        if reason != ENDED:
            self.abort()

    def abort(self) -> None:
        """End what this process's card waits for. On a processor a wait ends with the process at its other end."""
        with self._aborting:
            if self.device.type == "cuda" and dist.is_initialized():
                dist.distributed_c10d._abort_process_group()


@cache
def join() -> Team:
    """Meet the other processes."""
    device = torch.device("cuda", find_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Time without end to meet, since a worker loads its model only when the first job comes; then less for a step.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=IDLE)
    # gloo: requests travel as objects on the CPU, and waiting for them must not occupy a GPU
    requests = dist.new_group(backend="gloo", timeout=IDLE)
    dist.distributed_c10d._set_pg_timeout(COLLECTIVE)
    store = dist.distributed_c10d._get_default_store()
    team = Team(device, requests, store, Alarm(store))
    team.alarm.listen(team.hear_end)
    atexit.register(_leave, team)
    return team


def _leave(team: Team) -> None:
    if not is_follower():
        with suppress(RuntimeError):  # the store may have gone already
            team.alarm.ring(ENDED)
    # One of gloo's threads may still be about to let go of what was sent last. If it gets to that when the interpreter
    # is going already, the process ends with SIGABRT: github.com/pytorch/pytorch, pull request 179291.
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(LETTING_GO_S)


def tell_profile(name: str) -> None:
    """Tell the followers the profile to load the model in."""
    join().store.set("profile", name)


def await_profile() -> str:
    """Wait until the leader tells the profile to load the model in, and give its name."""
    store = join().store
    store.wait(["profile"], IDLE)
    name: bytes = store.get("profile")
    return name.decode()


def share_out(pipe: VideoAsPromptPipeline, ring_degree: int = 1) -> None:
    """Let the transformer, on this process's device, work on its share of the tokens.

    Raises InvalidInputError as `choose_degrees` does, and where no attention on this machine can go in a ring.
    """
    transformer = pipe.transformer
    config = choose_degrees(transformer.config.num_attention_heads, dist.get_world_size(), ring_degree)
    if config.ring_degree > 1 and transformer.blocks[0].attn1.processor._attention_backend is None:
        use_attention(transformer, RING_ATTENTION)
    dist.barrier(join().requests)  # some load for much longer than what follows may wait
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
    """Run the denoising loop with all followers in step; ended early between steps, they end their part too.

    Raises what a step does, RuntimeError for one that failed in another process; StudioError from then on.
    """
    team = join()
    if team.alarm.is_ringing:
        # torchrun ends this process any moment now, and the next one goes on with what it leaves.
        time.sleep(ENDED_BY_S)
        raise StudioError("One of the processes that make each video together has failed; start the program again.")
    arguments = (num_inference_steps, guidance_scale, resume_from, approximations)
    profile = getattr(pipe, "memory_profile", None)
    try:
        team.send((profile, pipe.splits_guidance, conditions, latents.cpu(), *arguments))
        for step in run_alone(pipe, conditions, latents, *arguments):
            team.alarm.check()  # what a card goes on with, once it no longer waits, is of no use
            yield step
            team.alarm.check()
            if step.index + 1 < step.total:
                team.send(step.latents.cpu())  # a caller may have put others in their place
    except GeneratorExit:
        if not team.alarm.is_ringing:
            team.send(None)
        raise
    except BaseException as error:
        own = _describe(error)
        reason = team.alarm.ring(own)
        team.abort()
        if reason != own:
            raise RuntimeError(reason) from error
        raise
    team.send(None)


def follow(pipe: VideoAsPromptPipeline) -> None:
    """Take part in the leader's loops until it ends. Raises what a step does, once all others know of it."""
    team = join()
    while (request := _await_request(team)) is not None:
        try:
            take_part(pipe, request, team)
        except BaseException as error:
            if team.alarm.ring(_describe(error)) == ENDED:
                return
            time.sleep(HEARD_S)
            raise


def _describe(error: BaseException) -> str:
    """Tell an error to the other processes; who reads it can see if it was for want of memory."""
    kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
    return f"Process {os.environ['RANK']} of those that make the video failed: {kind}: {error}"


def _await_request(team: Team) -> Any:
    try:
        return team.receive()
    except RuntimeError:  # the connection is closed: the leader has gone
        return None


@torch.no_grad()
def take_part(pipe: VideoAsPromptPipeline, request: Any, team: Team) -> None:
    """Take part in one of the leader's loops, from what it sent, in the profile that its weights wait in."""
    profile, pipe.splits_guidance, conditions, latents, *arguments = request
    if profile is not None:
        apply_profile(pipe, profile, team.device)
    latents = latents.to(pipe._execution_device)
    for step in run_alone(pipe, conditions, latents, *arguments):
        replaced = team.receive()
        if replaced is None:
            return
        step.latents = replaced.to(latents.device)
