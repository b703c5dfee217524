"""The Gradio page: what stands where. What its buttons do is in events.py, what it says in panels.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from pipeline.presets import Preset
from server import panels
from server.fields import FieldBuilder
from server.form import FIELDS, Values, starting_values

TITLE = "Video-As-Prompt Studio"
CACHE_CHECK_S, CACHE_AGE_S = 3600, 86400  # Gradio's copies of uploads and results; the results themselves stay

CREATE_TAB = "create"
LANGUAGES = ("cURL", "Python", "JavaScript")
# Of a list of jobs: hands over which button of which job was pressed; deleting is asked for twice.
PRESS_BUTTONS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (!button) return;
  const { action, job } = button.dataset;
  if (action === "delete" && !confirm("Delete this for good?")) return;
  trigger("click", { action, job });
});
"""


@dataclass(frozen=True)
class Form:
    """The input side: fields and the places of their problems by the names of GenerationRequest, and the buttons.

    starts: what the fields begin with.
    """

    starts: Values
    fields: Mapping[str, Component]
    problems: Mapping[str, gr.HTML]
    clip: gr.Video
    clip_facts: gr.HTML
    more: gr.Accordion
    faster: gr.Accordion
    dice: gr.Button
    estimate: gr.HTML
    generate: gr.Button
    stop: gr.Button

    @property
    def inputs(self) -> list[Component]:
        """Give the fields in the order of FIELDS."""
        return [self.fields[field] for field in FIELDS]

    @property
    def offers_loras(self) -> bool:
        """Whether there is a LoRA to choose; if not, its field is hidden and stays empty."""
        return len(getattr(self.fields["lora"], "choices", ())) > 1

    @property
    def folds(self) -> list[gr.Accordion]:
        """Give what hides fields until it is opened."""
        return [self.more, self.faster]


@dataclass(frozen=True)
class ResultView:
    """The output side."""

    copy_link: gr.Button
    status: gr.HTML
    try_smaller: gr.Button
    preview: gr.HTML
    empty: gr.HTML
    finished: gr.Column
    video: gr.HTML
    comparison: gr.HTML
    download: gr.HTML
    use_seed: gr.Button
    use_settings: gr.Button
    settings: gr.HTML


@dataclass(frozen=True)
class Page:
    """Everything on the page that something happens to.

    job, visitor: what the browser keeps of us, the id of the job on show and its own. Every tab of the browser has its
    own job on show; the last one is kept. kept_values, kept_files: the form as it stands; see keeping.py.
    """

    blocks: gr.Blocks
    job: gr.BrowserState
    visitor: gr.BrowserState
    kept_values: gr.BrowserState
    kept_files: gr.BrowserState
    model: gr.HTML
    tabs: gr.Tabs
    create_tab: gr.Tab
    jobs_tab: gr.Tab
    code_tab: gr.Tab
    examples: Sequence[tuple[gr.Button, Preset]]
    form: Form
    result: ResultView
    jobs: gr.HTML
    code_notes: gr.HTML
    code: Mapping[str, gr.HTML]


def build_page(
    presets: Sequence[Preset],
    browser_secret: str,
    *,
    starts: Values | None = None,
    safety_forced: bool = False,
    loras: Sequence[str] = (),
) -> Page:
    """Lay the page out.

    starts: what the form begins with; None: what suits the released model. safety_forced: nobody can switch the safety
    checker off. loras: the names to choose from.
    """
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(CACHE_CHECK_S, CACHE_AGE_S))
    with blocks:
        job = gr.BrowserState(storage_key="video-as-prompt-job", secret=browser_secret)
        visitor = gr.BrowserState(storage_key="video-as-prompt-visitor", secret=browser_secret)
        kept_values = gr.BrowserState(storage_key="video-as-prompt-form", secret=browser_secret)
        kept_files = gr.BrowserState(storage_key="video-as-prompt-files", secret=browser_secret)
        gr.HTML(panels.HEADER)
        model = gr.HTML(elem_id="model")
        with gr.Tabs(elem_id="pages") as tabs:
            with gr.Tab("Create", id=CREATE_TAB) as create_tab:
                examples = _build_examples(presets)
                with gr.Row(elem_classes="columns", equal_height=False):
                    with gr.Column(elem_classes="inputs"):
                        form = _build_form(starts or starting_values(), safety_forced=safety_forced, loras=loras)
                    with gr.Column(elem_classes="output"):
                        result = _build_result()
            with gr.Tab("My jobs", id="jobs") as jobs_tab:
                jobs = gr.HTML(elem_id="jobs", js_on_load=PRESS_BUTTONS)
            with gr.Tab("Code", id="code") as code_tab:
                code_notes, code = _build_code()
    return Page(
        blocks,
        job,
        visitor,
        kept_values,
        kept_files,
        model,
        tabs,
        create_tab,
        jobs_tab,
        code_tab,
        examples,
        form,
        result,
        jobs,
        code_notes,
        code,
    )


