"""The picture of the model card: what a checkpoint makes of the page's examples."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pipeline import VideoAsPromptPipeline
from pipeline.generate import draw
from pipeline.presets import load_presets
from pipeline.spec import ModelFacts, settle

SHOWN = 5  # frames of each clip
GAP, LARGE_GAP = 2, 10  # pixels between frames, and between examples


def draw_presets(model: Path, out: Path) -> None:
    """Write a JPEG: for each preset frames of the reference, and below them those that the model makes."""
    pipe = VideoAsPromptPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    facts = ModelFacts.of(model.name, pipe.config)
    rows, gaps = [], []
    for preset in load_presets(model=model.name):
        spec = settle(preset.request, facts, random.Random(0))
        with TemporaryDirectory() as folder:
            drawn = draw(spec, pipe, Path(folder) / "state.pt", lambda _: None)
        rows += [_set_beside(clip, (spec.render_width, spec.render_height)) for clip in (drawn.reference, drawn.frames)]
        gaps += [GAP, LARGE_GAP]
    heights = [row.height + gap for row, gap in zip(rows, gaps, strict=True)]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(heights) - LARGE_GAP), "white")
    for index, row in enumerate(rows):
        sheet.paste(row, (0, sum(heights[:index])))
    sheet.save(out, quality=90)


def _set_beside(clip: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    """Set some frames of a clip, from the first to the last, beside each other in a size (width, height)."""
    width, height = size
    row = Image.new("RGB", (SHOWN * (width + GAP) - GAP, height), "white")
    for index in range(SHOWN):
        frame = clip[index * (len(clip) - 1) // (SHOWN - 1)].resize(size, Image.Resampling.LANCZOS)
        row.paste(frame, (index * (width + GAP), 0))
    return row
