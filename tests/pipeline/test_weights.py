"""Loading: once in memory, several shards at a time, and with news of how far it is."""

import sys
from pathlib import Path

import pytest
import torch

from pipeline.model_progress import ModelProgress
from pipeline.weights import load_model
from tests.pipeline.conftest import GOLDEN
from tests.pipeline.large_checkpoint import load_in_a_fresh_process, write_checkpoint


def test_loading_tells_each_part() -> None:
    """A person who waits sees that it goes on."""
    told: list[ModelProgress] = []

    load_model(str(GOLDEN / "tiny_vap"), told.append)

    assert {progress.stage for progress in told} == {"loading"}
    assert told[-1] == ModelProgress("loading", 6, 7)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_model_is_in_memory_once(tmp_path: Path, dtype: str) -> None:
    """At its highest, memory holds the weights and little more, be they taken as stored or brought to another type."""
    folder = write_checkpoint(tmp_path / "model", num_layers=4, dtype=torch.bfloat16)

    loading = load_in_a_fresh_process(folder, dtype)

    assert loading.is_parallel  # a switch of diffusers that it reads when it is imported: we must come before
    assert loading.weights_bytes > 250e6
    assert loading.peak_bytes < 1.4 * loading.weights_bytes
