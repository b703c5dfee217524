"""What to expect of the released 14B on usual machines: `python -m pipeline.predictions` prints a Markdown table.

All of it is arithmetic; `--here` puts this machine in place of the others.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.estimate import ModelShape, Workload
from pipeline.hardware import choose_profile
from pipeline.machine import CARD_TFLOPS, GIB, Machine, look_at_machine, spell_bytes
from pipeline.spec import SIZES, default

STEPS = 50
FRAMES = (17, 25, 49, 81)
CARDS_USABLE = 0.98  # of the memory a card is sold with, as CUDA reports it

# Name, cards that make one video together, GB of each, GB of RAM, kind.
USUAL_MACHINES: Sequence[tuple[str, int, int, int, str]] = (
    ("8 x H100 80 GB, together", 8, 80, 1024, "H100"),
    ("H100 80 GB", 1, 80, 256, "H100"),
    ("A100 80 GB", 1, 80, 256, "A100"),
    ("L40S 48 GB", 1, 48, 128, "L40S"),
    ("RTX 4090 24 GB, 64 GB of RAM", 1, 24, 64, "RTX 4090"),
    ("RTX 4090 24 GB, 48 GB of RAM", 1, 24, 48, "RTX 4090"),
    ("RTX 4090 24 GB, 32 GB of RAM", 1, 24, 32, "RTX 4090"),
    ("RTX 4080 16 GB", 1, 16, 64, "RTX 4080"),
    ("RTX 3060 12 GB", 1, 12, 64, "RTX 3060"),
    ("RTX 4060 8 GB", 1, 8, 64, "RTX 4060"),
)


def usual_machine(name: str, cards: int, card_gb: int, ram_gb: int, kind: str) -> Machine:
    """Give a machine as it would be seen, with all optional packages."""
    memory, packages = round(card_gb * GIB * CARDS_USABLE), frozenset({"torchao", "bitsandbytes"})
    ram, disk, tflops = ram_gb * GIB, 500 * GIB, CARD_TFLOPS[kind]
    return Machine("cuda", name, memory, (8, 0), cards, ram, disk, tflops, packages, cards, cards)


def table(machines: Sequence[Machine]) -> Iterator[str]:
    """Give the table's lines; a cell holds the profile, the peak on the card (else in RAM), and the seconds a step."""
    lengths = " | ".join(f"{frames} frames" for frames in FRAMES)
    yield f"| machine | size | {lengths} |"
    yield "| --- | --- |" + " --- |" * len(FRAMES)
    for machine in machines:
        for size, (short, long) in SIZES.items():
            cells = (_cell(machine, Workload(short, long, frames, STEPS)) for frames in FRAMES)
            yield f"| {machine.name} | {size} | {' | '.join(cells)} |"


def _cell(machine: Machine, load: Workload) -> str:
    try:
        plan = choose_profile(machine, ModelShape(), load)
    except ModelError:
        return "-"
    told = plan.estimate
    tiles = (", tiled" if told.tiled else "") + (", split" if told.split else "")
    return f"{plan.profile.name}{tiles}: {spell_bytes(told.card_bytes or told.ram_bytes)}, {told.step_s:.3g} s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.predictions", description="What to expect of the 14B.")
    parser.add_argument("--here", action="store_true", help="Of this machine, instead of usual ones.")
    here = parser.parse_args().here
    machines = [look_at_machine(Path())] if here else [usual_machine(*one) for one in USUAL_MACHINES]
    print("\n".join(table(machines)))  # noqa: T201 - a command line prints
    if here:
        _print_reason(machines[0])


def _print_reason(machine: Machine) -> None:
    load = Workload(*SIZES["480p"], default("num_frames"), STEPS)
    try:
        words = choose_profile(machine, ModelShape(), load).reason
    except ModelError as error:
        words = error.message
    print(f"\n{machine.description}. {words}")  # noqa: T201 - a command line prints


if __name__ == "__main__":
    main()
