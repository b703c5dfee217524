"""Golden cases of the reference implementation, and a tiny complete pipeline."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from accelerate.hooks import CpuOffload
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from pipeline import VideoAsPromptPipeline
from tests.pipeline.fake_hub import FakeHub, point_at, read_files, serve

GOLDEN = Path(__file__).parent.parent / "golden"


@dataclass(frozen=True)
class GoldenCase:
    """Tensors of one golden file and the case that made them."""

    case: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def picture(self) -> Image.Image:
        """Give the start image."""
        return Image.fromarray(self["in.image"].numpy())

    def clip(self) -> list[Image.Image]:
        """Give the reference clip."""
        return [Image.fromarray(frame) for frame in self["in.reference_video"].numpy()]

    def arguments(self) -> dict[str, Any]:
        """Give the pipeline's arguments."""
        case = self.case
        return {
            "image": self.picture(),
            "reference_video": self.clip(),
            "prompt": case["prompt"],
            "reference_prompt": case["ref_prompt"],
            "negative_prompt": case["negative_prompt"],
            "negative_reference_prompt": case["negative_ref_prompt"],
            "height": case["height"],
            "width": case["width"],
            "num_frames": case["num_frames"],
            "num_inference_steps": case["steps"],
            "guidance_scale": case["guidance_scale"],
        }


def read_golden(name: str) -> GoldenCase:
    """Read one golden file by its name without ending."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return GoldenCase(json.loads(file.metadata()["case"]), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (a safe_open handle is no mapping)


def read_json(name: str) -> Any:
    """Read one golden JSON file."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@pytest.fixture
def tiny_pipe() -> VideoAsPromptPipeline:
    """The tiny random checkpoint in the released layout, float32."""
    pipe = VideoAsPromptPipeline.from_pretrained(GOLDEN / "tiny_vap")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def on_card(tiny_pipe: VideoAsPromptPipeline, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The parts that a card would hold now, with the tiny checkpoint under model offload: only they do not move."""
    names = {part: name for name, part in tiny_pipe.components.items() if isinstance(part, torch.nn.Module)}
    here: set[str] = set()

    def bring(hook: CpuOffload, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if hook.prev_module_hook is not None:
            hook.prev_module_hook.offload()
        here.add(names[module])
        return args, kwargs

    def take_away(hook: CpuOffload, module: torch.nn.Module) -> torch.nn.Module:
        here.discard(names[module])
        return module

    monkeypatch.setattr(CpuOffload, "pre_forward", bring)
    monkeypatch.setattr(CpuOffload, "init_hook", take_away)
    tiny_pipe.enable_model_cpu_offload(device="cpu")
    return here


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The tiny checkpoint on a hub, which huggingface_hub takes for the real one."""
    hub = FakeHub({})
    hub.add_commit(**read_files(GOLDEN / "tiny_vap") | {"README.md": b"-"})
    with serve(hub):
        point_at(hub.url, monkeypatch)
        yield hub
        huggingface_hub.close_session()
