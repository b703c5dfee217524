"""The fields of the form, one by one; server/ui.py says where each group of them stands."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import gradio as gr
from gradio.components import Component
from gradio.data_classes import ImageData

from pipeline.spec import FRAME_STRIDE, AspectRatio, Resolution, limits

CLIP_TYPES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".gif")
ASPECT_LABELS: Mapping[str, str] = {"9:16": "Upright 9:16", "16:9": "Wide 16:9"}


class FieldBuilder:
    """Makes the form's fields, each with a place for its problem; limits come from `pipeline.spec`."""

    def __init__(self, starts: Mapping[str, Any]) -> None:
        """Take the values that the fields begin with."""
        self.starts = starts
        self.fields: dict[str, Component] = {}
        self.problems: dict[str, gr.HTML] = {}

    def reference_video(self) -> None:
        """Take any clip, whether browsers play it or not."""
        # Not gr.Video: it refuses GIFs, shows errors for what browsers cannot play, and trims with a program from a
        # foreign host.
        with self._field("reference_video") as add:
            add(gr.File(label="Reference clip", show_label=False, file_types=list(CLIP_TYPES), height=230))

    def image(self) -> None:
        """Take a picture."""
        with self._field("image") as add:
            picture = gr.Image(
                label="Start image", show_label=False, type="filepath", sources=["upload"], height=230, buttons=[]
            )
            # Gradio would open the file and complain in a pop-up; ours is told at the field. Not a subclass: beside the
            # module of each of those Gradio writes a file.
            picture.preprocess = _give_path
            add(picture)

    def texts(self) -> None:
        """Take both sentences."""
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
        """Choose upright or wide, and how large."""
        with gr.Row():
            with self._field("aspect_ratio") as add:
                choices = [(ASPECT_LABELS[ratio], ratio) for ratio in get_args(AspectRatio)]
                add(gr.Radio(choices, value=self.starts["aspect_ratio"], label="Shape"))
            with self._field("resolution") as add:
                add(gr.Radio(list(get_args(Resolution)), value=self.starts["resolution"], label="Resolution"))

    def length_and_seed(self) -> gr.Button:
        """Choose how long, and the seed. Gives the button that rolls one."""
        with gr.Row():
            with self._field("num_frames") as add:
                add(self._slider("num_frames", "Frames", step=FRAME_STRIDE))
            with self._field("seed") as add, gr.Row(elem_classes="seed"):
                add(gr.Textbox("", label="Seed", placeholder="empty: drawn", max_lines=1, scale=3, min_width=120))
                return gr.Button("⚄ Roll", elem_id="dice", scale=1, min_width=80)

    def more_settings(self) -> None:
        """Take what most people leave as it is."""
        with gr.Row():
            with self._field("guidance_scale") as add:
                add(
                    self._slider(
                        "guidance_scale",
                        "Guidance",
                        step=0.5,
                        info="How strongly the sentences push the video. 1: no push, in about half the time.",
                    )
                )
            with self._field("fps") as add:
                add(self._slider("fps", "Frames per second", step=1, info="How fast the frames are shown."))
        with gr.Row():
            for field, label, placeholder in (
                ("num_inference_steps", "Steps", "empty: the model's own"),
                ("reference_start_s", "Clip from second", "empty: its start"),
                ("reference_end_s", "Clip to second", "empty: its end"),
            ):
                with self._field(field) as add:
                    add(gr.Textbox("", label=label, placeholder=placeholder, max_lines=1, min_width=120))
        with self._field("negative_prompt") as add:
            add(
                gr.Textbox(
                    "",  # with a default, programs may leave it out
                    label="Negative prompt",
                    lines=2,
                    placeholder="What to stay away from, with guidance above 1. Empty: the model's own text.",
                )
            )

    def faster(self) -> None:
        """Take what makes a video quicker by giving something up; off unless asked."""
        with self._field("cache_threshold") as add:
            info = "Calm steps repeat the one before. Quicker, but fine detail and motion may suffer. 0: off."
            add(self._slider("cache_threshold", "Repeat steps that change less than", step=0.01, info=info))
        with self._field("guided_share") as add:
            info = "The last steps go without guidance, in half the time, and follow the sentences less. 1: guide all."
            add(self._slider("guided_share", "Share of guided steps", step=0.05, info=info))

    def lora(self, names: Sequence[str]) -> None:
        """Choose a LoRA and how strongly it acts; hidden where there is none to choose."""
        with gr.Row(visible=bool(names)):
            with self._field("lora") as add:
                info = (
                    "It changes the model’s style or pace. It was trained without this model’s reference part, so try "
                    "it out. One made for few steps wants as few as it was made for, and guidance 1."
                )
                # Any name may be typed: one that is gone, as of an old job, is then told at the field.
                choices = [("none", ""), *names]
                add(gr.Dropdown(choices, value="", label="LoRA (experimental)", info=info, allow_custom_value=True))
            with self._field("lora_strength") as add:
                add(
                    self._slider(
                        "lora_strength", "LoRA strength", step=0.05, info="How strongly it acts. 0: not at all."
                    )
                )

    def safety(self, *, forced: bool) -> None:
        """Switch the safety checker, unless the operator forces it on."""
        info = "Always on in this studio." if forced else "Declines unsafe clips, pictures, words and results."
        with self._field("enable_safety_checker") as add:
            add(
                gr.Checkbox(
                    value=self.starts["enable_safety_checker"],
                    label="Safety checker",
                    info=info,
                    interactive=not forced,
                )
            )

    def _slider(self, name: str, label: str, **options: Any) -> gr.Slider:
        lowest, highest = limits(name)
        return gr.Slider(lowest, highest, value=self.starts[name], label=label, buttons=[], **options)

    @contextmanager
    def _field(self, name: str) -> Iterator[Callable[[Component], None]]:
        with gr.Column(elem_classes="field", elem_id=f"field-{name}", min_width=140):
            yield lambda component: self.fields.__setitem__(name, component)
            self.problems[name] = gr.HTML(elem_classes="problem-slot")


def _give_path(payload: ImageData | None) -> str | None:
    return payload.path if payload else None
