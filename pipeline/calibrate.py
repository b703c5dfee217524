r"""Exact or quicker? Makes a video both ways on this machine, with the same inputs and seed, and compares them.

    python -m pipeline calibrate --reference-video clip.mp4 ... --lora fast.safetensors --approximate-steps 4 \
        --approximate-guidance 1 --output sheet.png

What an approximation costs depends on the clip, the picture and the model; these numbers are of one case.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.errors import InvalidInputError
from pipeline.generate import Drawn, OnProgress, Progress, draw
from pipeline.lora_shelf import NO_LORAS, LoraShelf
from pipeline.planner import Planner
from pipeline.profiles import make_ready
from pipeline.spec import GenerationSpec

SHEET_COLUMNS, CELL_WIDTH, LABEL_HEIGHT = 6, 240, 24


@dataclass(frozen=True)
class Calibration:
    """What a comparison found.

    psnr_db: of each frame, infinite where both are the same; latent_distance: of the final latents, in shares of the
    exact ones' size (0: equal); exact_s, approximate_s: what denoising took.
    """

    psnr_db: tuple[float, ...]
    latent_distance: float
    exact_s: float
    approximate_s: float

    def describe(self) -> str:
        """Say it in a few lines."""
        frames = " ".join("same" if math.isinf(value) else f"{value:.1f}" for value in self.psnr_db)
        finite = [value for value in self.psnr_db if not math.isinf(value)]
        mean = f"{fmean(finite):.1f} dB, at worst {min(finite):.1f} dB" if finite else "all frames are the same"
        return (
            f"Drawing: exact {self.exact_s:.1f} s, approximate {self.approximate_s:.1f} s, "
            f"{self.exact_s / max(self.approximate_s, 1e-9):.2f} times as fast\n"
            f"PSNR: {mean}\nPSNR of each frame, dB: {frames}\n"
            f"Distance of the final latents: {self.latent_distance:.4f} of the exact ones’ size"
        )


def make_exact(spec: GenerationSpec) -> GenerationSpec:
    """Give the same video with nothing left out and no LoRA."""
    return replace(spec, cache_threshold=0.0, guided_share=1.0, lora=None)


def calibrate(
    exact: GenerationSpec,
    approximate: GenerationSpec,
    pipe: Any,
    folder: Path,
    sheet: Path,
    planner: Planner,
    loras: LoraShelf = NO_LORAS,
    on_progress: OnProgress = lambda progress: None,
) -> Calibration:
    """Make both videos, write their frames one above the other to `sheet`, and compare them.

    exact, approximate: of one seed and size. folder: for what the runs save meanwhile.
    Raises InvalidInputError when both ask for the same, and what `generate` does.
    """
    if exact == approximate:
        message = "Both runs would be the same; give a LoRA, --cache-threshold, --guided-share or --approximate-steps."
        raise InvalidInputError("cache_threshold", message)
    # The approximate one first: what is wrong with its LoRA is told before the long run.
    (quick, quick_s), (whole, whole_s) = (
        _draw_timed(spec, pipe, folder / f"{name}.pt", planner, loras, on_progress)
        for name, spec in (("approximate", approximate), ("exact", exact))
    )
    write_sheet(whole.frames, quick.frames, sheet)
    psnr = tuple(measure_psnr(a, b) for a, b in zip(whole.frames, quick.frames, strict=True))
    return Calibration(psnr, measure_distance(whole.latents, quick.latents), whole_s, quick_s)


def _draw_timed(
    spec: GenerationSpec, pipe: Any, state_path: Path, planner: Planner, loras: LoraShelf, on_progress: OnProgress
) -> tuple[Drawn, float]:
    """Give a video and how long its denoising took, without what is encoded before, which the other run reuses."""
    moments: dict[str, float] = {}

    def note(progress: Progress) -> None:
        moments[progress.stage] = time.monotonic()
        on_progress(progress)

    make_ready(spec, pipe, planner.plan(spec), planner.machine, loras, on_progress)
    drawn = draw(spec, pipe, state_path, note)
    return drawn, moments["decoding"] - moments["encoding"]


def measure_psnr(one: Image.Image, other: Image.Image) -> float:
    """Give the peak signal-to-noise ratio of two pictures of one size, dB; infinite when they are the same."""
    difference = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    error = float((difference**2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def measure_distance(exact: Tensor, other: Tensor) -> float:
    """Give the Euclidean distance of latents, as a share of the exact ones' norm."""
    return float((other.float() - exact.float()).norm() / exact.float().norm())


def write_sheet(exact: Sequence[Image.Image], approximate: Sequence[Image.Image], path: Path) -> None:
    """Write a picture: evenly chosen frames of both videos, the exact one's above."""
    columns = min(SHEET_COLUMNS, len(exact))
    chosen = [round(index * (len(exact) - 1) / max(columns - 1, 1)) for index in range(columns)]
    width, height = CELL_WIDTH, round(exact[0].height * CELL_WIDTH / exact[0].width)
    sheet = Image.new("RGB", (columns * width, 2 * (LABEL_HEIGHT + height)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, frames) in enumerate((("exact", exact), ("approximate", approximate))):
        top = row * (LABEL_HEIGHT + height)
        for column, index in enumerate(chosen):
            pen.text((column * width + 6, top + 6), f"{label}, frame {index + 1}", fill="black")
            sheet.paste(frames[index].resize((width, height)), (column * width, top + LABEL_HEIGHT))
    sheet.save(path)
