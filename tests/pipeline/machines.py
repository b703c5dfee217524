"""Machines that the tests plan for, without having them."""

from dataclasses import replace

from pipeline.machine import GIB, Machine

USABLE = 0.98  # of a card's memory, as CUDA reports it


def card(gib: int, *, ram_gib: int = 128, tflops: float = 165, packages: frozenset[str] = frozenset()) -> Machine:
    """A machine with one card."""
    memory = round(gib * GIB * USABLE)
    return Machine("cuda", f"Card {gib}", memory, (8, 9), 1, ram_gib * GIB, 500 * GIB, tflops, packages)


def processor(ram_gib: int = 16) -> Machine:
    """A machine without a card."""
    return replace(card(0, ram_gib=ram_gib, tflops=0.1), device="cpu", name="2 processor cores", cards=0)
