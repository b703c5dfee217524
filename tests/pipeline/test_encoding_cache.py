"""A second request with the same reference encodes nothing of it, and what is kept is bounded."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from pipeline import VideoAsPromptPipeline
from pipeline.conditioning import Conditions
from pipeline.encoding_cache import EncodingCache, make_key
from tests.pipeline.conftest import GOLDEN, read_golden


def encode(pipe: VideoAsPromptPipeline, **changes: Any) -> Conditions:
    """Encode the golden request, or one that differs."""
    golden = read_golden("pipeline_a")
    arguments = {
        "image": golden.picture(),
        "reference_video": golden.clip(),
        "texts": ("a horse floats", "a sneaker floats"),
        "negative_texts": (None, None),
        **{name: golden.case[name] for name in ("height", "width", "num_frames")},
    }
    return pipe.encode_conditions(**arguments | changes)


@contextmanager
def counted(pipe: VideoAsPromptPipeline) -> Iterator[Counter[str]]:
    """Count the visits of the encoders."""
    calls: Counter[str] = Counter()
    parts = {"text": pipe.text_encoder, "image": pipe.image_encoder, "vae": pipe.vae.encoder.conv_in}
    hooks = [part.register_forward_pre_hook(lambda *_, name=name: calls.update([name])) for name, part in parts.items()]
    yield calls
    for hook in hooks:
        hook.remove()


def assert_equal(first: Conditions, second: Conditions) -> None:
    torch.testing.assert_close(first.positive.reference.states, second.positive.reference.states, rtol=0, atol=0)
    for name in ("image_embeds", "reference_image_embeds", "condition_latents", "reference_latents"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)


def test_a_second_request_encodes_nothing_of_the_reference(tiny_pipe: VideoAsPromptPipeline) -> None:
    """With another image and prompt, only that image and that prompt are encoded."""
    encode(tiny_pipe)
    other = ImageOps.mirror(read_golden("pipeline_a").picture())
    with counted(tiny_pipe) as fresh:
        VideoAsPromptPipeline.from_pretrained(GOLDEN / "tiny_vap")
        encode_alone = Counter(fresh)
        changed = encode(tiny_pipe, image=other, texts=("a cat sinks", "a sneaker floats"))

    assert not encode_alone
    assert (fresh["text"], fresh["image"]) == (1, 1)
    tiny_pipe.encoding_cache = EncodingCache()
    assert_equal(changed, encode(tiny_pipe, image=other, texts=("a cat sinks", "a sneaker floats")))


def test_preparing_a_second_request_is_much_quicker(tiny_pipe: VideoAsPromptPipeline) -> None:
    """The same reference with another image: a third of three encodings of clips is left."""
    with counted(tiny_pipe) as calls:
        encode(tiny_pipe)
        first = calls["vae"]
        encode(tiny_pipe, image=ImageOps.mirror(read_golden("pipeline_a").picture()))

    assert calls["vae"] - first == first / 3


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": 5},
        {"height": 64},
        {"texts": ("a horse floats", "another")},
        {"negative_texts": ("", None)},
        {"last_image": Image.new("RGB", (32, 32), "red")},
    ],
)
def test_what_differs_is_encoded(tiny_pipe: VideoAsPromptPipeline, change: dict[str, Any]) -> None:
    """Nothing is taken for something else."""
    encode(tiny_pipe)
    kept = encode(tiny_pipe, **change)

    tiny_pipe.encoding_cache = EncodingCache()

    fresh = encode(tiny_pipe, **change)
    assert_equal(kept, fresh)
    assert torch.equal(kept.negative.target.states, fresh.negative.target.states)


def test_encodings_outlive_the_process_on_disk(tiny_pipe: VideoAsPromptPipeline, tmp_path: Path) -> None:
    """A new pipeline of the same checkpoint with the same folder encodes nothing."""
    tiny_pipe.encoding_cache = EncodingCache(tmp_path)
    first = encode(tiny_pipe)
    again = VideoAsPromptPipeline.from_pretrained(GOLDEN / "tiny_vap")
    again.encoding_cache = EncodingCache(tmp_path)

    with counted(again) as calls:
        second = encode(again)

    assert not calls
    assert_equal(first, second)


def test_pipelines_with_parts_of_ones_own_share_nothing(tiny_pipe: VideoAsPromptPipeline) -> None:
    """Only a checkpoint loaded as it is has a fingerprint that others can have."""
    own = VideoAsPromptPipeline.from_pretrained(GOLDEN / "tiny_vap", vae=tiny_pipe.vae)

    assert own.fingerprint != tiny_pipe.fingerprint
    assert VideoAsPromptPipeline.from_pretrained(GOLDEN / "tiny_vap").fingerprint == tiny_pipe.fingerprint


def make(size: int) -> dict[str, torch.Tensor]:
    return {"states": torch.zeros(size, dtype=torch.uint8)}


def test_memory_is_bounded(tmp_path: Path) -> None:
    """What was used longest ago goes first."""
    cache = EncodingCache(memory_bytes=250)
    for name in ("a", "b", "a", "c"):
        cache.get(name, lambda: make(100))

    computed = []
    for name in ("a", "c", "b"):
        cache.get(name, lambda name=name: computed.append(name) or make(100))

    assert computed == ["b"]


def test_the_disk_is_bounded(tmp_path: Path) -> None:
    """The folder never holds more than was allowed."""
    cache = EncodingCache(tmp_path, disk_bytes=1000)
    for name in "abcd":
        cache.get(name, lambda: make(300))
        time.sleep(0.01)

    kept = {path.stem for path in tmp_path.iterdir()}
    assert "d" in kept
    assert "a" not in kept
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_a_broken_file_is_computed_again(tmp_path: Path) -> None:
    """A file cut short by a full disk costs the time of encoding, nothing else."""
    EncodingCache(tmp_path).get("a", lambda: make(100))
    (tmp_path / "a.safetensors").write_bytes(b"cut")

    assert len(EncodingCache(tmp_path).get("a", lambda: make(7))["states"]) == 7
    assert len(EncodingCache(tmp_path).get("a", lambda: make(9))["states"]) == 7


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    """The encoding is computed and given; the log says that it was not kept."""
    (tmp_path / "file").write_text("")

    assert len(EncodingCache(tmp_path / "file").get("a", lambda: make(5))["states"]) == 5


def test_keys_tell_contents_apart() -> None:
    """Parts do not run into each other, and pictures count by their pixels."""
    red, blue = (Image.new("RGB", (2, 3), colour) for colour in ("red", "blue"))
    keys = [make_key("ab", "c"), make_key("a", "bc"), make_key(red), make_key(blue), make_key(red.resize((3, 2)))]

    assert len(set(keys)) == 5
    assert make_key(red, 1) == make_key(red.copy(), 1)
