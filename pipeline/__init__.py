"""Video-As-Prompt as a library: makes videos, knows nothing of the web."""

from pipeline.transformer import VideoAsPromptTransformer3DModel
from pipeline.video_as_prompt import VideoAsPromptPipeline

__all__ = ["VideoAsPromptPipeline", "VideoAsPromptTransformer3DModel"]
