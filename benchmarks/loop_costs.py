"""What the denoising loop costs in memory and arithmetic, at the released 14B's size, beside the other implementations.

    python -m benchmarks.loop_costs [--reference CHECKOUT] [--diffsynth PACKAGE] [--dtype bfloat16] [--twin]

Counted on torch's meta device, 480 x 832 and 49 frames, one guided step: the weights that it reads, which is what must
lie on a card or be streamed to it; all tensors that are alive at once beside weights and inputs, preparation included;
and the sums and products of linear layers, convolutions and attention, preparation left out. A kernel of attention that
never holds the table of all pairs is assumed, in all of them; what a device's allocator adds is not in it. CHECKOUT and
PACKAGE as for `benchmarks.denoising`. --twin: the small twin that is timed there instead.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.denoising import find_paths, search_path
from benchmarks.denoising_contender import BUILDERS, TWIN, Loop, Network, count_weights, draw_inputs, run
from benchmarks.live_memory import peak_bytes

ROOT = Path(__file__).parents[1]
RELEASED = Network(heads=40, ffn_dim=13824, latent_shape=(1, 16, 13, 60, 104))


@dataclass
class Attention:
    """Stands in for torch's attention, and counts its work."""

    operations: int = 0

    def __call__(self, query: Tensor, key: Tensor, *given: Any, **options: Any) -> Tensor:
        """Give a result of the right shape. A pair of tokens is multiplied once for its logit, once with its value."""
        self.operations += 2 * 2 * query.numel() * key.shape[-2]
        return torch.empty_like(query)


@torch.no_grad()
def count_operations(loop: Loop, noise: Tensor, attention: Attention) -> int:
    """Give the sums and products of a step, once all is prepared."""
    predict = loop.begin(1)
    attention.operations = 0
    with FlopCounterMode(display=False) as others:
        predict(0, noise)
    return others.get_total_flops() + attention.operations


def count(name: str, dtype: torch.dtype, network: Network) -> tuple[int, int, int]:
    """Give the weights that one contender's step reads, its loop's peak beside weights, in bytes, and its work."""
    attention = Attention()
    with torch.device("meta"), patch("torch.nn.functional.scaled_dot_product_attention", attention):
        inputs = draw_inputs(network)
        loop = BUILDERS[name](network, inputs, dtype)
        peak = peak_bytes([*loop.weights, *inputs.values()], lambda: run(loop.begin, inputs["noise"], 1))
        weights = count_weights(loop, inputs["noise"])
        return weights, peak, count_operations(loop, inputs["noise"], attention)


def main() -> None:
    """Count all contenders, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop_costs", description=__doc__)
    parser.add_argument("--reference", type=lambda text: Path(text).resolve())
    parser.add_argument("--diffsynth", type=lambda text: Path(text).resolve())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--count", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    network = TWIN if arguments.twin else RELEASED
    if arguments.count:
        name, folder = arguments.count
        print(*count(name, getattr(torch, arguments.dtype), replace(network, folder=Path(folder))))
        return
    print(f"| {arguments.dtype}, GB | weights read | peak beside weights | both | TFLOP |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: list(weight.shape) for name, weight in network.build().state_dict().items()}
        (Path(folder) / "shapes.json").write_text(json.dumps(sizes))
        for name, path in find_paths(arguments).items():
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.loop_costs", "--count", name, folder]
            ended = subprocess.run(
                [*command, "--dtype", arguments.dtype, *(["--twin"] if arguments.twin else [])],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env=os.environ | search_path(path),
                cwd=ROOT,
            )
            weights, peak, work = (int(number) for number in ended.stdout.splitlines()[-1].split())
            memory = f"{weights / 1e9:.2f} | {peak / 1e9:.2f} | {(weights + peak) / 1e9:.2f}"
            print(f"| {name} | {memory} | {work / 1e12:.4g} |", flush=True)


if __name__ == "__main__":
    main()
