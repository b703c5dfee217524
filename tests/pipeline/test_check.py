"""What is told of a request before any work starts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import media
from pipeline.check import check_inputs
from pipeline.errors import StudioError
from pipeline.spec import GenerationRequest


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """A request that can be made: a clip of one second and a picture."""
    clip = [Image.new("RGB", (64, 48), (10 * index, 90, 160)) for index in range(12)]
    media.write_video(clip, tmp_path / "clip.mp4", fps=12, height=48, width=64)
    Image.new("RGB", (64, 48), "orange").save(tmp_path / "start.png")
    return {
        "prompt": "The square glows.",
        "video_description": "A wall changes its colour.",
        "reference_video": tmp_path / "clip.mp4",
        "image": tmp_path / "start.png",
    }


def test_what_can_be_made_passes(fields: dict[str, Any]) -> None:
    """A whole clip, a picture and two sentences are no reason to complain."""
    assert check_inputs(GenerationRequest(**fields)) is None


REFUSED = [
    ({"reference_video": "start.png"}, "reference_video", "start.png"),
    ({"image": "clip.mp4"}, "image", "clip.mp4"),
    ({"reference_start_s": 5}, "reference_start_s", "A start at 5 s lies outside of the clip"),
    ({"reference_end_s": 9}, "reference_end_s", "An end at 9 s lies outside of the clip"),
    ({"prompt": "a nude figure"}, "prompt", "The safety checker declines “nude”"),
    ({"video_description": "a nude figure"}, "video_description", "The safety checker declines “nude”"),
]


@pytest.mark.parametrize(("changes", "field", "sentence"), REFUSED)
def test_what_cannot_be_made_is_told_at_its_field(
    fields: dict[str, Any], tmp_path: Path, changes: dict[str, Any], field: str, sentence: str
) -> None:
    """The wrong kind of file, a window outside of the clip, a declined text: each names its field."""
    files = {name: tmp_path / value for name, value in changes.items() if name in ("reference_video", "image")}

    with pytest.raises(StudioError) as refusal:
        check_inputs(GenerationRequest(**(fields | changes | files)))

    assert refusal.value.field == field
    assert sentence in refusal.value.message


def test_the_safety_checker_can_be_switched_off(fields: dict[str, Any]) -> None:
    """Without it, texts are nobody's business."""
    request = GenerationRequest(**(fields | {"prompt": "a nude figure", "enable_safety_checker": False}))

    assert check_inputs(request) is None


def test_checking_needs_no_torch() -> None:
    """A page without a worker checks inputs too, and must not wait for torch or hold its memory."""
    program = "import sys, pipeline.check; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
