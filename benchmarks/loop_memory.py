"""What the denoising loop holds at its peak at the released 14B's size, beside the other implementations.

    python -m benchmarks.loop_memory [--reference CHECKOUT] [--diffsynth PACKAGE] [--dtype bfloat16]

Counted on torch's meta device, 480 x 832 and 49 frames, one guided step with its preparation: all tensors that are
alive at once beside weights and inputs. A kernel of attention that never holds the table of all pairs is assumed, in
all of them; what a device's allocator adds is not in it. CHECKOUT and PACKAGE as for `benchmarks.denoising`.
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
from benchmarks.denoising_contender import BUILDERS, Network, draw_inputs, run
from benchmarks.live_memory import peak_bytes

ROOT = Path(__file__).parents[1]
RELEASED = Network(heads=40, ffn_dim=13824, latent_shape=(1, 16, 13, 60, 104))


def _attend(query: Tensor, *given: Any, **options: Any) -> Tensor:
    return torch.empty_like(query)


def count(name: str, dtype: torch.dtype, folder: Path) -> int:
    """Give the peak of one contender, in bytes."""
    network = replace(RELEASED, folder=folder)
    with torch.device("meta"), patch("torch.nn.functional.scaled_dot_product_attention", _attend):
        inputs = draw_inputs(network)
        known: list[Tensor] = []
        load = Network.load

        def remember(network: Network, *given: Any) -> dict[str, Tensor]:
            weights = load(network, *given)
            known.extend(weights.values())
            return weights

        with patch.object(Network, "load", remember):
            begin = BUILDERS[name](network, inputs, dtype)
        return peak_bytes([*known, *inputs.values()], lambda: run(begin, inputs["noise"], 1))


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
        print(count(name, getattr(torch, arguments.dtype), Path(folder)))
        return
    print(f"| {arguments.dtype} | peak of the loop, GB |")
    print("| --- | --- |")
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
            print(f"| {name} | {int(ended.stdout.splitlines()[-1]) / 1e9:.1f} |", flush=True)


if __name__ == "__main__":
    main()
