"""The form outlives a reload: the browser keeps what was typed and chosen, and a ticket for each uploaded file.

Every tab has a form of its own; a new tab begins with the one that was changed last.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from server.following import FILE_GONE
from server.form import FIELDS, SOURCES, restore_value
from server.page_events import QUIET, Updates, tell_problems
from server.signing import Signer, TokenError
from server.studio import Studio
from server.ui import CACHE_AGE_S, Page

FORM_FILE = "file of the form"
VALUES = tuple(name for name in FIELDS if name not in SOURCES)


class FileTickets:
    """Names the files that visitors gave us so that a browser can keep the name and nobody can make one up.

    A path alone would not do: whoever kept another one would be shown a file that is not theirs.
    """

    def __init__(self, signer: Signer, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """folder: where Gradio puts uploads, and removes them after a day. clock: Unix seconds."""
        self._signer, self._folder, self._clock = signer, folder.resolve(), clock

    def issue(self, path: str) -> str:
        """Give the ticket of a file."""
        return self._signer.issue(FORM_FILE, path, self._clock() + CACHE_AGE_S)

    def redeem(self, ticket: Any) -> Path | None:
        """Give the file of a ticket that we issued if it is still where uploads are."""
        try:
            path = Path(self._signer.check(ticket, FORM_FILE, self._clock())) if isinstance(ticket, str) else None
        except TokenError:
            return None
        return path if path and path.resolve().is_relative_to(self._folder) and path.is_file() else None


class FormKeeper:
    """Has the browser keep the form at every change, and puts it back when the page opens."""

    def __init__(self, page: Page, studio: Studio) -> None:
        self.page, self.form = page, page.form
        self.tickets = FileTickets(studio.signer, Path(gr.utils.get_upload_folder()))

    def connect(self) -> None:
        """Tie the fields to what the browser keeps."""
        page, fields = self.page, self.form.fields
        kept = [page.kept_values, page.kept_files]
        private = {"inputs": kept, "api_visibility": "private"}
        opened = page.blocks.load(
            self.restore,
            inputs=kept,
            outputs=[*self.form.inputs, *self.form.problems.values(), *self.form.folds, *kept],
            js="(values, files) => window.studio.recallForm(values, files)",
            queue=False,
            **QUIET,
        )
        opened.then(fn=None, js="(...form) => window.studio.formIsBack(form)", **private)
        gr.on(
            [fields[name].change for name in VALUES],
            fn=None,
            inputs=[page.kept_values, *(fields[name] for name in VALUES)],
            outputs=page.kept_values,
            js="(kept, ...values) => window.studio.keepValues(kept, values)",
            trigger_mode="always_last",
            api_visibility="private",
        )
        gr.on(
            [fields[name].change for name in SOURCES],
            self.keep_files,
            inputs=[fields[name] for name in SOURCES],
            outputs=page.kept_files,
            queue=False,
            trigger_mode="always_last",
            **QUIET,
        )
        for one in kept:
            one.change(fn=None, js="(...form) => window.studio.keepInTab(form)", **private)

    def keep_files(self, *paths: str | None) -> dict[str, str]:
        """Give the tickets of the form's files."""
        return {name: self.tickets.issue(path) for name, path in zip(SOURCES, paths, strict=True) if path}

    def restore(self, values: Any, files: Any) -> Updates:
        """Fill the form as it was, as far as its fields can hold that and its files are still here."""
        tickets = files if isinstance(files, dict) else {}
        found = {name: self.tickets.redeem(tickets.get(name)) for name in SOURCES}
        # Always a value: of a field that an answer leaves out Gradio makes a new one, and the image’s would read files.
        filled: Updates = {self.form.fields[name]: str(path) if path else None for name, path in found.items()}
        if isinstance(values, list) and len(values) == len(VALUES):
            editable = [(name, kept) for name, kept in zip(VALUES, values, strict=True) if self._is_editable(name)]
            filled |= {self.form.fields[name]: restore_value(name, kept, self.form.starts) for name, kept in editable}
        lost = {name: FILE_GONE for name in SOURCES if name in tickets and not found[name]}
        told = tell_problems(self.form, lost) if lost else {}
        kept_files = {name: tickets[name] for name, path in found.items() if path}
        return {**filled, **told, self.page.kept_values: values, self.page.kept_files: kept_files}

    def _is_editable(self, name: str) -> bool:
        """Whether a visitor may set this field: not the safety checker that the operator forces, nor what is hidden."""
        if name == "lora" and not self.form.offers_loras:
            return False
        return getattr(self.form.fields[name], "interactive", None) is not False
