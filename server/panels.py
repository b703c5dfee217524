"""What the page says beside its fields, as HTML: pure functions from values to markup. Everything given is escaped."""

from collections.abc import Mapping
from datetime import datetime
from html import escape
from typing import Any, get_args
from urllib.parse import quote

from pipeline.hardware import Plan, spell_needs
from pipeline.machine import Machine, spell_bytes
from pipeline.media import VideoInfo
from pipeline.model_progress import ModelProgress, ModelStage
from pipeline.spec import ModelFacts, default
from server.files import split_key
from server.job import Job, JobProgress, JobResult, JobStatus

STAGES: Mapping[str, str] = {
    "waiting": "Getting ready",
    "fetching": "Fetching your files",
    "downloading": "Downloading the model",
    "verifying": "Checking the model’s files",
    "loading": "Loading the model",
    "reading": "Reading your clip and picture",
    "checking": "Safety check",
    "encoding": "Understanding the reference",
    "denoising": "Drawing the video",
    "decoding": "Turning it into frames",
    "saving": "Saving the file",
    "storing": "Putting it on the shelf",
}
MODEL_STAGES: tuple[ModelStage, ...] = get_args(ModelStage)
# Where each stage starts on the bar; drawing takes nearly all of the time.
_STARTS = {
    "waiting": 0.0,
    "fetching": 0.0,
    "downloading": 0.0,
    "verifying": 0.0,
    "loading": 0.01,
    "reading": 0.02,
    "checking": 0.03,  # the first time
    "encoding": 0.04,
    "denoising": 0.08,
    "decoding": 0.86,
    "saving": 0.95,
    "storing": 0.98,
}
_SECOND_CHECK_START = 0.93

SETTING_LABELS: Mapping[str, str] = {
    "seed": "Seed",
    "model": "Model",
    "num_frames": "Frames",
    "fps": "Frames per second",
    "size": "Size",
    "rendered": "Drawn at",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "cache_threshold": "Steps repeated below",
    "guided_share": "Share of guided steps",
    "lora": "LoRA",
    "lora_strength": "LoRA strength",
    "seconds": "Made in",
    "prompt": "What should happen",
    "video_description": "What the clip shows",
    "negative_prompt": "Negative prompt",
    "reference_video": "Reference clip",
    "reference_start_s": "Reference from second",
    "reference_end_s": "Reference to second",
    "image": "Start image",
}
UNUSED_AT_DEFAULT = ("cache_threshold", "guided_share")
TEXT_SETTINGS = ("prompt", "video_description", "negative_prompt")

HEADER = """
<header class="masthead">
  <h1>Video-As-Prompt Studio</h1>
  <p>Show a clip. Give a picture. The picture does what the clip does.</p>
</header>
"""

QUEUE_AWAY = (
    "The studio’s database cannot be reached at the moment, so nothing can be started or shown. Nothing in the queue "
    "is lost, and this page goes on by itself once the database is back. If this lasts, tell whoever runs the studio: "
    "the database must run, and its disk must be writable."
)

# The story of the page in one drawing: clip and picture become a video.
EMPTY_RESULT = """
<div class="empty-result">
  <svg viewBox="0 0 220 90" aria-hidden="true" focusable="false">
    <g fill="none" stroke="currentColor" stroke-width="2.5" stroke-linejoin="round" stroke-linecap="round">
      <rect x="6" y="8" width="56" height="34" rx="6"/><path d="M28 18v14l12-7z" fill="currentColor"/>
      <rect x="6" y="50" width="56" height="34" rx="6"/><circle cx="22" cy="62" r="4"/>
      <path d="M10 80l16-12 10 8 8-6 14 10"/>
      <path d="M76 25h18c10 0 10 20 20 20M76 67h18c10 0 10-22 20-22h8m-7-7 8 7-8 7"/>
      <rect x="134" y="14" width="80" height="62" rx="8"/><path d="M166 33v24l21-12z" fill="currentColor"/>
    </g>
  </svg>
  <p class="lead">Your video will play here</p>
  <p>Add a clip, a picture and two sentences, or start from an example.</p>
</div>
"""


def step_heading(number: int, title: str, hint: str) -> str:
    """Head one of the page's three steps."""
    return (
        f'<div class="step"><span class="step-number" aria-hidden="true">{number}</span>'
        f"<div><h2>{escape(title)}</h2><p>{escape(hint)}</p></div></div>"
    )


