"""Presets: what a good file gives, and how a bad one is told."""

from pathlib import Path

import pytest

from pipeline.errors import InvalidInputError
from pipeline.presets import load_preset, load_presets

GOOD = {
    "title": '"Grows"',
    "reference_video": '"clip.mp4"',
    "video_description": '"A ball grows."',
    "image": '"image.png"',
    "prompt": '"The vase grows."',
    "poster": '"poster.jpg"',
    "origin": '"Drawn by a test."',
    "licence": '"CC0-1.0"',
    "suggested": "{ num_frames = 17, seed = 3 }",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A presets folder that holds the media of GOOD."""
    for name in ("clip.mp4", "image.png", "poster.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, name: str = "grow.toml", **changes: str | None) -> Path:
    """Write GOOD with some lines changed, or left out where None."""
    path = folder / name
    lines = {**GOOD, **changes}
    path.write_text("\n".join(f"{key} = {value}" for key, value in lines.items() if value is not None))
    return path


def test_a_preset_is_a_complete_request(folder: Path) -> None:
    """The file's texts, media beside it and suggested values make a request; the rest are the usual defaults."""
    preset = load_preset(write(folder))

    assert (preset.name, preset.title, preset.licence) == ("grow", "Grows", "CC0-1.0")
    assert preset.request.reference_video == folder / "clip.mp4"
    assert (preset.request.num_frames, preset.request.seed, preset.request.fps) == (17, 3, 16)


def test_a_preset_knows_what_suits_a_model(folder: Path) -> None:
    """More than for any model, and instead of it; for no other."""
    path = write(folder, suggested_for="{ small = { num_frames = 9, guidance_scale = 1 } }")

    made = {model: load_preset(path, model).request for model in ("small", "large", None)}

    assert (made["small"].num_frames, made["small"].guidance_scale, made["small"].seed) == (9, 1.0, 3)
    assert made["large"] == made[None] == load_preset(write(folder)).request


def test_presets_come_in_the_order_of_their_file_names(folder: Path) -> None:
    """A number in front of the name decides what people see first."""
    write(folder, "2-second.toml")
    write(folder, "1-first.toml")

    assert [preset.name for preset in load_presets(folder)] == ["1-first", "2-second"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": None}, "does not work at “prompt”: field required."),
        ({"prompt": '" "'}, "does not work: The prompt is missing."),
        ({"licence": '""'}, "does not work at “licence”: string should have at least 1 character."),
        ({"sound": '"loud"'}, "does not work at “sound”: extra inputs are not permitted."),
        ({"suggested": "{ num_frames = 48 }"}, "does not work: A video cannot have 48 frames; try 45 or 49."),
        ({"suggested": "{ mood = 1 }"}, "does not work: “mood” is not a setting of a generation; leave it out."),
        ({"suggested_for": "{ x = 1 }"}, "does not work at “suggested_for.x”: input should be a valid dictionary."),
        ({"title": "unquoted"}, "is not TOML: "),
        ({"image": '"gone.png"'}, "names gone.png, which is not at "),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(folder: Path, changes: dict[str, str | None], sentence: str) -> None:
    """Whoever edits a preset learns the file and the line's name from the message alone."""
    path = write(folder, "broken.toml", **changes)

    with pytest.raises(InvalidInputError) as caught:
        load_preset(path)

    assert caught.value.message.startswith(f"The preset broken.toml {sentence}")


@pytest.mark.parametrize("model", ["nano", "14b"])
def test_the_shipped_presets_load(model: str) -> None:
    """There are at least three, every one says where its media come from, and no file is heavy."""
    presets = load_presets(model=model)

    assert len(presets) >= 3
    for preset in presets:
        assert preset.origin
        for media in (preset.request.reference_video, preset.request.image, preset.poster):
            assert media.stat().st_size < 300_000, media


def test_what_suits_the_small_model_is_not_asked_of_the_large_one() -> None:
    """With few frames, and once with guidance, the small one is better; the large one keeps its own."""
    small, large = ([preset.request for preset in load_presets(model=model)] for model in ("nano", "14b"))

    assert {request.num_frames for request in large} == {49}
    assert {request.guidance_scale for request in large} == {None}
    assert {request.num_frames for request in small} == {17, 25, 49}
    assert {request.guidance_scale for request in small} == {None, 3.0}
