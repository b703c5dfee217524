"""The model that comes in the background."""

import threading
import time
from typing import Any

import pytest

from pipeline.errors import ModelError
from pipeline.model_progress import ModelProgress, OnModel
from pipeline.spec import ModelFacts
from server.loading import Gauge, load_in_background
from server.workshop import Model


def test_a_model_loads_in_the_background() -> None:
    """The caller goes on at once and can look how far it is; the model arrives when it arrives."""
    gate = threading.Event()

    def load(name: str, on_progress: OnModel) -> Model:
        on_progress(ModelProgress("downloading", 1, 2))
        gate.wait(5)
        return None, ModelFacts(name)

    gauge = Gauge()
    model = load_in_background("nano", gauge, load)

    assert not model.done()
    while gauge.progress is None:
        time.sleep(0.01)
    assert gauge.progress.amount == "0.0 of 0.0 GB"
    gate.set()
    assert model.result(timeout=5)[1].name == "nano"


def test_a_model_that_cannot_be_loaded_is_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    """Known failures speak for themselves, unknown ones point to the log."""

    def miss(name: str, on_progress: OnModel) -> Any:
        raise ModelError("There is no model “x”.")

    def explode(name: str, on_progress: OnModel) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(ModelError, match="There is no model “x”"):
        load_in_background("x", Gauge(), miss).result(timeout=5)
    with pytest.raises(ModelError, match="The model “y” could not be loaded; the log"):
        load_in_background("y", Gauge(), explode).result(timeout=5)
    assert "out of memory" in caplog.text
