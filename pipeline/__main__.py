"""The command line: `python -m pipeline --reference-video clip.mp4 --image horse.png ... --output out.mp4`.

`python -m pipeline models` looks after the files of the models; `python -m pipeline calibrate` compares a quicker way
of making a video with the exact one.
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from tqdm import tqdm

from pipeline import spec
from pipeline.check import check_inputs
from pipeline.errors import StudioError
from pipeline.importing import importing
from pipeline.lora_shelf import ENDING, NO_LORAS, LoraShelf
from pipeline.model_progress import ModelProgress
from pipeline.models import run_models
from pipeline.planner import Planner, make_planner
from pipeline.ranks import is_follower, is_parallel

if TYPE_CHECKING:
    from pipeline.generate import OnProgress, Progress

# The safety checker has a switch instead of a value, and a LoRA is a file here.
OPTIONS = [name for name in spec.GenerationRequest.model_fields if name not in ("enable_safety_checker", "lora")]


def build_parser() -> argparse.ArgumentParser:
    """Give an option to every field of a request; the values are checked by the request, not here."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Make a video in which an image does what a reference video does.",
        epilog="`python -m pipeline models --help`: download, check and update the models. "
        "`python -m pipeline calibrate --help`: compare a quicker way of making a video with the exact one.",
    )
    _add_options(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.mp4", help="Where the video goes.")
    return parser


def build_calibration_parser() -> argparse.ArgumentParser:
    """Give the options of a request, and what the approximate run of a comparison has of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline calibrate",
        description="Make a video exactly, and again with --lora, --cache-threshold or --guided-share; compare them.",
    )
    _add_options(parser)
    parser.add_argument(
        "--approximate-steps", metavar="…", help="Denoising steps of the approximate run; none: as the exact one."
    )
    parser.add_argument(
        "--approximate-guidance", metavar="…", help="Guidance of the approximate run; none: as the exact one."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="SHEET.png", help="Where frames of both go.")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    for name in OPTIONS:
        field = spec.GenerationRequest.model_fields[name]
        note = "" if field.is_required() or field.default is None else f" (default {field.default})"
        parser.add_argument(
            f"--{name.replace('_', '-')}", required=field.is_required(), metavar="…", help=f"{field.description}{note}"
        )
    parser.add_argument(
        "--no-safety-checker",
        dest="enable_safety_checker",
        action="store_false",
        help="Do not check for unsafe content.",
    )
    parser.add_argument("--model", default="nano", help="nano (default), 14b, a folder or a hub repository.")
    parser.add_argument("--profile", default="auto", help="How the weights lie in memory; auto picks what fits.")
    parser.add_argument(
        "--attention",
        default=spec.NATIVE_ATTENTION,
        help="What computes attention, by diffusers' names: flash, sage.",
    )
    parser.add_argument(
        "--ring-degree", type=int, default=1, help="Of torchrun's processes, how many pass keys around in a ring."
    )
    parser.add_argument("--lora", type=Path, metavar="FILE.safetensors", help="A LoRA to put on the model.")


def _read_request(arguments: argparse.Namespace) -> tuple[spec.GenerationRequest, LoraShelf]:
    """Give the request of the options, its files checked, and the shelf its LoRA is on."""
    file: Path | None = arguments.lora
    if file is not None and not (file.suffix == ENDING and file.is_file()):
        raise StudioError(f"The LoRA “{file}” is no {ENDING} file that is there; check its name.")
    given = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    lora = None if file is None else file.name.removesuffix(ENDING)
    request = spec.GenerationRequest(**given, lora=lora, enable_safety_checker=arguments.enable_safety_checker)
    check_inputs(request)
    return request, NO_LORAS if file is None else LoraShelf(file.parent)


def _check_output(output: Path, *endings: str) -> None:
    if output.suffix.lower() not in endings:
        message = f"The output “{output}” has no ending for it; give a name that ends in {' or '.join(endings)}."
        raise StudioError(message)
    if not output.parent.is_dir():
        raise StudioError(f"The folder “{output.parent}” for the output does not exist; make it first.")


def _load(arguments: argparse.Namespace, planner: Planner) -> "tuple[Any, spec.ModelFacts]":
    """Load the model, showing how far that is."""
    from pipeline.attention import check_attention
    from pipeline.weights import load_model

    check_attention(arguments.attention)
    with tqdm(bar_format="{desc}", leave=False) as bar:

        def show_model(progress: ModelProgress) -> None:
            bar.set_description_str(f"{progress.stage} {progress.amount}")

        options = {"attention": arguments.attention, "ring_degree": arguments.ring_degree}
        return load_model(arguments.model, show_model, planner, **options)


def _show_on(bar: Any) -> "OnProgress":
    def show(progress: "Progress") -> None:
        if progress.note:
            bar.write(progress.note)
        bar.set_description(progress.stage)
        bar.update(progress.step - bar.n if progress.stage == "denoising" else 0)

    return show


def run(arguments: argparse.Namespace) -> None:
    """Make the video that the options describe. Raises StudioError, pydantic's ValidationError."""
    if is_follower():  # one of several processes of `torchrun`; another one makes the file
        with importing("diffusers"):
            from pipeline.weights import follow_leader

        follow_leader(arguments.model, arguments.attention, arguments.ring_degree)
        return
    output: Path = arguments.output
    _check_output(output, ".mp4")
    request, loras = _read_request(arguments)
    planner = make_planner(arguments.model, arguments.profile)
    # Imported late: torch and diffusers take seconds, and neither `--help` nor a wrong input should wait for them.
    with importing("diffusers"):
        from pipeline.profiles import generate_as_planned

    pipe, facts = _load(arguments, planner)
    made = spec.settle(request, facts, random.Random())
    with (
        tempfile.TemporaryDirectory(dir=output.parent, prefix=".video-as-prompt-") as folder,
        tqdm(total=made.num_inference_steps, unit="step") as bar,
    ):
        result = generate_as_planned(made, pipe, Path(folder), _show_on(bar), planner, loras)
        shutil.move(result.video, output)
    print(f"{output}: {made.num_frames} frames, {made.width} x {made.height}, seed {made.seed}, {result.seconds:.0f} s")


def run_calibration(arguments: argparse.Namespace) -> None:
    """Compare an approximate run with the exact one. Raises StudioError, pydantic's ValidationError."""
    if is_parallel():
        raise StudioError("A comparison is made by one process; start it without torchrun.")
    output: Path = arguments.output
    _check_output(output, ".png", ".jpg")
    request, loras = _read_request(arguments)
    asked = {"num_inference_steps": arguments.approximate_steps, "guidance_scale": arguments.approximate_guidance}
    changes = {name: value for name, value in asked.items() if value is not None}
    approximate = spec.GenerationRequest(**request.model_dump() | changes)
    planner = make_planner(arguments.model, arguments.profile)
    with importing("diffusers"):
        from pipeline.calibrate import calibrate, make_exact

    pipe, facts = _load(arguments, planner)
    exact = make_exact(spec.settle(request, facts, random.Random()))
    quick = spec.settle(approximate.model_copy(update={"seed": exact.seed}), facts, random.Random())
    with tempfile.TemporaryDirectory() as folder, tqdm(unit="step") as bar:
        found = calibrate(exact, quick, pipe, Path(folder), output, planner, loras, _show_on(bar))
    print(f"{found.describe()}\n{output}: frames of both")


def main() -> int:
    """Run the command line; 0 done, 2 a wrong input, 130 stopped."""
    try:
        if sys.argv[1:2] == ["models"]:
            run_models(sys.argv[2:])
        elif sys.argv[1:2] == ["calibrate"]:
            run_calibration(build_calibration_parser().parse_args(sys.argv[2:]))
        else:
            run(build_parser().parse_args())
    except ValidationError as error:
        sentences = [found.message for found in spec.explain(error)]
    except StudioError as error:
        sentences = [error.message]
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped.\n")
        return 130
    else:
        return 0
    sys.stderr.write("".join(f"{sentence}\n" for sentence in sentences))
    return 2


if __name__ == "__main__":
    sys.exit(main())
