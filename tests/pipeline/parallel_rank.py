"""One rank of `test_parallel.py`: rank 0 makes videos, and the others follow it."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pipeline.importing import importing

with importing("diffusers"):
    import torch
    import torch.distributed as dist

    from pipeline import VideoAsPromptPipeline, parallel
    from pipeline.errors import is_out_of_memory
    from pipeline.hardware import PROFILES
    from pipeline.planner import make_planner
    from pipeline.profiles import apply_profile
    from pipeline.ranks import is_follower
    from pipeline.weights import follow_leader, load_model
    from tests.pipeline.conftest import GOLDEN, read_golden

TINY = GOLDEN / "tiny_vap"
FETCHING = replace(next(one for one in PROFILES if one.name == "sequential"), weights="float32")


def main() -> None:
    torch.set_num_threads(1)
    torch.ops.aten._scaled_dot_product_flash_attention = attend_on_processor
    folder, scenario, argument = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with patch("torch.accelerator.device_count", return_value=1):  # diffusers divides by it, on a CPU by zero
        {"videos": make_videos, "failure": fail_in_a_step, "loading": load}[scenario](folder, argument)


def make_videos(folder: Path, ring_degree: int) -> None:
    """Stop a video, make another with weights that wait elsewhere, and end."""
    pipe = join(ring_degree)
    tokens: list[int] = []
    block = pipe.transformer.blocks[0].attn1.to_q
    block.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    if not is_follower():
        make_video(pipe, callback_on_step_end=stop)
        apply_profile(pipe, FETCHING, torch.device("cpu"))
        torch.save(make_video(pipe).frames, folder / "latents.pt")
    else:
        parallel.follow(pipe)
    (folder / f"tokens_{dist.get_rank()}").write_text(str(tokens[0]))
    (folder / f"profile_{dist.get_rank()}").write_text(pipe.memory_profile.name)


def fail_in_a_step(folder: Path, failing: int) -> None:
    """Let one rank run out of memory in the second step; the leader says what it got, and stays until told to end."""
    pipe = join()
    if dist.get_rank() == failing:
        pipe.transformer.blocks[1].attn1.to_q.register_forward_pre_hook(fail_at(2))
    if is_follower():
        parallel.follow(pipe)
    started = time.monotonic()
    try:
        make_video(pipe)
    except RuntimeError as error:
        told = f"{is_out_of_memory(error)} {time.monotonic() - started < 20}"
        (folder / "told").write_text(told)
    while not (folder / "end").exists():
        time.sleep(0.1)


def load(folder: Path, _: int) -> None:
    """Load a model, the leader in a profile that the others would not take."""
    if is_follower():
        with patch("pipeline.parallel.follow", lambda pipe: note_profile(folder, pipe)):
            follow_leader(str(TINY))
    else:
        load_model(str(TINY), planner=make_planner(str(TINY), "bf16"))


def note_profile(folder: Path, pipe: VideoAsPromptPipeline) -> None:
    (folder / "loaded").write_text(f"{pipe.memory_profile.name} {pipe.transformer.dtype}")


def join(ring_degree: int = 1) -> VideoAsPromptPipeline:
    parallel.join()
    pipe = VideoAsPromptPipeline.from_pretrained(TINY)
    parallel.share_out(pipe, ring_degree)
    return pipe


def make_video(pipe: VideoAsPromptPipeline, **options: Any) -> Any:
    golden = read_golden("pipeline_a")
    return pipe(**golden.arguments(), latents=golden["in.latents"], output_type="latent", **options)


def fail_at(call: int) -> Callable[..., None]:
    """Give a hook that is out of memory at a layer's n-th call."""
    calls = iter(range(1, call + 1))

    def fail(*_: Any) -> None:
        if next(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return fail


def attend_on_processor(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, **options: Any
) -> tuple[Any, ...]:
    """What diffusers calls in a ring exists on CUDA only; torch's kernel for processors tells the same two things."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return *attend(query, key, value, scale=scale), *[None] * 7


def stop(pipe: VideoAsPromptPipeline, index: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    pipe._interrupt = True


if __name__ == "__main__":
    main()
