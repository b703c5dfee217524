"""Loading: once in memory, several shards at a time, and with news of how far it is."""

import sys
from pathlib import Path

import pytest
import torch

from pipeline import VideoAsPromptPipeline
from pipeline.encoding_cache import EncodingCache
from pipeline.hardware import PROFILES
from pipeline.model_progress import ModelProgress
from pipeline.weights import load_in_profile, load_model
from tests.pipeline.conftest import GOLDEN
from tests.pipeline.large_checkpoint import load_in_a_fresh_process, write_checkpoint
from tests.pipeline.machines import processor
from tests.pipeline.test_encoding_cache import assert_equal, counted, encode

BY_NAME = {profile.name: profile for profile in PROFILES}


def test_loading_tells_each_part() -> None:
    """A person who waits sees that it goes on."""
    told: list[ModelProgress] = []

    load_model(str(GOLDEN / "tiny_vap"), told.append)

    assert {progress.stage for progress in told} == {"loading"}
    assert told[-1] == ModelProgress("loading", 6, 7)


def test_encodings_outlive_a_restart(tmp_path: Path) -> None:
    """Loaded again, in a profile that encodes in the same number format, it encodes nothing; in another one, texts."""

    def restart(profile: str) -> VideoAsPromptPipeline:
        pipe = load_in_profile(GOLDEN / "tiny_vap", BY_NAME[profile], processor())
        pipe.encoding_cache = EncodingCache(tmp_path)
        return pipe

    first = encode(restart("float32"))

    with counted(again := restart("fp8-cpu")) as calls:
        assert_equal(encode(again), first)
    assert not calls
    with counted(again := restart("bf16")) as calls:
        encode(again)
    assert set(calls) == {"text"}


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
