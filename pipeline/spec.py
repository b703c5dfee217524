"""What a person asks for, and what is then made: every field, default and limit of a generation.

Names and defaults follow the `fal-ai/video-as-prompt` endpoint where it has the field. The page, the command line and
the API read limits from here.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from pipeline.errors import InvalidInputError

AspectRatio = Literal["9:16", "16:9"]
Resolution = Literal["480p", "580p", "720p"]

# Short and long side in pixels. Both are multiples of 16: the VAE's 8 times the transformer's patch of 2.
SIZES: Mapping[str, tuple[int, int]] = {"480p": (480, 832), "580p": (576, 1024), "720p": (720, 1280)}

# The VAE keeps the first frame and packs the others by four. Wan2.1's and nano's alike; a test holds it to the config.
FRAME_STRIDE = 4

NATIVE_ATTENTION = "native"  # torch's own, which is there everywhere

MAX_TEXT_LENGTH = 4000  # characters; the text encoder reads 512 tokens, which is rarely more
MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps exactly
DRAWN_SEED_BITS = 32  # short enough to read out and type again

MAX_NAME_LENGTH = 200

# What a request leaves to the model unless it says otherwise; a checkpoint of ours has its own in model_index.json.
OWN_FIELDS = ("num_inference_steps", "guidance_scale")

LoraName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME_LENGTH)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT_LENGTH)]


class GenerationRequest(BaseModel):
    """What a person asks for. Fields left out have defaults; None means "you choose".

    Raises pydantic's ValidationError; `explain` turns that into sentences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text = Field(description="What should happen to the start image.")
    video_description: Text = Field(description="What the reference video shows.")
    reference_video: Path = Field(description="The clip whose effect, motion, style or camera move is wanted.")
    image: Path = Field(description="The start image the effect is applied to.")
    negative_prompt: str | None = Field(
        None,
        max_length=MAX_TEXT_LENGTH,
        description="What to stay away from, with guidance above 1; none: the model's own default text.",
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Same seed, same video; none: drawn.")
    num_frames: int = Field(49, ge=5, le=121, description="Frames of the result, 4k + 1.")
    fps: int = Field(16, ge=4, le=60, description="Frames per second of the result.")
    aspect_ratio: AspectRatio = Field("9:16", description="Upright or wide.")
    resolution: Resolution = Field("480p", description="The short side of the result.")
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=20,
        description="How strongly the texts push, 1: no push, in about half the time; none: the model's own.",
    )
    num_inference_steps: int | None = Field(None, ge=1, le=100, description="Denoising steps; none: the model's own.")
    reference_start_s: float | None = Field(None, ge=0, description="Where in the clip to begin, seconds.")
    reference_end_s: float | None = Field(None, gt=0, description="Where in the clip to end, seconds.")
    enable_safety_checker: bool = Field(True, description="Decline unsafe inputs and results.")
    cache_threshold: float = Field(
        0.0, ge=0, le=1, description="Steps that change less than this share repeat the one before; 0: exact."
    )
    guided_share: float = Field(
        1.0, ge=0, le=1, description="Share of the steps, the first ones, that guidance acts in; 1: exact."
    )
    lora: LoraName | None = Field(None, description="A LoRA of those there are, by its name; none: the plain model.")
    lora_strength: float = Field(1.0, ge=0, le=2, description="How strongly the LoRA acts; 0: not at all.")

    @field_validator("num_frames")
    @classmethod
    def _check_num_frames(cls, num_frames: int) -> int:
        if excess := (num_frames - 1) % FRAME_STRIDE:
            below = num_frames - excess
            raise ValueError(f"A video cannot have {num_frames} frames; try {below} or {below + FRAME_STRIDE}.")
        return num_frames

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        start, end = self.reference_start_s or 0.0, self.reference_end_s
        if end is not None and end <= start:
            raise ValueError(f"The reference would end at {end:g} s but start at {start:g} s; end it later.")
        return self


@dataclass(frozen=True)
class ModelFacts:
    """What a request needs to know of the model before it can be settled."""

    name: str
    num_inference_steps: int = 50
    render_size: tuple[int, int] | None = None  # short, long side it always renders at; None: at the size asked for
    guidance_scale: float = 5.0

    @classmethod
    def of(cls, name: str, index: Mapping[str, Any]) -> Self:
        """Give a model's facts from its model_index.json, or from the config of its pipeline."""
        own = {fact: index[fact] for fact in OWN_FIELDS if fact in index}
        return cls(name, render_size=tuple(index["render_size"]) if index.get("render_size") else None, **own)


