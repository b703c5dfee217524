"""What stands in the form -> GenerationRequest, or the problems of each field as sentences."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from pipeline.errors import StudioError
from pipeline.presets import Preset
from pipeline.spec import AspectRatio, GenerationRequest, ModelFacts, Resolution, default, explain, limits

# The fields of a request that the page asks for, in the order of the page.
FIELDS = (
    "reference_video",
    "image",
    "video_description",
    "prompt",
    "aspect_ratio",
    "resolution",
    "num_frames",
    "seed",
    "guidance_scale",
    "num_inference_steps",
    "fps",
    "negative_prompt",
    "reference_start_s",
    "reference_end_s",
    "cache_threshold",
    "guided_share",
    "lora",
    "lora_strength",
    "enable_safety_checker",
)
# Those behind "More settings": a problem there has to open it.
FOLDED_FIELDS = FIELDS[8:]

# Media speaks of its own arguments; on the page they have the request's names.
_FIELD_OF_ARGUMENT = {"start_s": "reference_start_s", "end_s": "reference_end_s"}

SOURCES = ("reference_video", "image")
SLIDERS = ("num_frames", "guidance_scale", "fps", "cache_threshold", "guided_share", "lora_strength")
FASTER_FIELDS = ("cache_threshold", "guided_share")  # within those, behind "Faster, less exact"
CHOICES: Mapping[str, Sequence[str]] = {"aspect_ratio": get_args(AspectRatio), "resolution": get_args(Resolution)}
MAX_KEPT_LENGTH = 20_000  # letters of a text that is brought back: far beyond what a request may have
REQUIRED = tuple(name for name, field in GenerationRequest.model_fields.items() if field.is_required())

Values = Mapping[str, Any]  # by the names of the fields
CheckInputs = Callable[[GenerationRequest], None]


def read_form(values: Sequence[Any]) -> GenerationRequest:
    """Make a request of the form's values, in the order of FIELDS. Raises pydantic's ValidationError.

    Empty fields are left out: their defaults hold, and where there is none, they are missing.
    """
    return GenerationRequest(**_filled(values))


def read_what_fits(values: Sequence[Any]) -> dict[str, Any]:
    """Give the fields that are in order, by name and as plain values; whatever is not, or not yet, is left out."""
    filled = _filled(values)
    try:
        GenerationRequest(**filled)
    except ValidationError as error:
        wrong = {finding["loc"][0] if finding["loc"] else "reference_end_s" for finding in error.errors()}
        filled = {field: value for field, value in filled.items() if field not in wrong}
    missing: dict[str, Any] = {field: "-" for field in REQUIRED if field not in filled}
    request = GenerationRequest(**filled, **missing)
    return request.model_dump(mode="json", exclude_unset=True, exclude=set(missing))


def find_problems(values: Sequence[Any], check_inputs: CheckInputs) -> dict[str, str]:
    """Give what is wrong with the form: a sentence for each field concerned; empty when all is well."""
    try:
        check_inputs(read_form(values))
    except ValidationError as error:
        return {problem.field or "": problem.message for problem in reversed(explain(error))}
    except StudioError as error:
        return place_problem(error)
    return {}


def place_problem(error: StudioError) -> dict[str, str]:
    """Give an error's sentence under the field of the form it concerns."""
    field = error.field or ""
    return {_FIELD_OF_ARGUMENT.get(field, field): error.message}


def starting_values(guidance_scale: float = ModelFacts.guidance_scale) -> Values:
    """Give what the form's fields begin with. guidance_scale: the model's own, which its slider has to show."""
    return {
        **{field: None if field in REQUIRED else default(field) for field in FIELDS},
        "guidance_scale": guidance_scale,
    }


def fill_form(preset: Preset, starts: Values) -> tuple[Any, ...]:
    """Give the form's values for an example, in the order of FIELDS. Numbers in text fields are written out.

    starts: the values the form began with, which stand for what the example leaves to the model.
    """
    return tuple(_to_field(_or_start(getattr(preset.request, field), field, starts)) for field in FIELDS)


def fill_from_settings(settings: Mapping[str, Any], files: Mapping[str, Any], starts: Values) -> tuple[Any, ...]:
    """Give the form's values for the settings of a job and its files by field, in the order of FIELDS.

    starts: the values the form began with, for what the settings lack. A file that is gone leaves its field empty.
    """
    chosen = {field: _to_field(_or_start(settings.get(field), field, starts)) for field in FIELDS}
    values = {**chosen, **{field: files.get(field) for field in SOURCES}}
    return tuple(values[field] for field in FIELDS)


def restore_value(field: str, kept: Any, starts: Values) -> Any:
    """Give what a browser kept of a field if the field can hold it, else what it began with. Never for a file.

    Not whether it is right: what was typed comes back as it was, and Generate says what is wrong with it.
    """
    usual = _to_field(starts[field])
    if field in SOURCES:
        return None
    if isinstance(usual, bool):
        return kept if isinstance(kept, bool) else usual
    if field in CHOICES:
        return kept if kept in CHOICES[field] else usual
    if field in SLIDERS:
        lowest, highest = limits(field)
        is_number = isinstance(kept, int | float) and not isinstance(kept, bool)
        return kept if is_number and lowest <= kept <= highest else usual
    return kept if isinstance(kept, str) and len(kept) <= MAX_KEPT_LENGTH else usual


def _or_start(value: Any, field: str, starts: Values) -> Any:
    return starts[field] if value is None else value


def _filled(values: Sequence[Any]) -> dict[str, Any]:
    given = {field: value for field, value in zip(FIELDS, values, strict=True) if value is not None}
    return {field: value for field, value in given.items() if str(value).strip()}


def _to_field(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, int | float) else str(value)
