"""The model that comes in the background."""

import threading
import time
from typing import Any

import pytest

from pipeline.errors import ModelError
from pipeline.model_progress import ModelProgress, OnModel
from pipeline.spec import ModelFacts
from server.loading import BackgroundModel, Gauge
from server.workshop import Model


def test_a_model_loads_in_the_background() -> None:
    """The caller goes on at once and can look how far it is; the model arrives when it arrives."""
    gate = threading.Event()

    def load(name: str, on_progress: OnModel) -> Model:
        on_progress(ModelProgress("downloading", 1, 2))
        gate.wait(5)
        return None, ModelFacts(name)

    gauge = Gauge()
    model = BackgroundModel("nano", gauge, load)

    assert model.peek() is None
    while gauge.progress is None:
        time.sleep(0.01)
    assert gauge.progress.amount == "0.0 of 0.0 GB"
    gate.set()
    assert model.get()[1].name == "nano"
    assert model.peek() == model.get()


def test_a_model_that_cannot_be_loaded_is_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    """Known failures speak for themselves, unknown ones point to the log."""

    def miss(name: str, on_progress: OnModel) -> Any:
        raise ModelError("There is no model “x”.")

    def explode(name: str, on_progress: OnModel) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(ModelError, match="There is no model “x”"):
        BackgroundModel("x", Gauge(), miss).get()
    with pytest.raises(ModelError, match="The model “y” could not be loaded; the log"):
        BackgroundModel("y", Gauge(), explode).get()
    assert "out of memory" in caplog.text


def test_what_failed_is_tried_again_when_it_is_needed() -> None:
    """A hub that was away when the program began may be back when the first video is asked for."""
    calls: list[str] = []

    def load(name: str, on_progress: OnModel) -> Model:
        calls.append(name)
        if len(calls) == 1:
            raise ModelError("The hub is away.")
        return None, ModelFacts(name)

    model = BackgroundModel("14b", Gauge(), load)
    while not calls or not fails(model):
        time.sleep(0.01)

    assert model.get()[1].name == "14b"
    assert model.peek() is not None
    assert calls == ["14b", "14b"]


def fails(model: BackgroundModel) -> bool:
    try:
        model.peek()
    except ModelError:
        return True
    return False
