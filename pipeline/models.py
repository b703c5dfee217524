"""Which models there are, and the command `python -m pipeline models` that looks after their files."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.errors import ModelError
from pipeline.hub import INDEX, Repository
from pipeline.model_progress import ModelProgress, OnModel
from pipeline.store import HubModel

Result = TypeVar("Result")

NANO_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "nano"


@dataclass(frozen=True)
class ModelSource:
    """A model by the short name people type: what it is, and its folder or hub repository.

    revision: the commit of the repository to use; None: the one that `main` is at when it is first downloaded.
    """

    name: str
    title: str
    location: str
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """Give its folder, unless it is a model of the hub."""
        return Path(self.location) if Path(self.location).is_dir() else None

    @property
    def on_hub(self) -> HubModel:
        """Give its place in the store."""
        return HubModel(Repository(self.location), self.revision)


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
    if (Path(name) / INDEX).is_file():
        return ModelSource(Path(name).resolve().name, name, name)
    if name.count("/") == 1 and not Path(name).exists():
        return ModelSource(name, name, name)
    raise ModelError(f"There is no model “{name}”; try nano, 14b, or a folder that holds a {INDEX}.", "model")


def read_index(folder: Path) -> dict[str, Any]:
    """Read a model folder's model_index.json. Raises ModelError when there is none, or it is not JSON."""
    path = folder / INDEX
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} holds no {INDEX}, so it is not a model folder.", "model") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON; fetch the model again.", "model") from error


def run_models(arguments: Sequence[str]) -> None:
    """List, download, verify or update models, as the command line says. Raises ModelError."""
    given = _build_parser().parse_args(arguments)
    if given.action in (None, "list"):
        _say("\n".join(_describe(source) for source in MODELS.values()))
    else:
        _ACTIONS[given.action](find_model(given.name))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline models", description="Look after the models' files.")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser(
        "list", help="Name, size, whether it is here, and revision. Also what happens without an action."
    )
    helps = {
        "download": "Fetch what is not here; after a break it goes on from there.",
        "verify": "Compare every file with the hub's checksum.",
        "update": "Fetch the newest revision and use it from then on.",
    }
    for action, help_text in helps.items():
        named = actions.add_parser(action, help=help_text)
        named.add_argument("name", help="14b, or a hub repository.")
    return parser


def _describe(source: ModelSource) -> str:
    if source.folder:
        size_bytes = sum(path.stat().st_size for path in source.folder.rglob("*") if path.is_file())
        return f"{source.name:6}{_spell_size(size_bytes):>9}  here         {source.folder}"
    try:
        stock = source.on_hub.take_stock()
    except ModelError as error:
        return f"{source.name:6}{'?':>9}  not here     {error.message}"
    share = stock.here_bytes / stock.total_bytes
    here = "here" if share == 1 else f"{share:.0%} here" if share else "not here"
    return f"{source.name:6}{_spell_size(stock.total_bytes):>9}  {here:11}  {source.location} at {stock.commit}"


def _download(source: ModelSource) -> None:
    if source.folder:
        _say(f"{source.name} is here, in {source.folder}.")
        return
    stock = source.on_hub.take_stock()
    _say(
        f"{source.location} at {stock.commit}: {_spell_size(stock.total_bytes)}, of which "
        f"{_spell_size(stock.here_bytes)} are here; the disk has {_spell_size(stock.free_bytes)} free."
    )
    folder = _show(source.on_hub.fetch)
    _say(f"{source.name} is here and whole, in {folder}.")


def _verify(source: ModelSource) -> None:
    if source.folder:
        raise ModelError(
            f"{source.name} is a folder of its own; there are no checksums of it to compare with.", "model"
        )
    broken = _show(source.on_hub.verify)
    if broken:
        names = "".join(f"\n  {path}" for path in broken)
        way_out = f"`python -m pipeline models download {source.name}` fetches just these"
        raise ModelError(f"{source.name} is not whole; {way_out}:{names}", "model")
    _say(f"{source.name} is whole: every file has the checksum the hub told.")


def _update(source: ModelSource) -> None:
    if source.folder:
        raise ModelError(f"{source.name} is a folder of its own; there is nothing to update it from.", "model")
    if source.revision:
        message = f"{source.name} is pinned to {source.revision} in this version of the studio; update the studio."
        raise ModelError(message, "model")
    before, after = _show(source.on_hub.update)
    if before in (None, after):
        _say(f"{source.name} is at {after}, the newest revision.")
    else:
        _say(f"{source.name} went from {before} to {after}; `hf cache prune` frees the space of the old files.")


_ACTIONS: dict[str, Callable[[ModelSource], None]] = {"download": _download, "verify": _verify, "update": _update}


def _show(work: Callable[[OnModel], Result]) -> Result:
    """Do something that takes long, under a bar."""
    with tqdm(unit="B", unit_scale=True) as bar:

        def show(progress: ModelProgress) -> None:
            if bar.desc != f"{progress.stage}: ":
                bar.reset()
                bar.set_description(progress.stage)
            bar.total = progress.total
            bar.update(progress.done - bar.n)

        return work(show)


def _spell_size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
