"""What can be told of a request before any work starts, and without a model: see `check_inputs`."""

from pipeline import media, safety, wall
from pipeline.spec import GenerationRequest


def check_inputs(request: GenerationRequest) -> None:
    """Refuse files that cannot be used and, with the safety checker on, texts that it declines.

    Quick, and free of torch. Raises MediaError and UnsafeContentError, which name the field.
    """
    info = wall.probe_video(request.reference_video)
    media.check_window(info, start_s=request.reference_start_s, end_s=request.reference_end_s)
    wall.check_image(request.image)
    if request.enable_safety_checker:
        safety.check_texts({"prompt": request.prompt, "video_description": request.video_description})
