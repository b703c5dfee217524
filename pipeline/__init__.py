"""Video-As-Prompt as a library: makes videos, knows nothing of the web."""

import os
from typing import TYPE_CHECKING, Any

from pipeline.heap import lock_pages_exactly

if TYPE_CHECKING:
    from pipeline.transformer import VideoAsPromptTransformer3DModel
    from pipeline.video_as_prompt import VideoAsPromptPipeline

# Read by diffusers when it is imported: a sharded checkpoint whose weights change their type loads in half the time.
os.environ.setdefault("HF_ENABLE_PARALLEL_LOADING", "1")
lock_pages_exactly(os.environ)

__all__ = ["VideoAsPromptPipeline", "VideoAsPromptTransformer3DModel"]


def __getattr__(name: str) -> Any:
    """Import the two classes when they are asked for: torch and diffusers take seconds that `--help` need not wait."""
    if name == "VideoAsPromptPipeline":
        from pipeline.video_as_prompt import VideoAsPromptPipeline

        return VideoAsPromptPipeline
    if name == "VideoAsPromptTransformer3DModel":
        from pipeline.transformer import VideoAsPromptTransformer3DModel

        return VideoAsPromptTransformer3DModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
