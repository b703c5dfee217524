"""presets/ -> frozen Preset objects: examples that fill a whole request. A bad file fails at start-up and is named."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InvalidInputError
from pipeline.spec import GenerationRequest, explain

PRESETS_FOLDER = Path(__file__).resolve().parent.parent / "presets"


@dataclass(frozen=True)
class Preset:
    """An example: a complete request, and what a person sees and should know of it."""

    name: str
    title: str
    poster: Path
    origin: str
    licence: str
    request: GenerationRequest


class PresetFile(BaseModel):
    """What a preset file says. Paths are relative to the file.

    suggested: any other field of a request. suggested_for: more of them, for a model by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    title: str = Field(min_length=1)
    reference_video: Path
    video_description: str
    image: Path
    prompt: str
    poster: Path
    origin: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    suggested: dict[str, Any] = Field(default_factory=dict)
    suggested_for: dict[str, dict[str, Any]] = Field(default_factory=dict)


def load_presets(folder: Path = PRESETS_FOLDER, *, model: str | None = None) -> tuple[Preset, ...]:
    """Read every preset of a folder, in the order of the file names, with what each suggests for a model by its name.

    Raises InvalidInputError, which names the file, when one cannot be read, lacks something or breaks a limit.
    """
    return tuple(load_preset(path, model) for path in sorted(folder.glob("*.toml")))


def load_preset(path: Path, model: str | None = None) -> Preset:
    """Read one preset file. Raises InvalidInputError, which names the file."""
    try:
        content = PresetFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        preset = _to_preset(path, content, model)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _complain(path, f"is not TOML: {error}.") from error
    except ValidationError as error:
        raise _complain(path, _explain_first(error)) from error
    for media in (preset.request.reference_video, preset.request.image, preset.poster):
        if not media.is_file():
            raise _complain(path, f"names {media.name}, which is not at {media}.")
    return preset


def _to_preset(path: Path, content: PresetFile, model: str | None) -> Preset:
    folder = path.parent
    request = GenerationRequest(
        prompt=content.prompt,
        video_description=content.video_description,
        reference_video=(folder / content.reference_video).resolve(),
        image=(folder / content.image).resolve(),
        **content.suggested | content.suggested_for.get(model or "", {}),
    )
    poster = (folder / content.poster).resolve()
    return Preset(path.stem, content.title, poster, content.origin, content.licence, request)


def _explain_first(error: ValidationError) -> str:
    if error.title == GenerationRequest.__name__:
        return "does not work: " + explain(error)[0].message
    finding = error.errors(include_url=False)[0]
    return f"does not work at “{'.'.join(map(str, finding['loc']))}”: {finding['msg'].lower()}."


def _complain(path: Path, what: str) -> InvalidInputError:
    return InvalidInputError("preset", f"The preset {path.name} {what}")
