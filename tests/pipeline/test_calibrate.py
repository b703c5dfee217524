"""Comparing an approximate run with the exact one, on the tiny checkpoint."""

import json
import math
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import media
from pipeline.__main__ import main
from pipeline.calibrate import Calibration, calibrate, make_exact, measure_distance, measure_psnr, write_sheet
from pipeline.errors import InvalidInputError
from pipeline.estimate import read_shape
from pipeline.hardware import PROFILES
from pipeline.history import History
from pipeline.lora_shelf import LoraShelf
from pipeline.planner import Planner, read_facts
from pipeline.spec import GenerationRequest, GenerationSpec, settle
from pipeline.weights import load_in_profile
from tests.pipeline.conftest import GOLDEN
from tests.pipeline.lora_files import diffusers_weights, lightx2v_weights, write_lora
from tests.pipeline.machines import processor
from tests.pipeline.test_generate import SMALL, request_fields  # noqa: F401 (a fixture)

TINY = GOLDEN / "tiny_vap"


@pytest.fixture
def compare(request_fields: dict[str, Any], tmp_path: Path) -> Any:  # noqa: F811 (the fixture above)
    """Gives a comparison of the plain run with a changed one, and the picture it wrote."""
    made = replace(settle(GenerationRequest(**request_fields), SMALL, random.Random(0)), height=64, width=96)
    spec = replace(made, num_inference_steps=4)
    (tmp_path / "loras").mkdir()
    write_lora(tmp_path / "loras" / "style.safetensors", diffusers_weights())
    write_lora(tmp_path / "loras" / "fast.safetensors", lightx2v_weights())
    pipe = load_in_profile(TINY, next(one for one in PROFILES if one.name == "float32"), processor())
    planner = Planner(read_facts("tiny", TINY), read_shape(TINY), processor(), History(None))

    def run(**changes: Any) -> tuple[Calibration, Image.Image]:
        approximate: GenerationSpec = replace(spec, **changes)
        shelf, sheet = LoraShelf(tmp_path / "loras"), tmp_path / "sheet.png"
        found = calibrate(make_exact(spec), approximate, pipe, tmp_path, sheet, planner, shelf)
        with Image.open(sheet) as picture:
            return found, picture.convert("RGB")

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": "style"},
        {"lora": "fast", "num_inference_steps": 2, "guidance_scale": 1.0},
        {"cache_threshold": 0.9},
        {"guided_share": 0.5},
    ],
    ids=str,
)
def test_each_way_of_being_quicker_is_measured(compare: Any, changes: dict[str, Any]) -> None:
    """LoRAs of both formats, the cache, less guidance: another video, near or far, and a picture of both."""
    found, sheet = compare(**changes)

    assert len(found.psnr_db) == 9
    assert 3 < min(found.psnr_db) < math.inf
    assert found.latent_distance > 1e-4
    assert min(found.exact_s, found.approximate_s) > 0
    assert sheet.size == (6 * 240, 2 * (24 + 120))


def test_what_changes_nothing_has_no_distance(compare: Any) -> None:
    """A LoRA of strength 0, after one that acted, is the exact run; so both runs share nothing but their inputs."""
    compare(lora="style")

    found, sheet = compare(lora="style", lora_strength=0.0)

    assert found.latent_distance == 0
    assert set(found.psnr_db) == {math.inf}
    assert "all frames are the same" in found.describe()
    pixels = np.asarray(sheet)
    assert (pixels[24:144] == pixels[168:288]).all()


def test_two_runs_that_ask_for_the_same_are_refused(compare: Any) -> None:
    """Before either is made."""
    with pytest.raises(InvalidInputError, match="Both runs would be the same; give a LoRA"):
        compare()


def test_the_measures_are_the_usual_ones() -> None:
    """A difference of 16 everywhere is 24.05 dB; twice the latents are one norm away."""
    black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (16, 16, 16))

    assert measure_psnr(black, grey) == pytest.approx(20 * math.log10(255 / 16))
    assert measure_psnr(grey, grey) == math.inf
    assert measure_distance(torch.ones(4), 2 * torch.ones(4)) == pytest.approx(1.0)


