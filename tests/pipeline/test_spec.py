"""Every field, default and limit of a request."""

import json
import random
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pipeline import spec
from pipeline.spec import GenerationRequest, ModelFacts, explain, settle

GIVEN: dict[str, Any] = {
    "prompt": "The horse inflates and floats away.",
    "video_description": "A sneaker inflates and floats away.",
    "reference_video": "sneaker.mp4",
    "image": "horse.png",
}
MODEL = ModelFacts("14b")


def settled(**changes: Any) -> spec.GenerationSpec:
    return settle(GenerationRequest(**(GIVEN | changes)), MODEL, random.Random(0))


def test_the_defaults_are_the_endpoints() -> None:
    """What a person leaves out is what fal's endpoint would take."""
    made = settled()

    assert (made.num_frames, made.fps, made.aspect_ratio, made.resolution) == (49, 16, "9:16", "480p")
    assert (made.guidance_scale, made.enable_safety_checker) == (5.0, True)
    assert (made.num_inference_steps, made.negative_prompt) == (50, None)
    assert (made.cache_threshold, made.guided_share, made.lora, made.lora_strength) == (0.0, 1.0, None, 1.0)
    assert made.is_exact


@pytest.mark.parametrize("changes", [{"cache_threshold": 0.01}, {"guided_share": 0.99}])
def test_a_spec_knows_what_is_not_exact(changes: dict[str, Any]) -> None:
    """A LoRA changes the model, not how exactly it is computed."""
    assert not settled(**changes).is_exact
    assert settled(lora="fast").is_exact


SIZES = [
    ("480p", "9:16", 832, 480),
    ("480p", "16:9", 480, 832),
    ("580p", "9:16", 1024, 576),
    ("580p", "16:9", 576, 1024),
    ("720p", "9:16", 1280, 720),
    ("720p", "16:9", 720, 1280),
]


@pytest.mark.parametrize(("resolution", "aspect_ratio", "height", "width"), SIZES)
def test_sizes(resolution: str, aspect_ratio: str, height: int, width: int) -> None:
    """Each resolution and aspect has its size, and the model renders at it."""
    made = settled(resolution=resolution, aspect_ratio=aspect_ratio)

    assert (made.height, made.width) == (height, width)
    assert (made.render_height, made.render_width) == (height, width)
    assert height % 16 == width % 16 == 0


def test_every_resolution_has_a_size() -> None:
    """The names and the sizes are one list."""
    assert set(get_args(spec.Resolution)) == set(spec.SIZES)


def test_a_model_with_a_size_of_its_own_renders_at_it() -> None:
    """The file has the size asked for, the model the one it knows, turned alike."""
    small = ModelFacts("nano", num_inference_steps=12, render_size=(80, 144), guidance_scale=3.0)

    made = settle(GenerationRequest(**GIVEN, aspect_ratio="16:9"), small, random.Random(0))

    assert (made.height, made.width) == (480, 832)
    assert (made.render_height, made.render_width) == (80, 144)
    assert (made.num_inference_steps, made.guidance_scale) == (12, 3.0)


def test_a_person_can_overrule_the_model() -> None:
    """Steps and guidance that are given hold, whatever the model has of its own."""
    made = settled(num_inference_steps=7, guidance_scale=1)

    assert (made.num_inference_steps, made.guidance_scale) == (7, 1.0)


def test_a_model_without_facts_of_its_own_has_those_of_the_released_one() -> None:
    """The released model_index.json knows none of them; ours and a pipeline's config do."""
    own = {"render_size": [80, 144], "num_inference_steps": 12, "guidance_scale": 3.0}

    assert ModelFacts.of("14b", {"_class_name": "WanImageToVideoMOTPipeline"}) == ModelFacts("14b", 50, None, 5.0)
    assert ModelFacts.of("nano", own) == ModelFacts("nano", 12, (80, 144), 3.0)


def test_a_seed_is_drawn_once_and_kept() -> None:
    """No seed: one is drawn and stands in the settings. A given one stays."""
    assert settled().settings()["seed"] == random.Random(0).getrandbits(spec.DRAWN_SEED_BITS)
    assert settled(seed=0).seed == 0


def test_settings_are_plain_json_without_paths() -> None:
    """The settings go into files and onto the page: names of files, never where they lay."""
    settings = settled(reference_video="/home/someone/sneaker.mp4").settings()

    assert json.loads(json.dumps(settings)) == settings
    assert settings["reference_video"] == "sneaker.mp4"


