"""The command line: `python -m pipeline --reference-video clip.mp4 --image horse.png ... --output out.mp4`.

`python -m pipeline models` looks after the files of the models.
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from tqdm import tqdm

from pipeline import spec
from pipeline.errors import StudioError
from pipeline.model_progress import ModelProgress
from pipeline.models import run_models
from pipeline.ranks import is_follower

if TYPE_CHECKING:
    from pipeline.generate import Progress

# The safety checker has a switch instead of a value.
OPTIONS = [name for name in spec.GenerationRequest.model_fields if name != "enable_safety_checker"]


def build_parser() -> argparse.ArgumentParser:
    """Give an option to every field of a request; the values are checked by the request, not here."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Make a video in which an image does what a reference video does.",
        epilog="`python -m pipeline models --help`: download, check and update the models.",
    )
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
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.mp4", help="Where the video goes.")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Make the video that the options describe. Raises StudioError, pydantic's ValidationError."""
    # Imported here: torch and diffusers take several seconds, and `--help` and `models` should not wait for them.
    from pipeline.check import check_inputs
    from pipeline.planner import make_planner
    from pipeline.profiles import generate_as_planned
    from pipeline.weights import follow_leader, load_model

    if is_follower():  # one of several processes of `torchrun`; another one makes the file
        follow_leader(arguments.model, arguments.profile)
        return
    output: Path = arguments.output
    if output.suffix.lower() != ".mp4":
        raise StudioError(f"The output “{output}” is not an .mp4 file; give a name that ends in .mp4.")
    if not output.parent.is_dir():
        raise StudioError(f"The folder “{output.parent}” for the output does not exist; make it first.")
    given = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    request = spec.GenerationRequest(**given, enable_safety_checker=arguments.enable_safety_checker)
    check_inputs(request)

    planner = make_planner(arguments.model, arguments.profile)
    with tqdm(bar_format="{desc}", leave=False) as bar:

        def show_model(progress: ModelProgress) -> None:
            bar.set_description_str(f"{progress.stage} {progress.amount}")

        pipe, facts = load_model(arguments.model, show_model, planner)
    made = spec.settle(request, facts, random.Random())
    with (
        tempfile.TemporaryDirectory(dir=output.parent, prefix=".video-as-prompt-") as folder,
        tqdm(total=made.num_inference_steps, unit="step") as bar,
    ):

        def show(progress: "Progress") -> None:
            if progress.note:
                bar.write(progress.note)
            bar.set_description(progress.stage)
            bar.update(progress.step - bar.n if progress.stage == "denoising" else 0)

        result = generate_as_planned(made, pipe, Path(folder), show, planner)
        shutil.move(result.video, output)
    print(f"{output}: {made.num_frames} frames, {made.width} x {made.height}, seed {made.seed}, {result.seconds:.0f} s")


def main() -> int:
    """Run the command line; 0 done, 2 a wrong input, 130 stopped."""
    try:
        if sys.argv[1:2] == ["models"]:
            run_models(sys.argv[2:])
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
