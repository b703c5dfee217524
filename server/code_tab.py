"""The "Code" tab: the form as it stands, as programs against this server."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from server import panels
from server.calls import base_url
from server.form import SOURCES, read_what_fits
from server.page_events import QUIET, Updates
from server.schema import Urls
from server.snippets import curl_snippet, javascript_snippet, python_snippet
from server.studio import Studio
from server.ui import Page

SNIPPETS: Mapping[str, Callable[..., str]] = {
    "cURL": curl_snippet,
    "Python": python_snippet,
    "JavaScript": javascript_snippet,
}


class CodeTab:
    """Writes the programs anew each time the tab is looked at."""

    def __init__(self, page: Page, studio: Studio) -> None:
        self.page, self.studio = page, studio

    def connect(self) -> None:
        """Tie the tab to its programs."""
        page = self.page
        outputs = [page.code_notes, *page.code.values()]
        page.code_tab.select(self.write, inputs=page.form.inputs, outputs=outputs, queue=False, **QUIET)

    def write(self, request: gr.Request, *values: Any) -> Updates:
        """Put the form's settings into each program. Its files are stored, so that the programs run as they are."""
        settings = read_what_fits(values)
        urls = Urls(base_url(request.headers, request.url.scheme, self.studio.public_url))
        found = {
            name: urls.file(self.studio.uploads.keep(Path(settings[name]))) for name in SOURCES if name in settings
        }
        needs_key = not self.studio.keys.is_open
        programs = {
            self.page.code[name]: panels.program(name, write({**settings, **found}, urls.base, needs_key=needs_key))
            for name, write in SNIPPETS.items()
        }
        return {self.page.code_notes: panels.code_notes(needs_key=needs_key, has_files=len(found) == 2), **programs}