ALLOWED = [
    ("num_frames", [5, 49, 81, 121]),
    ("fps", [4, 60]),
    ("guidance_scale", [1, 20]),
    ("num_inference_steps", [1, 100, None]),
    ("seed", [0, spec.MAX_SEED, None]),
    ("prompt", ["a", "a" * spec.MAX_TEXT_LENGTH]),
    ("negative_prompt", [None, "", "a" * spec.MAX_TEXT_LENGTH]),
    ("reference_start_s", [0, 12.5, None]),
    ("cache_threshold", [0, 1]),
    ("guided_share", [0, 1]),
    ("lora", ["a", "a" * spec.MAX_NAME_LENGTH, None]),
    ("lora_strength", [0, 2]),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ALLOWED for value in values])
def test_the_last_good_value_is_taken(field: str, value: Any) -> None:
    """Every limit's inner side is allowed and arrives unchanged."""
    assert getattr(GenerationRequest(**(GIVEN | {field: value})), field) == value


REFUSED = [
    ("num_frames", 50, "A video cannot have 50 frames; try 49 or 53."),
    ("num_frames", 4, "The number of frames is 4; it can be from 5 to 121."),
    ("num_frames", 125, "The number of frames is 125; it can be from 5 to 121."),
    ("fps", 3, "The frame rate is 3; it can be from 4 to 60."),
    ("fps", 61, "The frame rate is 61; it can be from 4 to 60."),
    ("fps", "fast", "The frame rate is 'fast'; it must be a whole number."),
    ("fps", 24.5, "The frame rate is 24.5; it must be a whole number."),
    ("guidance_scale", 0.9, "Guidance is 0.9; it can be from 1 to 20."),
    ("guidance_scale", "strong", "Guidance is 'strong'; it must be a number."),
    ("num_inference_steps", 0, "The number of steps is 0; it can be from 1 to 100."),
    ("num_inference_steps", 101, "The number of steps is 101; it can be from 1 to 100."),
    ("seed", -1, "The seed is -1; it can be from 0 to 9007199254740991."),
    ("aspect_ratio", "1:1", "The aspect ratio is '1:1'; it can be 9:16 or 16:9."),
    ("resolution", "1080p", "The resolution is '1080p'; it can be 480p, 580p or 720p."),
    ("prompt", "", "The prompt is missing."),
    ("prompt", "  ", "The prompt is missing."),
    ("prompt", None, "The prompt is missing."),
    ("prompt", "a" * 4001, "The prompt has 4001 characters; keep it to 4000."),
    ("video_description", "", "The description of the reference video is missing."),
    ("reference_video", None, "The reference video is missing."),
    ("image", None, "The start image is missing."),
    ("reference_start_s", -1, "The start of the reference is -1; it can be 0 or more."),
    ("reference_end_s", 0, "The end of the reference is 0; it must be above 0."),
    ("enable_safety_checker", "perhaps", "The safety checker switch is 'perhaps'; it is either on or off."),
    ("cache_threshold", 1.1, "The share of change to repeat a step below is 1.1; it can be from 0 to 1."),
    ("guided_share", -0.1, "The share of guided steps is -0.1; it can be from 0 to 1."),
    ("lora", "a" * 201, "The LoRA has 201 characters; keep it to 200."),
    ("lora_strength", 2.1, "The strength of the LoRA is 2.1; it can be from 0 to 2."),
    ("effect", 1, "“effect” is not a setting of a generation; leave it out."),
]


@pytest.mark.parametrize(("field", "value", "sentence"), REFUSED)
def test_the_first_bad_value_is_refused_in_a_sentence(field: str, value: Any, sentence: str) -> None:
    """The sentence names the field, quotes the value and says what would work."""
    with pytest.raises(ValidationError) as refusal:
        GenerationRequest(**(GIVEN | {field: value}))

    (found,) = explain(refusal.value)
    assert (found.field, found.message) == (field, sentence)


def test_a_reference_that_ends_before_it_starts_is_told_at_its_end() -> None:
    """The two seconds are checked together."""
    with pytest.raises(ValidationError) as refusal:
        GenerationRequest(**GIVEN, reference_start_s=3, reference_end_s=2.5)

    (found,) = explain(refusal.value)
    assert found.field == "reference_end_s"
    assert found.message == "The reference would end at 2.5 s but start at 3 s; end it later."


def test_every_fault_is_told_at_once() -> None:
    """A form with four gaps gets four sentences, not one at a time."""
    with pytest.raises(ValidationError) as refusal:
        GenerationRequest()

    assert [found.field for found in explain(refusal.value)] == [
        "prompt",
        "video_description",
        "reference_video",
        "image",
    ]


def test_every_field_can_be_named_to_a_person() -> None:
    """No field's sentence falls back to its name in code."""
    assert set(spec.LABELS) == set(GenerationRequest.model_fields)
