"""What a browser kept of the form comes back: as far as it fits, and no file but one's own."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from pipeline.presets import load_presets
from server.assembly import make_api, make_studio, open_files, open_queue
from server.following import FILE_GONE
from server.keeping import VALUES, FileTickets, FormKeeper
from server.settings import Settings
from server.signing import Signer
from server.ui import CACHE_AGE_S, build_page
from tests.server.absent_model import absent_model

DAY_S = float(CACHE_AGE_S)


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads" / "token"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def upload(uploads: Path) -> Path:
    file = uploads / "mine.png"
    file.write_text("mine")
    return file


@pytest.fixture
def tickets(uploads: Path) -> FileTickets:
    return FileTickets(Signer(bytes(32)), uploads.parent, clock=lambda: 0.0)


@pytest.fixture(params=[False, True], ids=["free", "forced"])
def keeper(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FormKeeper]:
    """The keeper of a page; with an operator who forces the safety checker in the second run."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    settings = Settings(data_dir=tmp_path)
    queue = open_queue(settings, open_files(settings))

    async def build() -> FormKeeper:
        page = build_page(load_presets(), "0" * 16, safety_forced=request.param)
        return FormKeeper(page, make_studio(settings, make_api(settings, queue), absent_model()))

    with closing(queue):
        yield asyncio.run(build())


def test_a_ticket_gives_back_its_file(tickets: FileTickets, upload: Path) -> None:
    """For as long as it is there."""
    ticket = tickets.issue(str(upload))

    found = tickets.redeem(ticket)
    upload.unlink()

    assert (found, tickets.redeem(ticket)) == (upload, None)


def test_nothing_but_a_ticket_of_ours_gives_a_file(tickets: FileTickets, upload: Path, tmp_path: Path) -> None:
    """Not a path, not another server's ticket, not one for something else, too old, or for a file elsewhere."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (upload.parent / "link").symlink_to(secret)
    signer = Signer(bytes(32))
    given: list[Any] = [
        str(upload),
        {"path": str(upload)},
        None,
        "",
        "ä.ä",
        FileTickets(Signer(bytes([1] * 32)), upload.parent.parent, clock=lambda: 0.0).issue(str(upload)),
        signer.issue("one file", str(upload), DAY_S),
        signer.issue("file of the form", str(upload), 0.0),
        tickets.issue(str(secret)),
        tickets.issue(str(upload.parent / ".." / ".." / "secret.txt")),
        tickets.issue(str(upload.parent / "link")),
    ]

    assert [tickets.redeem(one) for one in given] == [None] * len(given)


def test_the_form_comes_back(keeper: FormKeeper, upload: Path) -> None:
    """Files by their tickets, all else as it was typed, and a forced safety checker stays on."""
    kept = dict.fromkeys(VALUES, "") | {"prompt": "Half a sen", "num_frames": 21, "enable_safety_checker": False}

    filled = keeper.restore(list(kept.values()), keeper.keep_files(None, str(upload)))

    shown = {name: filled[field] for name, field in keeper.form.fields.items() if field in filled}
    is_free = keeper.form.fields["enable_safety_checker"].interactive
    assert (shown["image"], shown["prompt"], shown["num_frames"]) == (str(upload), "Half a sen", 21)
    assert shown["reference_video"] is None
    assert ("enable_safety_checker" in shown) == is_free
    assert not set(keeper.form.problems.values()) & set(filled)


@pytest.mark.parametrize("values", [None, "text", [1, 2], {"prompt": "x"}])
def test_what_is_no_form_changes_nothing(keeper: FormKeeper, values: Any) -> None:
    """As at the first visit, or after an update. Both files are told to be none, for the image must not be left out."""
    filled = keeper.restore(values, "no tickets")

    shown = {name: filled[field] for name, field in keeper.form.fields.items() if field in filled}
    assert shown == {"reference_video": None, "image": None}


def test_a_file_that_is_gone_is_told_at_its_field(keeper: FormKeeper, upload: Path) -> None:
    """Once: the browser forgets it then."""
    tickets = keeper.keep_files(str(upload), str(upload))
    upload.unlink()

    told = keeper.restore(None, tickets)

    problems = {name: told[place] for name, place in keeper.form.problems.items() if told.get(place)}
    assert set(problems) == {"reference_video", "image"}
    assert all(FILE_GONE in line for line in problems.values())
    assert told[keeper.page.kept_files] == {}
    assert isinstance(keeper.page.kept_files, gr.BrowserState)
