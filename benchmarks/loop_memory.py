"""What the denoising loop needs of memory at the released 14B's size, beside the other implementations.

    python -m benchmarks.loop_memory [--reference CHECKOUT] [--diffsynth PACKAGE] [--dtype bfloat16]

Counted on torch's meta device, 480 x 832 and 49 frames, one guided step: the weights that it reads, which is what must
lie on a card or be streamed to it, and all tensors that are alive at once beside weights and inputs, preparation
included. A kernel of attention that never holds the table of all pairs is assumed, in all of them; what a device's
allocator adds is not in it. CHECKOUT and PACKAGE as for `benchmarks.denoising`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.denoising import find_paths, search_path
from benchmarks.denoising_contender import BUILDERS, Network, count_weights, draw_inputs, run
from benchmarks.live_memory import peak_bytes

ROOT = Path(__file__).parents[1]
RELEASED = Network(heads=40, ffn_dim=13824, latent_shape=(1, 16, 13, 60, 104))


def _attend(query: Tensor, *given: Any, **options: Any) -> Tensor:
    return torch.empty_like(query)


def count(name: str, dtype: torch.dtype, folder: Path) -> tuple[int, int]:
    """Give the weights that one contender's step reads, and its loop's peak beside weights, in bytes."""
    network = replace(RELEASED, folder=folder)
    with torch.device("meta"), patch("torch.nn.functional.scaled_dot_product_attention", _attend):
        inputs = draw_inputs(network)
        loop = BUILDERS[name](network, inputs, dtype)
        peak = peak_bytes([*loop.weights, *inputs.values()], lambda: run(loop.begin, inputs["noise"], 1))
        return count_weights(loop, inputs["noise"]), peak


def main() -> None:
    """Count all contenders, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop_memory", description=__doc__)
    parser.add_argument("--reference", type=lambda text: Path(text).resolve())
    parser.add_argument("--diffsynth", type=lambda text: Path(text).resolve())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--count", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        name, folder = arguments.count
        print(*count(name, getattr(torch, arguments.dtype), Path(folder)))
        return
    print(f"| {arguments.dtype}, GB | weights read | peak beside weights | both |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: list(weight.shape) for name, weight in RELEASED.build().state_dict().items()}
        (Path(folder) / "shapes.json").write_text(json.dumps(sizes))
        for name, path in find_paths(arguments).items():
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.loop_memory", "--count", name, folder]
            ended = subprocess.run(
                [*command, "--dtype", arguments.dtype],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env=os.environ | search_path(path),
                cwd=ROOT,
            )
            weights, peak = (int(number) / 1e9 for number in ended.stdout.splitlines()[-1].split())
            print(f"| {name} | {weights:.1f} | {peak:.1f} | {weights + peak:.1f} |", flush=True)


if __name__ == "__main__":
    main()
