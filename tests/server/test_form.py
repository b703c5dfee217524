"""The form: what stands in it becomes a request, or sentences at the fields concerned."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MediaError
from pipeline.presets import load_presets
from pipeline.spec import GenerationRequest
from server.form import (
    CHOICES,
    FIELDS,
    FOLDED_FIELDS,
    SLIDERS,
    SOURCES,
    fill_form,
    fill_from_settings,
    find_problems,
    read_form,
    read_what_fits,
    restore_value,
    starting_values,
)

FILLED = {
    "reference_video": "clip.mp4",
    "image": "picture.png",
    "video_description": "A ball grows.",
    "prompt": "The vase grows.",
    "aspect_ratio": "16:9",
    "resolution": "480p",
    "num_frames": 17,
    "seed": "",
    "guidance_scale": 5,
    "num_inference_steps": "",
    "fps": 16,
    "negative_prompt": "",
    "reference_start_s": "",
    "reference_end_s": "",
    "cache_threshold": 0,
    "guided_share": 1,
    "lora": "",
    "lora_strength": 1,
    "enable_safety_checker": True,
}

STARTS = starting_values(guidance_scale=3.0)


def values(**changes: Any) -> list[Any]:
    form = {**FILLED, **changes}
    return [form[field] for field in FIELDS]


def accept(request: GenerationRequest) -> None:
    """A check of media that finds nothing."""


def test_an_empty_field_means_you_choose() -> None:
    """Seed, steps, negative prompt and the clip's bounds may stay empty; the rest is as given."""
    request = read_form(values())

    assert (request.seed, request.num_inference_steps, request.negative_prompt) == (None, None, None)
    assert (request.reference_video, request.num_frames, request.aspect_ratio) == (Path("clip.mp4"), 17, "16:9")


def test_numbers_may_be_typed() -> None:
    """Text fields hold numbers as text."""
    request = read_form(values(seed=" 42 ", reference_start_s="0.5", reference_end_s="2"))

    assert (request.seed, request.reference_start_s, request.reference_end_s) == (42, 0.5, 2.0)


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({}, {}),
        ({"prompt": "  "}, {"prompt": "The prompt is missing."}),
        (
            {"image": None, "reference_video": None},
            {"reference_video": "The reference video is missing.", "image": "The start image is missing."},
        ),
        ({"num_frames": 48}, {"num_frames": "A video cannot have 48 frames; try 45 or 49."}),
        ({"seed": "1.5"}, {"seed": "The seed is '1.5'; it must be a whole number."}),
        (
            {"reference_start_s": "2", "reference_end_s": "1"},
            {"reference_end_s": "The reference would end at 1 s but start at 2 s; end it later."},
        ),
    ],
)
def test_every_problem_has_its_field_and_sentence(changes: dict[str, Any], problems: dict[str, str]) -> None:
    """All of them at once, so that nobody mends one to hear of the next."""
    assert find_problems(values(**changes), accept) == problems


def test_problems_of_the_files_are_told_at_the_files() -> None:
    """What media calls start_s is the page's reference_start_s."""

    def refuse(request: GenerationRequest) -> None:
        raise MediaError("start_s", "The start is outside of the clip.")

    assert find_problems(values(), refuse) == {"reference_start_s": "The start is outside of the clip."}


def test_files_are_not_opened_for_a_form_with_gaps() -> None:
    """There may be none."""

    def explode(request: GenerationRequest) -> None:
        raise AssertionError

    assert list(find_problems(values(prompt=""), explode)) == ["prompt"]


def test_an_example_fills_the_form_with_its_own_request() -> None:
    """Reading the form back gives what the preset says, and the model's own guidance where it says none."""
    for preset in load_presets(model="nano"):
        own = {} if preset.request.guidance_scale else {"guidance_scale": 3.0}
        assert read_form(fill_form(preset, STARTS)) == preset.request.model_copy(update=own)


def test_the_form_has_every_field_of_a_request() -> None:
    """Whatever a request can ask for, a person can."""
    assert set(FIELDS) == set(GenerationRequest.model_fields)
    assert set(FOLDED_FIELDS) < set(FIELDS)


