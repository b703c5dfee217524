"""What every event of the page needs: its options, how it answers, and whom it serves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gradio as gr

from pipeline.errors import StudioError
from server import panels
from server.form import FASTER_FIELDS, FOLDED_FIELDS
from server.studio import owner_of
from server.ui import Form

Updates = dict[Any, Any]  # component -> its new value or properties

QUIET: Mapping[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # the page shows its own progress


def owner_behind(request: gr.Request, visitor: str | None) -> str | None:
    """Give the owner of what is done by this event."""
    return owner_of(request.username, visitor)


def tell_problems(form: Form, problems: Mapping[str, str]) -> Updates:
    """Put problems at their fields, and take away those that are gone; what folds away opens for one inside."""
    told = {line: panels.problem_line(name, problems.get(name)) for name, line in form.problems.items()}
    hidden_by = ((form.more, FOLDED_FIELDS), (form.faster, FASTER_FIELDS))
    opened = {fold: gr.update(open=True) for fold, fields in hidden_by if problems.keys() & set(fields)}
    return {**told, **opened}


def into_cache(path: Any) -> str:
    """Give a file to Gradio, which serves only what lies in its own folder."""
    return str(gr.processing_utils.save_file_to_cache(path, cache_dir=gr.utils.get_upload_folder()))


@contextmanager
def told_in_a_corner() -> Iterator[None]:
    """Say what goes wrong in a pop-up, for buttons that have no place of their own to say it."""
    try:
        yield
    except StudioError as error:
        raise gr.Error(error.message, print_exception=False) from error
