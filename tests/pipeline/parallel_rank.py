"""One rank of `test_parallel.py`: rank 0 stops a video, makes another, and ends; the other follows until then."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from pipeline import VideoAsPromptPipeline, parallel
from pipeline.ranks import is_follower
from tests.pipeline.conftest import GOLDEN, read_golden


def main() -> None:
    torch.set_num_threads(1)
    parallel.join()
    pipe = VideoAsPromptPipeline.from_pretrained(GOLDEN / "tiny_vap")
    torch.ops.aten._scaled_dot_product_flash_attention = attend_on_processor
    with patch("torch.accelerator.device_count", return_value=1):  # diffusers divides by it, on a CPU by zero
        parallel.share_out(pipe, ring_degree=int(sys.argv[2]))
    tokens: list[int] = []
    block = pipe.transformer.blocks[0].attn1.to_q
    block.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    if not is_follower():
        golden = read_golden("pipeline_a")
        arguments = golden.arguments() | {"latents": golden["in.latents"], "output_type": "latent"}
        pipe(**arguments, callback_on_step_end=stop)
        torch.save(pipe(**arguments).frames, sys.argv[1])
    else:
        parallel.follow(pipe)
    (Path(sys.argv[1]).parent / f"tokens_{dist.get_rank()}").write_text(str(tokens[0]))


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