def test_the_settings_of_a_result_fill_the_form_again() -> None:
    """With the seed it drew, and everything of a result that is no field left out."""
    settings = {**FILLED, "seed": 7, "num_inference_steps": 20, "negative_prompt": None, "model": "nano", "width": 832}
    settings |= {"reference_start_s": 0.5, "reference_end_s": None, "enable_safety_checker": False}
    files = {"reference_video": "kept/clip.mp4", "image": "kept/picture.png"}

    request = read_form(fill_from_settings(settings, files, STARTS))

    assert (request.seed, request.num_inference_steps, request.reference_start_s) == (7, 20, 0.5)
    assert (request.negative_prompt, request.enable_safety_checker) == (None, False)
    assert (request.reference_video, request.image) == (Path("kept/clip.mp4"), Path("kept/picture.png"))


def test_a_file_that_is_gone_leaves_its_field_empty() -> None:
    """And fields that a request left out get what the form began with."""
    form = dict(zip(FIELDS, fill_from_settings({"prompt": "It grows."}, {}, STARTS), strict=True))

    assert (form["reference_video"], form["image"], form["video_description"]) == (None, None, "")
    assert (form["num_frames"], form["seed"], form["enable_safety_checker"]) == (49, "", True)
    assert (form["guidance_scale"], form["num_inference_steps"]) == (3.0, "")
    assert (form["cache_threshold"], form["guided_share"], form["lora"], form["lora_strength"]) == (0, 1, "", 1)


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, set()),
        ({"prompt": "", "image": None}, {"prompt", "image"}),
        ({"seed": "abc", "num_frames": 48}, {"seed", "num_frames"}),
        ({"reference_start_s": "2", "reference_end_s": "1"}, {"reference_end_s"}),
    ],
)
def test_what_fits_is_read_and_the_rest_left_out(changes: dict[str, Any], left_out: set[str]) -> None:
    """For programs made of a form that nobody has filled yet."""
    form = {**FILLED, "seed": "7", **changes}
    expected = {field for field, value in form.items() if value != ""} - left_out

    read = read_what_fits(values(**{"seed": "7", **changes}))

    assert set(read) == expected
    assert read.get("seed", 7) == 7


@pytest.mark.parametrize(
    ("field", "kept", "restored"),
    [
        ("prompt", "Half a sen", "Half a sen"),
        ("prompt", "x" * 20_000, "x" * 20_000),
        ("prompt", "x" * 20_001, ""),
        ("prompt", ["a"], ""),
        ("seed", "not yet a number", "not yet a number"),
        ("num_frames", 48, 48),
        ("num_frames", 4, 49),
        ("num_frames", 122, 49),
        ("num_frames", True, 49),
        ("num_frames", "21", 49),
        ("guidance_scale", 7.5, 7.5),
        ("guidance_scale", 21, 3.0),
        ("guidance_scale", None, 3.0),
        ("guided_share", 0, 0),
        ("guided_share", 1.1, 1.0),
        ("cache_threshold", -0.1, 0.0),
        ("aspect_ratio", "16:9", "16:9"),
        ("aspect_ratio", "1:1", "9:16"),
        ("resolution", None, "480p"),
        ("enable_safety_checker", False, False),
        ("enable_safety_checker", "no", True),
        ("image", "/etc/passwd", None),
    ],
)
def test_a_field_takes_back_what_it_can_hold(field: str, kept: Any, restored: Any) -> None:
    """Right or wrong, as it was typed; its default for what an older page kept, or somebody made up."""
    assert restore_value(field, kept, STARTS) == restored


def test_every_field_is_known_by_its_kind() -> None:
    """A new slider or choice would otherwise be brought back as a text."""
    texts = {"video_description", "prompt", "negative_prompt", "seed", "num_inference_steps"}
    texts |= {"reference_start_s", "reference_end_s", "lora"}

    assert set(FIELDS) == texts | set(SLIDERS) | set(CHOICES) | {*SOURCES, "enable_safety_checker"}