@dataclass(frozen=True)
class GenerationSpec:
    """What is made: no gaps, all checked. Sizes in pixels; `height` x `width` is the file's, `render_*` the model's."""

    prompt: str
    video_description: str
    reference_video: Path
    image: Path
    negative_prompt: str | None
    seed: int
    num_frames: int
    fps: int
    aspect_ratio: AspectRatio
    resolution: Resolution
    height: int
    width: int
    render_height: int
    render_width: int
    guidance_scale: float
    num_inference_steps: int
    reference_start_s: float | None
    reference_end_s: float | None
    enable_safety_checker: bool
    cache_threshold: float
    guided_share: float
    lora: str | None
    lora_strength: float
    model: str

    def settings(self) -> dict[str, Any]:
        """Give the spec as plain JSON values, for the file and the page. Files appear by name only, never by path."""
        return asdict(self) | {"reference_video": self.reference_video.name, "image": self.image.name}

    @property
    def is_exact(self) -> bool:
        """Whether the denoising loop leaves nothing out for speed."""
        return not self.cache_threshold and self.guided_share == 1


def settle(request: GenerationRequest, model: ModelFacts, rng: random.Random) -> GenerationSpec:
    """Fill the gaps of a request: seed drawn, sizes, steps and guidance settled for this model."""
    values = request.model_dump()
    if values["seed"] is None:
        values["seed"] = rng.getrandbits(DRAWN_SEED_BITS)
    values |= {field: getattr(model, field) for field in OWN_FIELDS if values[field] is None}
    height, width = _turn(SIZES[request.resolution], request.aspect_ratio)
    render_height, render_width = _turn(model.render_size or SIZES[request.resolution], request.aspect_ratio)
    return GenerationSpec(
        **values,
        height=height,
        width=width,
        render_height=render_height,
        render_width=render_width,
        model=model.name,
    )


def _turn(short_and_long: tuple[int, int], aspect_ratio: AspectRatio) -> tuple[int, int]:
    """Give (height, width)."""
    short, long = short_and_long
    return (long, short) if aspect_ratio == "9:16" else (short, long)


def limits(name: str) -> tuple[Any, Any]:
    """Give the lowest and highest value a request's field may have, None where it has no such bound."""
    metadata = GenerationRequest.model_fields[name].metadata
    lowest = next((bound.ge for bound in metadata if isinstance(bound, Ge)), None)
    highest = next((bound.le for bound in metadata if isinstance(bound, Le)), None)
    return lowest, highest


def default(name: str) -> Any:
    """Give the default of a request's field."""
    return GenerationRequest.model_fields[name].default


LABELS: Mapping[str, str] = {
    "prompt": "The prompt",
    "video_description": "The description of the reference video",
    "reference_video": "The reference video",
    "image": "The start image",
    "negative_prompt": "The negative prompt",
    "seed": "The seed",
    "num_frames": "The number of frames",
    "fps": "The frame rate",
    "aspect_ratio": "The aspect ratio",
    "resolution": "The resolution",
    "guidance_scale": "Guidance",
    "num_inference_steps": "The number of steps",
    "reference_start_s": "The start of the reference",
    "reference_end_s": "The end of the reference",
    "enable_safety_checker": "The safety checker switch",
    "cache_threshold": "The share of change to repeat a step below",
    "guided_share": "The share of guided steps",
    "lora": "The LoRA",
    "lora_strength": "The strength of the LoRA",
}


def explain(error: ValidationError) -> list[InvalidInputError]:
    """Turn pydantic's findings on a request into one sentence for a person each, with its field."""
    return [InvalidInputError(_field_of(finding), _sentence(finding)) for finding in error.errors(include_url=False)]


def _field_of(finding: Mapping[str, Any]) -> str:
    return str(finding["loc"][0]) if finding["loc"] else "reference_end_s"  # only the window check spans two fields


def _sentence(finding: Mapping[str, Any]) -> str:
    field, given = _field_of(finding), finding["input"]
    label, context = LABELS.get(field, f"“{field}”"), finding.get("ctx", {})
    match finding["type"]:
        case "value_error":
            return str(context["error"])
        case "missing" | "string_too_short" | "path_type" | "string_type":
            return f"{label} is missing."
        case "string_too_long":
            return f"{label} has {len(given)} characters; keep it to {context['max_length']}."
        case "greater_than_equal" | "less_than_equal":
            lowest, highest = limits(field)
            allowed = f"{lowest} or more" if highest is None else f"from {lowest} to {highest}"
            return f"{label} is {given}; it can be {allowed}."
        case "greater_than":
            return f"{label} is {given}; it must be above {context['gt']:g}."
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{label} is {given!r}; it must be a whole number."
        case "float_type" | "float_parsing" | "finite_number":
            return f"{label} is {given!r}; it must be a number."
        case "literal_error":
            return f"{label} is {given!r}; it can be {context['expected'].replace(chr(39), '')}."
        case "bool_type" | "bool_parsing":
            return f"{label} is {given!r}; it is either on or off."
        case "extra_forbidden":
            return f"{label} is not a setting of a generation; leave it out."
        case _:
            return f"{label} is {given!r}, which does not fit: {finding['msg'].lower()}."