def problem_line(field: str, sentence: str | None) -> str:
    """Tell a problem at its field, if there is one; page.js ties the line to the input by its id."""
    if sentence is None:
        return ""
    return f'<p class="problem" role="alert" id="problem-{field}">{escape(sentence)}</p>'


def notice(sentence: str, kind: str = "failed") -> str:
    """Say how a run ended when it did not end in a video."""
    return f'<p class="notice {kind}" role="alert">{escape(sentence)}</p>'


def clip_facts(info: VideoInfo) -> str:
    """Say what the reference clip is, once it was read."""
    return (
        f'<p class="facts">{info.width} × {info.height}, {info.duration_s:.1f} s, {info.fps:.4g} frames per second</p>'
    )


def job_progress(job: Job, now: datetime) -> str:
    """Show where a job is that has not ended."""
    if job.status is JobStatus.WAITING:
        return progress_bar("Waiting in line", place_in_line(job.position), 0.0)
    progress = job.progress or JobProgress("waiting", 0, 1, now)
    return progress_bar(STAGES[progress.stage], ", ".join(_details(progress, now)), fraction_done(progress))


def progress_bar(stage: str, details: str, share: float) -> str:
    """Show how far something is: in words, and by a bar filled to a share of 0 to 1."""
    percent = round(share * 100)
    return (
        f'<div class="progress"><p><span role="status">{stage}</span><span>{details}</span></p>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{percent}"><div style="width:{percent}%"></div></div></div>'
    )


def place_in_line(position: int | None) -> str:
    """Say how many stand before a waiting job."""
    match position:
        case None | 0:
            return "you are next"
        case 1:
            return "one ahead of you"
        case _:
            return f"{position} ahead of you"


def _details(progress: JobProgress, now: datetime) -> list[str]:
    if progress.stage in MODEL_STAGES and progress.step:
        return [ModelProgress(progress.stage, progress.step, progress.total).amount]
    if progress.stage != "denoising":
        return []
    left = seconds_left(progress, now)
    words = [] if left is None else [f"{spell_time(left)} left"]
    return [f"step {progress.step} of {progress.total}", *words]


def seconds_left(progress: JobProgress, now: datetime) -> float | None:
    """Estimate how long the drawing still takes, from the pace of this run's steps; None: not known yet."""
    if progress.stage != "denoising" or progress.steps_began_at is None or progress.first_step is None:
        return None
    done = progress.step - progress.first_step
    if done <= 0:
        return None
    return (now - progress.steps_began_at).total_seconds() / done * (progress.total - progress.step)


def fraction_done(progress: JobProgress) -> float:
    """Give how far along a run is, 0 to 1."""
    if progress.stage == "checking" and progress.steps_began_at is not None:
        return _SECOND_CHECK_START
    start = _STARTS[progress.stage]
    if progress.stage != "denoising":
        return start
    return start + (_STARTS["decoding"] - start) * progress.step / progress.total


def preview_picture(source: str) -> str:
    """Show how the video looks so far. source: a URL."""
    return f'<img class="preview" src="{escape(source)}" alt="The video as it looks so far">'


def player(key: str, label: str) -> str:
    """Play a stored video, over and over."""
    return (
        f'<video src="{file_url(key)}" aria-label="{escape(label)}" controls autoplay loop muted playsinline></video>'
    )


def download_link(result: JobResult) -> str:
    """Offer the video's file."""
    url, name = file_url(result.video_key), escape(split_key(result.video_key).name)
    return f'<a class="button primary" id="download" href="{url}" download="{name}">Download MP4</a>'


def file_url(key: str) -> str:
    """Give the address of a stored file, relative to the page: it may be served below any path."""
    return escape(f"fal/cdn/files/{quote(key)}")


def spell_time(seconds: float) -> str:
    """Say a length of time as people do: "about 40 s", "about 3 min"."""
    if seconds < 10:
        return "a few seconds"
    return f"about {round(seconds / 5) * 5} s" if seconds < 90 else f"about {round(seconds / 60)} min"


def settings_list(settings: Mapping[str, Any], seconds: float) -> str:
    """List the settings that make a result again."""
    shown = {
        **settings,
        "size": f"{settings['width']} × {settings['height']}, {settings['aspect_ratio']}",
        "rendered": f"{settings['render_width']} × {settings['render_height']}",
        "seconds": f"{seconds:.1f} s",
    }
    if (settings["width"], settings["height"]) == (settings["render_width"], settings["render_height"]):
        del shown["rendered"]
    # What was not used needs no row; older results do not know these at all.
    unused = {name for name in UNUSED_AT_DEFAULT if shown.get(name) == default(name)}
    if not shown.get("lora"):
        unused.add("lora_strength")
    rows = (
        _setting_row(label, str(shown[name]), "text" if name in TEXT_SETTINGS else "short")
        for name, label in SETTING_LABELS.items()
        if shown.get(name) is not None and name not in unused
    )
    return f'<dl class="settings">{"".join(rows)}</dl>'


