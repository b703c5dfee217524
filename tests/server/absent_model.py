"""A model that stays on its way."""

from threading import Event
from typing import Any

from server.loading import BackgroundModel, Gauge


def absent_model() -> BackgroundModel:
    """Give a model that never comes."""

    def load(*_: Any) -> Any:
        Event().wait()

    return BackgroundModel("nano", Gauge(), load)
