"""What there is on this machine to run a model with: its processor or cards, memory and disk."""

import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline.ranks import count_processes, count_processes_here

GIB = 2**30

Device = Literal["cuda", "mps", "cpu"]

# Dense bf16 matrix products, TFLOP/s, by a card's name without what `FILLERS` matches: data sheets (of a GeForce twice
# its float32), but for the H100 what it reaches in large products. All others are timed: a Ti, SUPER or Laptop of the
# same number is another chip or has less power, an H100 PCIe is slower, and a MIG slice is a part of a card.
CARD_TFLOPS: Mapping[str, float] = {
    "B200": 2250,
    "H200": 790,
    "H100": 790,
    "A100": 312,
    "A100 PCIe": 312,
    "L40S": 362,
    "RTX 6000 Ada": 362,
    "RTX 5090": 209,
    "RTX 4090": 165,
    "RTX 4080": 97,
    "RTX 4070": 58,
    "RTX 4060": 30,
    "RTX 3090": 71,
    "RTX 3080": 59,
    "RTX 3060": 25,
    "L4": 121,
    "A10": 125,
}
# Words of a name that say nothing of a card's speed: its maker, how it is mounted, its memory.
FILLERS = re.compile(r"NVIDIA|GeForce|Generation|SXM\d?|HBM\d\w?|\d+GB", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """What there is to work with. Bytes in all, not free at the moment: what a profile needs should not waver.

    card_bytes: memory of one card, 0 without one. capability: CUDA's, such as (9, 0). tflops: dense products in the
    format the device computes in (bf16, float32 on a CPU). packages: those installed of the ones profiles need.
    sharing: processes that make each video together, each on a card of its own. sharing_here: those of them on this
    machine, which share its RAM.
    """

    device: Device
    name: str
    card_bytes: int
    capability: tuple[int, int]
    cards: int
    ram_bytes: int
    disk_bytes: int
    tflops: float
    packages: frozenset[str] = frozenset()
    sharing: int = 1
    sharing_here: int = 1

    @property
    def kind(self) -> str:
        """Name what a run's times and memory hang on."""
        return self.name if self.sharing == 1 else f"{self.sharing} x {self.name}"

    @property
    def description(self) -> str:
        """Say in a few words what this is."""
        ram = f"{spell_bytes(self.ram_bytes)} of RAM"
        if self.device != "cuda":
            return f"{self.name}, {ram}"
        count = f"{self.cards} x " if self.cards > 1 else ""
        return f"{count}{self.name} with {spell_bytes(self.card_bytes)}, {ram}"


def look_at_machine(folder: Path, torch: Any = None) -> Machine:
    """Look at this machine. folder: on the disk that counts. torch: the module, or what stands in for it in a test."""
    if torch is None:
        import torch
    ram, disk = look_at_ram(), psutil.disk_usage(str(_existing(folder))).free
    packages = frozenset(name for name in ("torchao", "bitsandbytes") if find_spec(name))
    processes = (count_processes(), count_processes_here())
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability, cards = (properties.major, properties.minor), torch.cuda.device_count()
        tflops = _known_tflops(properties.name) or measure_tflops(torch, "cuda")
        memory, name = properties.total_memory, properties.name
        return Machine("cuda", name, memory, capability, cards, ram, disk, tflops, packages, *processes)
    device: Device = "mps" if torch.backends.mps.is_available() else "cpu"
    name = f"{os.cpu_count()} processor cores" if device == "cpu" else f"Apple {platform.processor()}"
    tflops = measure_tflops(torch, device)
    return Machine(device, name, 0, (0, 0), 0, ram, disk, tflops, packages, *processes)


def look_at_ram() -> int:
    """Give the memory this process may use: the machine's, or the container's limit."""
    total = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _known_tflops(name: str) -> float | None:
    words = [word.casefold() for word in re.split(r"[\s-]+", name) if not FILLERS.fullmatch(word)]
    return next((tflops for known, tflops in CARD_TFLOPS.items() if known.casefold().split() == words), None)


def measure_tflops(torch: Any, device: Device) -> float:
    """Time the transformer's kind of product, the best of three, in the format the device computes in: TFLOP/s."""
    from pipeline.matrix_products import Linear

    size, dtype = (1024, torch.float32) if device == "cpu" else (4096, torch.bfloat16)
    layer = Linear(size, size, bias=False, device=device, dtype=dtype)
    states = torch.ones(size, size, device=device, dtype=dtype)
    with torch.no_grad():
        best = min(_time_product(layer, states) for _ in range(3))
    return 2 * size**3 / best / 1e12


def _time_product(layer: Any, states: Any) -> float:
    started = time.perf_counter()
    layer(states)[0, 0].item()  # waits until it is there
    return max(time.perf_counter() - started, 1e-9)


def spell_bytes(count: float) -> str:
    """Say an amount of memory in the unit it is sold in: 2^30 bytes as GB."""
    gib = count / GIB
    if gib >= 9.95:
        return f"{gib:.0f} GB"
    return f"{gib:.1f} GB" if gib >= 0.95 else f"{max(1, round(count / 2**20))} MB"
