"""The model that comes in the background."""

import threading
from typing import Any

import pytest

from pipeline.errors import ModelError
from pipeline.spec import ModelFacts
from server.loading import load_in_background
from server.workshop import Model


def test_a_model_loads_in_the_background() -> None:
    """The caller goes on at once; the model arrives when it arrives."""
    gate = threading.Event()

    def load(name: str) -> Model:
        gate.wait(5)
        return None, ModelFacts(name)

    model = load_in_background("nano", load)

    assert not model.done()
    gate.set()
    assert model.result(timeout=5)[1].name == "nano"


def test_a_model_that_cannot_be_loaded_is_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    """Known failures speak for themselves, unknown ones point to the log."""

    def miss(name: str) -> Any:
        raise ModelError("There is no model “x”.")

    def explode(name: str) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(ModelError, match="There is no model “x”"):
        load_in_background("x", miss).result(timeout=5)
    with pytest.raises(ModelError, match="The model “y” could not be loaded; the log"):
        load_in_background("y", explode).result(timeout=5)
    assert "out of memory" in caplog.text
