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
    assert (preset.request.num_frames, preset.request.seed, preset.request.guidance_scale) == (17, 3, 5.0)


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


def test_the_shipped_presets_load() -> None:
    """There are at least three, every one says where its media come from, and no file is heavy."""
    presets = load_presets()

    assert len(presets) >= 3
    for preset in presets:
        assert preset.origin
        for media in (preset.request.reference_video, preset.request.image, preset.poster):
            assert media.stat().st_size < 300_000, media