def _build_examples(presets: Sequence[Preset]) -> list[tuple[gr.Button, Preset]]:
    gr.HTML('<h2 class="examples-title">Start from an example</h2>')
    with gr.Row(elem_classes="examples"):
        return [
            (gr.Button(preset.title, icon=preset.poster, elem_classes="example", min_width=120), preset)
            for preset in presets
        ]


def _build_form(starts: Values, *, safety_forced: bool, loras: Sequence[str]) -> Form:
    build = FieldBuilder(starts)
    with gr.Row(elem_classes="media"):
        with gr.Column(elem_classes="card", min_width=240):
            gr.HTML(panels.step_heading(1, "Reference clip", "Its effect, motion or camera move is what you want."))
            build.reference_video()
            clip = gr.Video(
                show_label=False, height=190, loop=True, autoplay=True, buttons=[], visible=False, elem_id="clip"
            )
            clip_facts = gr.HTML(elem_id="clip-facts")
        with gr.Column(elem_classes="card", min_width=240):
            gr.HTML(panels.step_heading(2, "Start image", "The picture it should happen to."))
            build.image()
    with gr.Column(elem_classes="card"):
        gr.HTML(panels.step_heading(3, "Words", "Say the same thing twice: once of the clip, once of your picture."))
        build.texts()
    with gr.Column(elem_classes="card"):
        build.shape()
        dice = build.length_and_seed()
        with gr.Accordion("More settings", open=False, elem_id="more") as more:
            build.more_settings()
            with gr.Accordion("Faster, less exact", open=False, elem_id="faster") as faster:
                build.faster()
            build.lora(loras)
            build.safety(forced=safety_forced)
    with gr.Row(elem_classes="actions"):
        estimate = gr.HTML(elem_id="estimate")
        generate = gr.Button("Generate video", variant="primary", size="lg", elem_id="generate", scale=3)
        stop = gr.Button("Stop", size="lg", interactive=False, elem_id="stop", scale=1, min_width=100)
    return Form(starts, build.fields, build.problems, clip, clip_facts, more, faster, dice, estimate, generate, stop)


def _build_result() -> ResultView:
    with gr.Column(elem_classes="card result"):
        with gr.Row(elem_classes="result-head"):
            gr.HTML('<h2 class="result-title">Result</h2>')
            copy_link = gr.Button("Copy link", size="sm", visible=False, elem_id="copy-link", scale=0, min_width=90)
        status = gr.HTML(elem_id="status")
        try_smaller = gr.Button(visible=False, elem_id="try-smaller")
        preview = gr.HTML(elem_id="preview")
        empty = gr.HTML(panels.EMPTY_RESULT, elem_id="empty")
        with gr.Column(visible=False, elem_id="finished") as finished:
            with gr.Tab("Video"):
                video = gr.HTML(elem_id="video")
            with gr.Tab("Beside the reference"):
                comparison = gr.HTML(elem_id="comparison")
            with gr.Row(elem_classes="result-actions"):
                download = gr.HTML()
                use_seed = gr.Button("Use this seed", elem_id="use-seed", min_width=120)
                use_settings = gr.Button("Use these settings", elem_id="use-settings", min_width=150)
            with gr.Accordion("Settings used", open=True):
                settings = gr.HTML(elem_id="settings")
    return ResultView(
        copy_link,
        status,
        try_smaller,
        preview,
        empty,
        finished,
        video,
        comparison,
        download,
        use_seed,
        use_settings,
        settings,
    )


def _build_code() -> tuple[gr.HTML, dict[str, gr.HTML]]:
    with gr.Column(elem_classes="card code"):
        gr.HTML("<h2>From a program</h2>")
        notes = gr.HTML(elem_id="code-notes")
        with gr.Tabs(elem_id="languages"):
            return notes, {language: _build_language(language) for language in LANGUAGES}


def _build_language(language: str) -> gr.HTML:
    with gr.Tab(language):
        return gr.HTML(elem_classes="program-slot")