def _setting_row(label: str, value: str, kind: str) -> str:
    return f'<div class="{kind}"><dt>{label}</dt><dd>{escape(value)}</dd></div>'


def program(language: str, text: str) -> str:
    """Show a program, with a button that copies it."""
    return (
        f'<div class="program"><button type="button" class="button" data-copy>Copy</button><pre tabindex="0"'
        f' role="region" aria-label="{escape(language)} program"><code>{escape(text)}</code></pre></div>'
    )


def code_notes(*, needs_key: bool, has_files: bool) -> str:
    """Say what to know before running the programs."""
    notes = [
        "The settings of the form as a program, ready to run against this studio with the clients made for fal. What a "
        'program asks for waits in the same line as what you ask for here. Every call is in <a href="docs">the '
        "reference</a>."
    ]
    if not has_files:
        notes.append("A clip or a picture is missing; addresses of example.com stand in their place.")
    if needs_key:
        notes.append("This studio asks for a key: set FAL_KEY to one that <code>python -m server.keys</code> created.")
    warning = (
        '<p class="notice warning"><strong>Keep every line of the configuration.</strong> Where one is missing, '
        "fal’s clients call the real fal without a word, with your key and your files.</p>"
    )
    return "".join(f"<p>{note}</p>" for note in notes) + warning


def estimate(plan: Plan, machine: Machine) -> str:
    """Say what a run would take, and what that is based on."""
    told, runs = plan.estimate, plan.estimate.correction.runs
    basis = "predicted" if not runs else f"from {runs} run{'s' if runs > 1 else ''} here"
    memory = f"{spell_needs(machine, told)}, {spell_bytes(told.disk_bytes)} of disk"
    words = f"{spell_time(told.seconds)} ({basis}), {memory}, profile {plan.profile.name}"
    return f'<p class="estimate">{escape(words[0].upper() + words[1:])}</p>'


def does_not_fit(sentence: str) -> str:
    """Say that a run would be refused, and what would not."""
    return f'<p class="estimate failed">{escape(sentence)}</p>'


def model_loading(name: str, progress: ModelProgress | None) -> str:
    """Say that the model is on its way, and how far it is."""
    meanwhile = "You can fill in everything meanwhile."
    if progress is None or progress.stage == "loading":
        return _model_card(f"Loading the model {name}", meanwhile, "loading")
    return _model_card(f"{STAGES[progress.stage]} {name}: {progress.amount}", meanwhile, "loading")


def model_ready(facts: ModelFacts, plan: Plan | None = None) -> str:
    """Say plainly which model is in use, what it can and cannot do, and in which profile it lies in memory."""
    profile = f" Profile “{plan.profile.name}”: {plan.reason}" if plan else ""
    if facts.render_size is None:
        return _model_card(f"Model: {facts.name}", f"It draws at the size you choose.{profile}", "ready")
    short, long = facts.render_size
    return _model_card(
        f"Small model “{facts.name}”: {long}x{short}, scaled up",
        "It runs on any computer and shows how the studio works. It takes over changes of light, moves of the camera "
        "and how one object moves, grows or changes colour; its pictures are soft, what moves loses its shape, and two "
        "effects at once, spinning, melting, busy clips or cuts are too much for it. "
        f"For film quality start the studio with --model 14b, which needs a graphics card.{profile}",
        "ready",
    )


def model_elsewhere() -> str:
    """Say that this program makes no videos itself; with which model others do, it does not know."""
    return _model_card("The videos are made on other machines", "They take them in the order of the line.", "ready")


def space_line(sentence: str) -> str:
    """Say what is different on the Space that this runs on; nothing elsewhere."""
    return f'<p class="space">{escape(sentence)}</p>' if sentence else ""


def model_failed(sentence: str) -> str:
    """Say why there is no model."""
    return _model_card("There is no model to draw with", f"{sentence} The next generation tries once more.", "failed")


def _model_card(title: str, text: str, state: str) -> str:
    return f'<div class="model {state}" role="status"><strong>{escape(title)}</strong><span>{escape(text)}</span></div>'
