"""The errors a person may see: a sentence about what was wrong and what would work."""

from collections.abc import Mapping
from dataclasses import dataclass


class StudioError(Exception):
    """Base of the family. `message` is a sentence for a person; `field` names the input it concerns, if one does."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidInputError(StudioError):
    """Something the person gave cannot be used."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message, field)


class MediaError(InvalidInputError):
    """A file could not be read as the video or picture it should be."""


class UnsafeContentError(InvalidInputError):
    """The safety checker declined an input or the result."""


class ModelError(StudioError):
    """A model is not there, not whole, or not the model it says it is."""


@dataclass(frozen=True)
class Suggestion:
    """What to try instead. fields: of a GenerationRequest, to be changed, maybe none; label: what that is called."""

    fields: Mapping[str, str | int]
    label: str


class OutOfMemoryError(StudioError):
    """A run took more memory than there is. `suggestion` is the next smaller setting that should fit, if any."""

    def __init__(self, message: str, suggestion: Suggestion | None) -> None:
        super().__init__(message)
        self.suggestion = suggestion


class StoppedError(StudioError):
    """The person stopped the run. Raised by a step callback, let through by the pipeline."""

    def __init__(self, message: str = "The generation was stopped.") -> None:
        super().__init__(message)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that there is no memory left, on the card or in RAM."""
    # torch says it with its own class on a GPU, and with a plain RuntimeError on a CPU.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(sign in str(error).lower() for sign in ("out of memory", "can't allocate memory", "not enough memory"))
    )