def test_a_short_video_makes_a_narrow_sheet(tmp_path: Path) -> None:
    """As many columns as there are frames."""
    write_sheet([Image.new("RGB", (48, 32))], [Image.new("RGB", (48, 32), "red")], tmp_path / "sheet.jpg")

    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (240, 2 * (24 + 160))


def test_the_report_says_times_and_distances() -> None:
    """In words and numbers a person can compare."""
    told = Calibration((math.inf, 40.0, 30.0), 0.125, 8.0, 2.0).describe()

    assert "exact 8.0 s, approximate 2.0 s, 4.00 times as fast" in told
    assert "PSNR: 35.0 dB, at worst 30.0 dB" in told
    assert "same 40.0 30.0" in told
    assert "0.1250 of the exact ones’ size" in told


@pytest.fixture
def call(
    request_fields: dict[str, Any],  # noqa: F811 (the fixture above)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., int]:
    """Gives the exit code of the command line, for a tiny model that draws tiny pictures."""
    model = shutil.copytree(TINY, tmp_path / "tiny")
    options = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(options | {"render_size": [16, 32], "num_inference_steps": 3}))
    usual = ["--model", str(model), "--profile", "float32"]
    for name, value in request_fields.items():
        usual += [f"--{name.replace('_', '-')}", str(value)]

    def run(*words: str) -> int:
        command, own = (list(words[:1]), words[1:]) if words[0] == "calibrate" else ([], words)
        monkeypatch.setattr(sys, "argv", ["pipeline", *command, *usual, *own])
        return main()

    return run


def test_the_command_line_compares(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A LoRA by its path, with steps and guidance of its own; the report and the picture come out."""
    lora = write_lora(tmp_path / "fast.safetensors", lightx2v_weights())
    quick = ["--lora", str(lora), "--approximate-steps", "1", "--approximate-guidance", "1"]

    assert call("calibrate", *quick, "--output", str(tmp_path / "sheet.png")) == 0

    told = capsys.readouterr().out
    assert "times as fast" in told
    assert "sheet.png: frames of both" in told
    assert (tmp_path / "sheet.png").is_file()


def test_the_command_line_makes_a_video_with_a_lora(call: Callable[..., int], tmp_path: Path) -> None:
    """Its settings name the file, not the path, and how strongly it acted."""
    lora = write_lora(tmp_path / "fast.v2.safetensors", lightx2v_weights())

    assert call("--lora", str(lora), "--lora-strength", "0.8", "--output", str(tmp_path / "out.mp4")) == 0

    settings = media.read_settings(tmp_path / "out.mp4")
    assert settings is not None
    assert (settings["lora"], settings["lora_strength"]) == ("fast.v2", 0.8)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--lora", "none.safetensors", "--output", "a.mp4"],
            "“none.safetensors” is no .safetensors file that is there",
        ),
        (["--lora", "{tmp}/clip.mp4", "--output", "a.mp4"], "clip.mp4” is no .safetensors file that is there"),
        (["--lora-strength", "2.5", "--output", "a.mp4"], "The strength of the LoRA is 2.5; it can be from 0 to 2."),
        (["--cache-threshold", "2", "--output", "a.mp4"], "below is 2; it can be from 0 to 1."),
        (["--guided-share", "-1", "--output", "a.mp4"], "The share of guided steps is -1; it can be from 0 to 1."),
        (["--attention", "quick", "--output", "a.mp4"], "The attention “quick” cannot be used: there is none of that"),
        (["calibrate", "--output", "a.gif"], "“a.gif” has no ending for it; give a name that ends in .png or .jpg."),
        (["calibrate", "--output", "a.png"], "Both runs would be the same; give a LoRA"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_told_in_a_sentence(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    """With exit code 2, and nothing is written."""
    assert call(*(word.replace("{tmp}", str(tmp_path)) for word in words)) == 2

    told = capsys.readouterr().err.splitlines()[-1]
    assert sentence in told
    assert not Path(words[-1]).exists()
