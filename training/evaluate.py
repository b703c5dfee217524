"""Judges a checkpoint on held-out scenes, from the reference alone: no caption is given.

Retrieval: of the true videos, the start image under every effect of the evaluation, the result should be nearest to the
one under the reference's effect. Path: how well the object's way correlates with the true way. And the first frame's
PSNR.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from pipeline import VideoAsPromptPipeline
from training.effects import Effect, Parameters, animate, draw_parameters
from training.samples import Shape, landscape, portrait
from training.scenes import Scene, draw_scene, render
from training.sittings import psnr

MIN_VISIBLE = 0.15  # difference in RGB, of 2, from which a pixel counts as the object's


@dataclass(frozen=True)
class Trial:
    """One task: the effect that a reference shows, and the held-out scene to show it on."""

    effect: Effect
    parameters: Parameters
    reference: Tensor  # (3, F, height, width), -1 to 1
    scene: Scene
    shape: Shape

    def truth(self, effect: Effect) -> Tensor:
        """Give the scene under an effect, with this trial's parameters."""
        motion = animate(effect, self.parameters, self.shape.frames)
        return render(self.scene, motion, self.shape.height, self.shape.width)


def draw_trials(seed: int, rounds: int, frames: int, effects: Sequence[Effect]) -> list[Trial]:
    """Draw `rounds` trials of every effect, on held-out photographs and glyphs; a third of them upright."""
    generator = Generator().manual_seed(seed)
    trials = []
    for index, effect in enumerate([*effects] * rounds):
        shape = portrait(frames) if index % 3 == 2 else landscape(frames)
        parameters = draw_parameters(generator)
        motion = animate(effect, parameters, frames)
        shown, given = (
            draw_scene(generator, shape.height, shape.width, motion, with_object=True, held_out=True) for _ in range(2)
        )
        reference = render(shown, motion, shape.height, shape.width)
        trials.append(Trial(effect, parameters, reference, given, shape))
    return trials


def to_pictures(clip: Tensor) -> list[Image.Image]:
    """Give the frames of a clip (3, F, height, width), -1 to 1."""
    frames = ((clip + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    return [Image.fromarray(frame) for frame in frames]


def generate(pipe: VideoAsPromptPipeline, trial: Trial, options: dict[str, Any]) -> Tensor:
    """Give the model's answer to a trial, (3, F, height, width), -1 to 1."""
    frames = pipe(
        image=to_pictures(trial.truth(trial.effect))[0],
        reference_video=to_pictures(trial.reference),
        prompt="",
        reference_prompt="",
        height=trial.shape.height,
        width=trial.shape.width,
        num_frames=trial.shape.frames,
        generator=Generator().manual_seed(0),
        output_type="pt",
        return_dict=False,
        **options,
    )[0]
    return frames[0].float().transpose(0, 1) * 2 - 1


def retrieve(trial: Trial, result: Tensor, effects: Sequence[Effect]) -> Effect:
    """Give the effect whose true video is nearest to a result."""
    return min(effects, key=lambda effect: (trial.truth(effect) - result).square().mean().item())


def trace_path(clip: Tensor, empty: Tensor) -> Tensor:
    """Give the object's centre in each frame, (F, 2), as the middle of what differs from the empty scene."""
    difference = (clip - empty).abs().mean(dim=0)
    weight = torch.where(difference > MIN_VISIBLE, difference, 0.0) + 1e-6
    rows, columns = (torch.arange(size, dtype=torch.float32) for size in weight.shape[1:])
    total = weight.sum(dim=(1, 2))
    across, down = (weight.sum(dim=1) * columns).sum(dim=1), (weight.sum(dim=2) * rows).sum(dim=1)
    return torch.stack([across / total, down / total], dim=1)


def correlate_paths(trial: Trial, result: Tensor) -> float:
    """Give the correlation of the object's way in a result with the true one, both axes together."""
    bare = Scene(trial.scene.background, None, trial.scene.grains, trial.scene.position, trial.scene.radius)
    motion = animate(trial.effect, trial.parameters, trial.shape.frames)
    empty = render(bare, motion, trial.shape.height, trial.shape.width)
    ways = [trace_path(clip, empty) for clip in (result, trial.truth(trial.effect))]
    ways = [(way - way.mean(dim=0)).flatten() for way in ways]
    return torch.nn.functional.cosine_similarity(ways[0], ways[1], dim=0).item()


def judge(trial: Trial, result: Tensor, effects: Sequence[Effect]) -> dict[str, Any]:
    """Give a trial's figures; PSNR in dB, against the given image, the truth, and beside a still copy of the image."""
    truth = trial.truth(trial.effect)
    figures = {
        "effect": trial.effect.name,
        "retrieved": retrieve(trial, result, effects).name,
        "psnr_first": psnr(result[:, 0], truth[:, 0]),
        "psnr_clip": psnr(result, truth),
        "psnr_still": psnr(truth[:, :1].expand_as(truth), truth),
    }
    return figures | ({"path": correlate_paths(trial, result)} if trial.effect.follows_path else {})


def summarise(figures: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Give the means over all trials."""
    paths = [figure["path"] for figure in figures if "path" in figure]
    means = {name: _mean([figure[name] for figure in figures]) for name in ("psnr_first", "psnr_clip", "psnr_still")}
    hits = [float(figure["retrieved"] == figure["effect"]) for figure in figures]
    return {"retrieval": _mean(hits), "path": _mean(paths), **means, "trials": len(figures)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def draw_sheet(trial: Trial, result: Tensor) -> Image.Image:
    """Set five frames each of the reference, the result and the truth below each other."""
    chosen = torch.linspace(0, trial.shape.frames - 1, 5).long()
    rows = [
        torch.cat(list(clip[:, chosen].unbind(1)), dim=2)
        for clip in (trial.reference, result, trial.truth(trial.effect))
    ]
    return to_pictures(torch.cat(rows, dim=1)[:, None])[0]


def evaluate(
    model: Path,
    out: Path,
    rounds: int,
    frames: int,
    effects: Sequence[Effect],
    options: dict[str, Any],
    others: Sequence[Effect] = (),
    seed: int = 11,
) -> dict[str, float]:
    """Run all trials; write figures and contact sheets to a folder; give the means.

    others: effects that a result could be nearest to besides those on trial.
    options: passed to the pipeline, such as num_inference_steps and guidance_scale. seed: of the trials.
    """
    pipe = VideoAsPromptPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    out.mkdir(parents=True, exist_ok=True)
    figures = []
    for index, trial in enumerate(draw_trials(seed, rounds, frames, effects)):
        result = generate(pipe, trial, options)
        figures.append(judge(trial, result, [*effects, *others]))
        draw_sheet(trial, result).save(out / f"{trial.effect.name}_{index // len(effects)}.png")
    summary = summarise(figures)
    (out / "figures.json").write_text(json.dumps({"summary": summary, "trials": figures}, indent=1) + "\n")
    return summary
