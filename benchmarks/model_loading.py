"""What loading a sharded checkpoint takes in time and memory: `python -m benchmarks.model_loading`."""

import sys
import tempfile
from pathlib import Path

import torch

from tests.pipeline.large_checkpoint import load_in_a_fresh_process, write_checkpoint

NUM_LAYERS = 12  # 0.7 GB in bfloat16


def main() -> None:
    """Measure and print, for each type stored, type wanted, and with one shard at a time or several."""
    sys.stdout.write("| stored | wanted | shards | weights, MB | peak, MB | in no file, MB | seconds |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- | --- |\n")
    with tempfile.TemporaryDirectory() as folder:
        for stored in ("bfloat16", "float32"):
            model = write_checkpoint(Path(folder) / stored, NUM_LAYERS, getattr(torch, stored))
            for wanted in ("bfloat16", "float32"):
                for is_parallel in ("0", "1"):
                    took = load_in_a_fresh_process(model, wanted, HF_ENABLE_PARALLEL_LOADING=is_parallel)
                    sizes = (took.weights_bytes, took.peak_bytes, took.anonymous_bytes)
                    shards = "several" if took.is_parallel else "one"
                    figures = " | ".join(f"{size / 1e6:.0f}" for size in sizes)
                    sys.stdout.write(f"| {stored} | {wanted} | {shards} | {figures} | {took.seconds:.1f} |\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
