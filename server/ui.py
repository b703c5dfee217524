"""The Gradio page: what stands where. What its buttons do is in events.py, what it says in panels.py."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr
from gradio.components import Component
from gradio.data_classes import ImageData

from pipeline.presets import Preset
from pipeline.spec import FRAME_STRIDE, AspectRatio, Resolution, default, limits
from server import panels
from server.form import FIELDS

TITLE = "Video-As-Prompt Studio"
CACHE_CHECK_S, CACHE_AGE_S = 3600, 86400  # Gradio's copies of uploads and results; the results themselves stay

CLIP_TYPES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".gif")
ASPECT_LABELS: Mapping[str, str] = {"9:16": "Upright 9:16", "16:9": "Wide 16:9"}


@dataclass(frozen=True)
class Form:
    """The input side: fields and the places of their problems by the names of GenerationRequest, and the buttons."""

    fields: Mapping[str, Component]
    problems: Mapping[str, gr.HTML]
    clip: gr.Video
    clip_facts: gr.HTML
    more: gr.Accordion
    dice: gr.Button
    generate: gr.Button
    stop: gr.Button

    @property
    def inputs(self) -> list[Component]:
        """Give the fields in the order of FIELDS."""
        return [self.fields[field] for field in FIELDS]


@dataclass(frozen=True)
class ResultView:
    """The output side."""

    status: gr.HTML
    empty: gr.HTML
    finished: gr.Column
    video: gr.Video
    comparison: gr.Video
    download: gr.DownloadButton
    use_seed: gr.Button
    settings: gr.HTML


@dataclass(frozen=True)
class Page:
    """Everything on the page that something happens to."""

    blocks: gr.Blocks
    model: gr.HTML
    examples: Sequence[tuple[gr.Button, Preset]]
    form: Form
    result: ResultView


def build_page(presets: Sequence[Preset]) -> Page:
    """Lay the page out."""
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(CACHE_CHECK_S, CACHE_AGE_S))
    with blocks:
        gr.HTML(panels.HEADER)
        model = gr.HTML(elem_id="model")
        examples = _build_examples(presets)
        with gr.Row(elem_classes="columns", equal_height=False):
            with gr.Column(elem_classes="inputs"):
                form = _build_form()
            with gr.Column(elem_classes="output"):
                result = _build_result()
    return Page(blocks, model, examples, form, result)


def _build_examples(presets: Sequence[Preset]) -> list[tuple[gr.Button, Preset]]:
    gr.HTML('<h2 class="examples-title">Start from an example</h2>')
    with gr.Row(elem_classes="examples"):
        return [
            (gr.Button(preset.title, icon=preset.poster, elem_classes="example", min_width=120), preset)
            for preset in presets
        ]


def _build_form() -> Form:
    build = _FieldBuilder()
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
    with gr.Row(elem_classes="actions"):
        generate = gr.Button("Generate video", variant="primary", size="lg", elem_id="generate", scale=3)
        stop = gr.Button("Stop", size="lg", interactive=False, elem_id="stop", scale=1, min_width=100)
    return Form(build.fields, build.problems, clip, clip_facts, more, dice, generate, stop)


def _build_result() -> ResultView:
    with gr.Column(elem_classes="card result"):
        gr.HTML('<h2 class="result-title">Result</h2>')
        status = gr.HTML(elem_id="status")
        empty = gr.HTML(panels.EMPTY_RESULT, elem_id="empty")
        with gr.Column(visible=False, elem_id="finished") as finished:
            with gr.Tab("Video"):
                video = gr.Video(show_label=False, autoplay=True, loop=True, buttons=[], elem_id="video")
            with gr.Tab("Beside the reference"):
                comparison = gr.Video(show_label=False, loop=True, buttons=[], elem_id="comparison")
            with gr.Row(elem_classes="result-actions"):
                download = gr.DownloadButton("Download MP4", variant="primary", elem_id="download")
                use_seed = gr.Button("Use this seed", elem_id="use-seed")
            with gr.Accordion("Settings used", open=True):
                settings = gr.HTML(elem_id="settings")
    return ResultView(status, empty, finished, video, comparison, download, use_seed, settings)


class _FieldBuilder:
    """Makes the form's fields, each with a place for its problem; limits and defaults come from `pipeline.spec`."""

    def __init__(self) -> None:
        self.fields: dict[str, Component] = {}
        self.problems: dict[str, gr.HTML] = {}

    def reference_video(self) -> None:
        # Not gr.Video: it refuses GIFs, shows errors for what browsers cannot play, and trims with a program from a
        # foreign host.
        with self._field("reference_video") as add:
            add(gr.File(label="Reference clip", show_label=False, file_types=list(CLIP_TYPES), height=230))

    def image(self) -> None:
        with self._field("image") as add:
            picture = gr.Image(
                label="Start image", show_label=False, type="filepath", sources=["upload"], height=230, buttons=[]
            )
            # Gradio would open the file and complain in a pop-up; ours is told at the field. Not a subclass: beside the
            # module of each of those Gradio writes a file.
            picture.preprocess = _give_path
            add(picture)

    def texts(self) -> None:
        with self._field("video_description") as add:
            add(
                gr.Textbox(
                    label="Description: what the clip shows",
                    lines=2,
                    placeholder="An orange star in front of a blue background grows.",
                )
            )
        with self._field("prompt") as add:
            add(
                gr.Textbox(
                    label="Prompt: what should happen to your picture",
                    lines=2,
                    placeholder="The red mushroom on the meadow grows.",
                )
            )

    def shape(self) -> None:
        with gr.Row():
            with self._field("aspect_ratio") as add:
                choices = [(ASPECT_LABELS[ratio], ratio) for ratio in get_args(AspectRatio)]
                add(gr.Radio(choices, value=default("aspect_ratio"), label="Shape"))
            with self._field("resolution") as add:
                add(gr.Radio(list(get_args(Resolution)), value=default("resolution"), label="Resolution"))

    def length_and_seed(self) -> gr.Button:
        with gr.Row():
            with self._field("num_frames") as add:
                add(_slider("num_frames", "Frames", step=FRAME_STRIDE))
            with self._field("seed") as add, gr.Row(elem_classes="seed"):
                add(gr.Textbox(label="Seed", placeholder="empty: drawn", max_lines=1, scale=3, min_width=120))
                return gr.Button("⚄ Roll", elem_id="dice", scale=1, min_width=80)

    def more_settings(self) -> None:
        with gr.Row():
            with self._field("guidance_scale") as add:
                add(
                    _slider(
                        "guidance_scale", "Guidance", step=0.5, info="How strongly the sentences pull. 1: not at all."
                    )
                )
            with self._field("fps") as add:
                add(_slider("fps", "Frames per second", step=1, info="How fast the frames are shown."))
        with gr.Row():
            for field, label, placeholder in (
                ("num_inference_steps", "Steps", "empty: the model's own"),
                ("reference_start_s", "Clip from second", "empty: its start"),
                ("reference_end_s", "Clip to second", "empty: its end"),
            ):
                with self._field(field) as add:
                    add(gr.Textbox(label=label, placeholder=placeholder, max_lines=1, min_width=120))
        with self._field("negative_prompt") as add:
            add(
                gr.Textbox(
                    label="Negative prompt", lines=2, placeholder="What to stay away from. Empty: the model's own text."
                )
            )

    @contextmanager
    def _field(self, name: str) -> Iterator[Callable[[Component], None]]:
        with gr.Column(elem_classes="field", elem_id=f"field-{name}", min_width=140):
            yield lambda component: self.fields.__setitem__(name, component)
            self.problems[name] = gr.HTML(elem_classes="problem-slot")


def _give_path(payload: ImageData | None) -> str | None:
    return payload.path if payload else None


def _slider(name: str, label: str, **options: Any) -> gr.Slider:
    lowest, highest = limits(name)
    return gr.Slider(lowest, highest, value=default(name), label=label, buttons=[], **options)
