"""The errors a person may see: a sentence about what was wrong and what would work."""


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


class StoppedError(StudioError):
    """The person stopped the run. Raised by a step callback, let through by the pipeline."""

    def __init__(self, message: str = "The generation was stopped.") -> None:
        super().__init__(message)
