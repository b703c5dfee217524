"""The state of an unfinished run on disk, so that a killed process does not cost what was already denoised."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.denoise import LoopState

SAVE_EVERY = 5  # steps; a state of the 14B at 720p is about 50 MB


def save_state(path: Path, state: LoopState, settings: Mapping[str, Any]) -> None:
    """Write a state and the settings it belongs to. A crash while writing leaves the one before whole."""
    fresh = path.with_suffix(".new")
    values = {"steps_done": state.steps_done, "latents": state.latents, "solver": state.solver}
    torch.save(values | {"settings": json.dumps(settings, sort_keys=True)}, fresh)
    fresh.replace(path)


def load_state(path: Path, settings: Mapping[str, Any]) -> LoopState | None:
    """Read the state of a run with these settings; None when there is none, or it is damaged or another run's.

    Only tensors and plain values are read: a state file cannot run code.
    """
    if not zipfile.is_zipfile(path):  # torch.save writes a zip, whose directory comes last: half a file is none
        return None
    values = torch.load(path, map_location="cpu", weights_only=True)
    if values.pop("settings", None) != json.dumps(settings, sort_keys=True):
        return None
    return LoopState(**values)
