"""Attention by name: what this machine has is used, what it has not is told with what it has."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from pipeline import VideoAsPromptPipeline, attention
from pipeline.attention import check_attention, list_attentions, use_attention
from pipeline.errors import InvalidInputError
from pipeline.joint_attention import ContextAttnProcessor, JointAttnProcessor
from tests.pipeline.test_loras import make_latents


@pytest.fixture(autouse=True)
def default_backend() -> Iterator[None]:
    """Diffusers' default for the whole process, put back afterwards."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def test_what_is_listed_works() -> None:
    """Torch's own is there on any machine; what would be downloaded is not tried."""
    listed = list_attentions()

    assert {"native", "_native_math"} <= set(listed)
    assert not [name for name in listed if name.endswith("_hub")]
    for name in listed:
        check_attention(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("quick", "there is none of that name"),
        ("Sage", "there is none of that name"),
        ("sage", "sageattention"),
        ("flash", "flash-attn"),
        ("xformers", "xformers"),
        ("sage_hub", "pip install kernels"),
        ("_native_cudnn", "No viable backend"),
    ],
)
def test_what_is_missing_is_told_with_what_is_there(name: str, fault: str) -> None:
    """One sentence: the name, why not, and the names that work here."""
    with pytest.raises(InvalidInputError) as caught:
        check_attention(name)

    message = caught.value.message
    assert message.startswith(f"The attention “{name}” cannot be used: ")
    assert fault in message
    assert message.endswith(f"This machine has {', '.join(list_attentions())}.")
    assert "\n" not in message


def test_an_attention_that_fails_when_tried_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is there and does not work on this machine counts as missing."""

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("No kernel image is available.\nMore of it.")

    monkeypatch.setattr(attention, "dispatch_attention_fn", fail)

    with pytest.raises(InvalidInputError, match=r"cannot be used: No kernel image is available\. This machine has"):
        check_attention("_native_math")


def test_the_transformer_uses_it(tiny_pipe: VideoAsPromptPipeline) -> None:
    """Every attention of both streams; the numbers stay near, and native changes nothing at all."""
    native = make_latents(tiny_pipe)
    use_attention(tiny_pipe.transformer, "native")
    assert torch.equal(make_latents(tiny_pipe), native)

    use_attention(tiny_pipe.transformer, "_native_math")

    processors = [
        module.processor
        for module in tiny_pipe.transformer.modules()
        if isinstance(getattr(module, "processor", None), JointAttnProcessor | ContextAttnProcessor)
    ]
    assert {processor._attention_backend for processor in processors} == {AttentionBackendName._NATIVE_MATH}
    torch.testing.assert_close(make_latents(tiny_pipe), native, atol=1e-4, rtol=0)


def test_one_that_cannot_be_had_leaves_the_transformer_as_it_is(tiny_pipe: VideoAsPromptPipeline) -> None:
    """The sentence comes before anything is set."""
    with pytest.raises(InvalidInputError):
        use_attention(tiny_pipe.transformer, "quick")

    assert tiny_pipe.transformer.blocks[0].attn1.processor._attention_backend is None
