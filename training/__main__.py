"""The entry points: `python -m training` does all stages in turn; `python -m training STAGE` one of them."""

import argparse
from pathlib import Path

from training import autoencoder
from training.decoder import train_decoder
from training.denoiser import load_tokenizer, train_denoiser
from training.effects import EASY_EFFECTS, EFFECTS, PAIRED_EFFECTS
from training.evaluate import evaluate
from training.example_sheet import draw_presets
from training.export import export_nano, resume_nano
from training.sittings import start_workers

ROOT = Path(__file__).parents[1]
MINUTES = {"pictures": 9.0, "clips": 87.0, "denoiser": 45.0, "decoder": 9.0}
# what the evaluation tries, and what a result could be taken for besides
TRIED = {"all": (EFFECTS, ()), "easy": (EASY_EFFECTS, ()), "paired": (PAIRED_EFFECTS, EASY_EFFECTS)}
DIETS = {"pictures": autoencoder.PICTURES, "clips": autoencoder.CLIPS}


def main() -> None:
    """Run what was asked for."""
    arguments = build_parser().parse_args()
    if arguments.stage == "evaluate":
        options = {"guidance_scale": arguments.guidance}
        effects, others = TRIED[arguments.effects]
        given = (arguments.model, arguments.out, arguments.rounds, arguments.frames)
        print(evaluate(*given, effects, options, others, arguments.seed))
        return
    for stage in [arguments.stage] if arguments.stage else list_missing_stages(arguments.runs):
        run_stage(stage, arguments)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", nargs="?", choices=(*MINUTES, "latents", "resume", "export", "examples", "evaluate"))
    parser.add_argument(
        "--minutes",
        type=float,
        help="of the stage, by default what nano was given; of the denoiser, one of many sittings",
    )
    parser.add_argument("--pace", type=float, default=1.0, help="the denoiser's first learning rate; 0.1 to end with")
    parser.add_argument("--processes", type=int, default=2, help="that train together, of one thread each")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="checkpoints and logs")
    parser.add_argument(
        "--model", type=Path, default=ROOT / "assets" / "nano", help="what to write, to evaluate, or to go on from"
    )
    parser.add_argument("--kept", type=float, default=0.0, help="of the export: share of the model's weights so far")
    parser.add_argument("--rounds", type=int, default=2, help="of the evaluation, each with every effect once")
    parser.add_argument("--frames", type=int, default=17, help="of the evaluation's clips")
    parser.add_argument("--seed", type=int, default=11, help="of the evaluation's trials")
    parser.add_argument("--guidance", type=float, help="of the evaluation, 1: none; left out: the model's own")
    parser.add_argument(
        "--effects", choices=TRIED, default="all", help="to evaluate; easy: those that are taught first"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evaluation", help="figures and contact sheets")
    return parser


def list_missing_stages(runs: Path) -> list[str]:
    """Give the stages still to do: those of the autoencoder once, the others as often as wanted."""
    stages = [] if (runs / "latents.pt").exists() else ["pictures", "clips", "latents"]
    return [*stages, "denoiser", "decoder", "export"]


def run_stage(stage: str, arguments: argparse.Namespace) -> None:
    """Run one stage of the training."""
    runs, minutes = arguments.runs, arguments.minutes or MINUTES.get(stage)
    if stage in DIETS:
        start_workers(autoencoder.train_autoencoder, arguments.processes, runs, DIETS[stage], minutes)
    elif stage == "latents":
        autoencoder.measure_latents(runs)
    elif stage == "resume":
        resume_nano(arguments.model, runs)
    elif stage == "export":
        export_nano(runs, arguments.model, arguments.kept)
    elif stage == "examples":
        draw_presets(arguments.model, arguments.model / "presets.jpg")
    elif stage == "decoder":
        start_workers(train_decoder, arguments.processes, runs, minutes)
    else:
        load_tokenizer(runs)  # made before there are two who would make it
        start_workers(train_denoiser, arguments.processes, runs, minutes, arguments.pace)


if __name__ == "__main__":
    main()
