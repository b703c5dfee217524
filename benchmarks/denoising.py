"""The denoising loop beside the reference implementation's and DiffSynth-Studio's, on a small twin of the 14B.

    python -m benchmarks.denoising [--reference CHECKOUT] [--diffsynth PACKAGE]
        [--dtype bfloat16] [--steps 4] [--rounds 3]

The twin has the 14B's 40 blocks and 10 experts, but 3 heads instead of 40, so that attention, linear layers and the
rest share its work in a similar way. Every contender is a process of one thread with the same weights and inputs; they
run in turn, so that a busy machine slows all of them. Figures are CPU seconds, medians over the rounds. Memory is what
the loop needs: the weights that a step reads, which is what must lie on a card or be streamed to it, and what the
process holds at the loop's peak beside all loaded weights.

CHECKOUT: of github.com/bytedance/Video-As-Prompt, which holds its own diffusers. PACKAGE: a folder into which
`pip install --target PACKAGE --no-deps diffsynth` has installed. Both import `einops`, found beside them or installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("studio", "split")  # split: with one guidance branch after the other, as on small cards


@dataclass(frozen=True)
class Result:
    """One run of one contender. cpu_s: seconds; peak_mb: of the loop, beside the loaded weights."""

    cpu_s: float
    peak_mb: float


class Contender:
    """A process that runs the loop when told to."""

    def __init__(self, name: str, folder: Path, arguments: argparse.Namespace, path: Path | None) -> None:
        self.name = name
        self.output = folder / f"{name}.pt"
        environment = os.environ | search_path(path) | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.denoising_contender", name]
        options = [str(folder), str(self.output), arguments.dtype, str(arguments.steps)]
        self.process = subprocess.Popen(
            [*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        self.weights_mb = self._read()["weights_mb"]

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"The contender “{self.name}” ended; its message stands above.")
        return json.loads(line)

    def run(self) -> Result:
        """Run the loop once."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return Result(**self._read())


def find_paths(arguments: argparse.Namespace) -> dict[str, Path | None]:
    """Give the contenders that were asked for, with the folder that each is imported from; ours are here."""
    paths: dict[str, Path | None] = dict.fromkeys(OURS)
    if arguments.reference is not None:
        paths["reference"] = arguments.reference / "diffusers" / "src"
    if arguments.diffsynth is not None:
        paths["diffsynth"] = arguments.diffsynth
    return paths


def search_path(path: Path | None) -> dict[str, str]:
    """Give the environment in which a contender is found: a checkout's own diffusers before the installed one."""
    folders = [*([] if path is None else [path.parent, path]), ROOT]
    return {"PYTHONPATH": os.pathsep.join(str(folder) for folder in folders)}


def main() -> None:
    """Run all contenders in turn and print a table."""
    arguments = build_parser().parse_args()
    paths = find_paths(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write = [
            sys.executable,
            "-m",
            "benchmarks.denoising_contender",
            "write",
            str(folder),
            "-",
            arguments.dtype,
            "0",
        ]
        subprocess.run(write, check=True, cwd=ROOT)
        contenders = [Contender(name, folder, arguments, path) for name, path in paths.items()]
        results: dict[str, list[Result]] = {name: [] for name in paths}
        for number in range(arguments.rounds):
            for contender in contenders:
                results[contender.name].append(contender.run())
                print(number + 1, contender.name, asdict(results[contender.name][-1]), file=sys.stderr, flush=True)
        print_table(results, {contender.name: contender.weights_mb for contender in contenders}, arguments)
        for name, difference in measure_differences(contenders).items():
            print(f"largest difference of {name}'s latents: {difference:.1e}")
        for contender in contenders:
            contender.process.kill()
            contender.process.wait()


def measure_differences(contenders: list[Contender]) -> dict[str, float]:
    """Give how far each contender's latents are from the first one's, at most."""
    import torch

    latents = {contender.name: torch.load(contender.output) for contender in contenders}
    first = latents[contenders[0].name]
    return {name: (other - first).abs().max().item() for name, other in latents.items()}


def print_table(results: dict[str, list[Result]], weights_mb: dict[str, float], arguments: argparse.Namespace) -> None:
    """Print medians, and ratios to our own loop, as Markdown."""
    own = statistics.median(result.cpu_s for result in results["studio"])
    print(f"\n{arguments.dtype}, {arguments.steps} guided steps, {arguments.rounds} rounds\n")
    print("| | CPU seconds a step | as often as ours | weights read, MB | peak beside weights, MB | both, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, runs in results.items():
        seconds = statistics.median(run.cpu_s for run in runs)
        peak = statistics.median(run.peak_mb for run in runs)
        speed = f"{seconds / arguments.steps:.1f} | {seconds / own:.2f}"
        print(f"| {name} | {speed} | {weights_mb[name]:.0f} | {peak:.0f} | {weights_mb[name] + peak:.0f} |")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoising", description=__doc__)
    parser.add_argument("--reference", type=lambda text: Path(text).resolve())
    parser.add_argument("--diffsynth", type=lambda text: Path(text).resolve())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
