"""A Hugging Face Space: what the studio does differently there, and what its page says of that.

It is started by `python app.py`, like anywhere else; the variables that Spaces set tell it where it is.
"""

import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from pipeline.planner import Planner
    from server.settings import Settings

STORAGE = Path("/data")  # where people mount what outlives a restart
LARGE_MODEL = "14b"


def is_space(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this is a Space."""
    return bool(environment.get("SPACE_ID"))


def is_zero_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this is a Space without a GPU of its own, which is lent one for each run."""
    return environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true") and find_spec("spaces") is not None


def space_defaults(environment: Mapping[str, str] = os.environ, storage: Path = STORAGE) -> dict[str, Any]:
    """Give the settings of a Space that nobody set: its proxy's door, and the folder that outlives a restart."""
    if not is_space(environment):
        return {}
    kept = {"data_dir": storage} if can_hold_the_queue(storage) else {}
    return {"host": "0.0.0.0", "port": 7860, **kept}  # noqa: S104 - the Space's proxy comes from another address


def can_hold_the_queue(folder: Path) -> bool:
    """Tell whether a folder is there and does for the queue's database, which some mounted buckets do not."""
    probe = folder / f".probe-{os.getpid()}.sqlite"
    try:
        if not folder.is_dir():
            return False
        with closing(sqlite3.connect(probe)) as database:
            journal = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            with database:
                database.execute("CREATE TABLE probe (number INTEGER)")
            return bool(journal == "wal")
    except (OSError, sqlite3.Error):
        return False
    finally:
        for left in (probe, probe.with_name(f"{probe.name}-wal"), probe.with_name(f"{probe.name}-shm")):
            _remove(left)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a folder that cannot be written
        return


def choose_model(settings: "Settings", plan: "Callable[[Settings], Planner] | None" = None) -> "Settings":
    """Give the settings with the large model on a Space whose GPU, memory and disk it fits, unless one was named.

    A lent GPU does not count: a video of the large model would take more than a day's share of it.
    plan: makes the large model's planner; None: for this machine.
    """
    if not is_space() or is_zero_gpu() or "model" in settings.model_fields_set:
        return settings
    try:
        planner = (plan or _plan)(settings)
        fits = planner.machine.device == "cuda" and bool(planner.start)
    except ModelError:
        fits = False
    return settings.model_copy(update={"model": LARGE_MODEL}) if fits else settings


def _plan(settings: "Settings") -> "Planner":
    """Make the large model's planner for this machine.

    Raises ModelError when the disk has no room for the model's files, or the hub that knows their sizes is away.
    """
    from pipeline.models import find_model
    from pipeline.planner import make_planner

    planner = make_planner(LARGE_MODEL, settings.profile, settings.data_dir)
    if planner.machine.device == "cuda":
        stock = find_model(LARGE_MODEL).on_hub.take_stock()
        if stock.total_bytes - stock.here_bytes > stock.free_bytes:
            raise ModelError("The disk has no room for the model.", "model")
    return planner


def describe_space(settings: "Settings", storage: Path = STORAGE) -> str:
    """Say what is different here, to the visitors of a Space; empty elsewhere."""
    if not is_space():
        return ""
    told = ["On this Space all visitors wait in one line."]
    if not settings.data_dir.is_relative_to(storage):
        told.append("What is made here is gone when the Space restarts: download what you want to keep.")
    if is_zero_gpu():
        told.append("It borrows a GPU for each video, which uses up your daily ZeroGPU minutes.")
    if settings.model == "nano":
        told.append("Only the small model runs here; the large one needs a Space with a large GPU of its own.")
    told.append("The API for fal’s clients is closed without a key from the Space’s owner.")
    return " ".join(told)
