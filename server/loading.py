"""The model, loaded in the background while the page opens already."""

import logging
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from pipeline.errors import ModelError, StudioError
from pipeline.model_progress import ModelProgress, OnModel
from server.background import in_background
from server.workshop import Model

if TYPE_CHECKING:
    from pipeline.planner import Planner
    from server.zero_gpu import Visitors

log = logging.getLogger(__name__)


class Gauge:
    """Where one can look how far a model is that another thread loads, and what it will take to use it.

    progress, planner: None before there is news. visitors: who asked for which job, where a GPU is lent to them.
    """

    def __init__(self) -> None:
        self.progress: ModelProgress | None = None
        self.planner: Planner | None = None
        self.visitors: Visitors | None = None

    def show(self, progress: ModelProgress) -> None:
        """Take the news."""
        self.progress = progress


class BackgroundModel:
    """A model that a thread of its own loads."""

    def __init__(self, name: str, gauge: Gauge, load: Callable[[str, OnModel], Model]) -> None:
        """Begin to load it."""
        self._load = lambda: _load_plainly(name, gauge, load)
        self._lock = Lock()
        self._loading = in_background(self._load)

    def peek(self) -> Model | None:
        """Give the model, or None while it is on its way. Raises ModelError with a sentence when loading failed."""
        loading = self._loading
        return loading.result() if loading.done() else None

    def get(self) -> Model:
        """Wait for the model and give it. What failed is tried once more, since the reason may be gone: a hub that was
        away, a full disk. Raises ModelError with a sentence when that fails too.
        """
        with self._lock:
            if self._loading.done() and self._loading.exception() is not None:
                self._loading = in_background(self._load)
            loading = self._loading
        return loading.result()


def _load_plainly(name: str, gauge: Gauge, load: Callable[[str, OnModel], Model]) -> Model:
    try:
        return load(name, gauge.show)
    except StudioError:
        raise
    except Exception as error:
        log.exception("The model %s could not be loaded.", name)
        message = f"The model “{name}” could not be loaded; the log of the program says why."
        raise ModelError(message, "model") from error
