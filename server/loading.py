"""The model, loaded in the background while the page opens already."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from pipeline.errors import ModelError, StudioError
from server.workshop import Model

log = logging.getLogger(__name__)


def load_in_background(name: str, load: Callable[[str], Model] | None = None) -> Future[Model]:
    """Start loading a model. The future raises ModelError with a sentence when that fails."""
    future: Future[Model] = Future()
    # A daemon, so that Ctrl-C ends the program in the middle of reading 30 GB.
    threading.Thread(target=_load_into, args=(future, name, load or _load), daemon=True).start()
    return future


def _load(name: str) -> Model:
    # Imported here: torch and diffusers take several seconds, and the page should not wait for them.
    from pipeline.weights import load_model

    return load_model(name)


def _load_into(future: Future[Model], name: str, load: Callable[[str], Model]) -> None:
    try:
        future.set_result(load(name))
    except StudioError as error:
        future.set_exception(error)
    except Exception:
        log.exception("The model %s could not be loaded.", name)
        message = f"The model “{name}” could not be loaded; the log of the program says why."
        future.set_exception(ModelError(message, "model"))
