"""What the form's request would take, beside its button: told anew when that, or what is known of it, changes."""

from collections.abc import Sequence
from random import Random
from typing import Any

import gradio as gr
from pydantic import ValidationError

from pipeline.errors import StudioError
from pipeline.spec import GenerationRequest, settle
from server import panels
from server.form import REQUIRED
from server.page_events import QUIET, Updates
from server.studio import Studio
from server.ui import Page

COSTLY = ("resolution", "num_frames", "num_inference_steps", "guidance_scale", "guided_share")
MACHINE_POLL_S = 1.0


class EstimateLine:
    """Tells seconds and memory of what stands in the form, or that it does not fit and what would."""

    def __init__(self, page: Page, studio: Studio) -> None:
        self.page, self.studio = page, studio
        self.timer = gr.Timer(MACHINE_POLL_S)

    def connect(self, settled: gr.Textbox) -> None:
        """Keep the line true. settled: changes when a job comes to its end, be it finished, failed or stopped."""
        page = self.page
        fields = [page.form.fields[name] for name in COSTLY]
        # a run that has come to its end may have taught something, one that ran out of memory too
        for changed in (*fields, settled):
            changed.change(
                self.tell,
                inputs=fields,
                outputs=page.form.estimate,
                queue=False,
                trigger_mode="always_last",
                **QUIET,
            )
        for happens in (page.blocks.load, self.timer.tick):
            happens(self.look, inputs=fields, outputs=[page.form.estimate, self.timer], queue=False, **QUIET)

    def look(self, *values: Any) -> Updates:
        """Tell it first, as soon as this machine was looked at."""
        is_known = self.studio.planner() is not None or self.studio.model is None
        return {self.page.form.estimate: self.tell(*values), self.timer: gr.Timer(active=not is_known)}

    def tell(self, *values: Any) -> str:
        """Give the line for values of the fields in COSTLY; empty where nobody can know, or one is not in order."""
        planner = self.studio.planner()
        request = _read(values)
        if planner is None or request is None:
            return ""
        try:
            plan = planner.plan(settle(request, planner.facts, Random(0)))
        except StudioError as error:
            return panels.does_not_fit(error.message)
        return panels.estimate(plan, planner.machine)


def _read(values: Sequence[Any]) -> GenerationRequest | None:
    given = {
        name: value for name, value in zip(COSTLY, values, strict=True) if value is not None and str(value).strip()
    }
    unimportant: dict[str, Any] = dict.fromkeys(REQUIRED, "-")
    try:
        return GenerationRequest(**unimportant, **given)
    except ValidationError:
        return None
