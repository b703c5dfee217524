"""News of a model on its way into memory, told by one callable. Imports nothing, so that a page can know it too."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ModelStage = Literal["downloading", "verifying", "loading"]


@dataclass(frozen=True)
class ModelProgress:
    """How far a model is: `done` of `total` bytes, or, while it is loaded, of its parts."""

    stage: ModelStage
    done: int
    total: int

    @property
    def amount(self) -> str:
        """Say it for a person: "12.3 of 66.4 GB", "3 of 7"."""
        if self.stage == "loading":
            return f"{self.done} of {self.total}"
        return f"{self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB"


OnModel = Callable[[ModelProgress], None]  # may raise, which ends the work; what is here stays


def ignore(progress: ModelProgress) -> None:
    """Tell nobody."""
