"""What preparing a second request with the same reference takes beside the first: `python -m benchmarks.preparation`.

Preparing is encoding texts, pictures and the clip into what the denoising loop starts from. The first request finds an
empty cache; the second has another start image and another prompt. nano at its own size with 49 frames and the tiny
checkpoint of the tests, one thread. Figures are CPU seconds, medians over interleaved rounds.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from PIL import Image

from pipeline import VideoAsPromptPipeline, media
from pipeline.encoding_cache import EncodingCache

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "assets" / "examples"
# folder, height, width, frames
MODELS = {
    "nano": (ROOT / "assets" / "nano", 80, 144, 49),
    "tiny": (ROOT / "tests" / "golden" / "tiny_vap", 80, 144, 49),
}


class Preparation:
    """A model and the inputs of two requests."""

    def __init__(self, folder: Path, height: int, width: int, num_frames: int) -> None:
        size = {"height": height, "width": width}
        self.pipe = VideoAsPromptPipeline.from_pretrained(folder)
        self.sizes = {**size, "num_frames": num_frames}
        self.clip = media.read_video(EXAMPLES / "night-reference.mp4", num_frames=num_frames, **size)
        self.images = [media.read_image(EXAMPLES / f"{name}-image.jpg", **size) for name in ("night", "iris")]

    def time_both(self) -> tuple[float, float]:
        """Give the CPU seconds of the first and of the second request."""
        self.pipe.encoding_cache = EncodingCache()
        first, second = self.images
        return self._time(first, "The cat sinks into blue light."), self._time(second, "The cup sinks into blue light.")

    def _time(self, image: Image.Image, prompt: str) -> float:
        began = time.process_time()
        self.pipe.encode_conditions(
            image=image,
            reference_video=self.clip,
            texts=(prompt, "Day turns into night."),
            negative_texts=(None, None),
            **self.sizes,
        )
        return time.process_time() - began


def main() -> None:
    """Measure both models in turn and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preparation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    preparations = {name: Preparation(*sizes) for name, sizes in MODELS.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in MODELS}
    for number in range(rounds + 1):
        for name, preparation in preparations.items():
            both = preparation.time_both()
            if number:  # the first round warms up
                times[name].append(both)
    sys.stdout.write("| model | first request, CPU seconds | second | first / second |\n| --- | --- | --- | --- |\n")
    for name, rows in times.items():
        first, second = (statistics.median(column) for column in zip(*rows, strict=True))
        sys.stdout.write(f"| {name} | {first:.3f} | {second:.3f} | {first / second:.2f} |\n")


if __name__ == "__main__":
    main()
