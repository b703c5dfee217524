"""The model store: which models there are, where their files lie, and how they are loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import ModelError
from pipeline.spec import ModelFacts
from pipeline.video_as_prompt import VideoAsPromptPipeline

NANO_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "nano"


@dataclass(frozen=True)
class ModelSource:
    """A model by the short name people type: what it is, and its folder or hub repository."""

    name: str
    title: str
    location: str


MODELS = {
    source.name: source
    for source in (
        ModelSource("nano", "nano, the small model in this repository", str(NANO_FOLDER)),
        ModelSource("14b", "Video-As-Prompt on Wan2.1-14B", "ByteDance/Video-As-Prompt-Wan2.1-14B"),
    )
}


def find_model(name: str) -> ModelSource:
    """Give the model a person named: `nano`, `14b`, a folder in the released layout, or a hub repository.

    Raises ModelError when it is none of these.
    """
    if name in MODELS:
        return MODELS[name]
    if (Path(name) / "model_index.json").is_file():
        return ModelSource(Path(name).resolve().name, name, name)
    if name.count("/") == 1 and not Path(name).exists():
        return ModelSource(name, name, name)
    raise ModelError(f"There is no model “{name}”; try nano, 14b, or a folder that holds a model_index.json.", "model")


def load_model(name: str) -> tuple[VideoAsPromptPipeline, ModelFacts]:
    """Load a model onto this machine's best device: bfloat16 with offload on a GPU, float32 on a CPU.

    Raises ModelError when its files are missing or are not this model's.
    """
    source = find_model(name)
    on_gpu = torch.cuda.is_available()
    pipe = VideoAsPromptPipeline.from_pretrained(source.location, dtype=torch.bfloat16 if on_gpu else torch.float32)
    if on_gpu:
        pipe.enable_model_cpu_offload()
    pipe.set_progress_bar_config(disable=True)
    facts = ModelFacts(source.name, pipe.config.num_inference_steps, pipe.config.render_size)
    return pipe, facts
