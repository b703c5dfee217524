"""Which profile a machine gets, what it is told about it, and what is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import machine as machine_module
from pipeline.errors import ModelError
from pipeline.estimate import BYTES_PER_WEIGHT, ModelShape, Workload
from pipeline.hardware import (
    CARD_OVERHEAD,
    PROFILES,
    RAM_OVERHEAD,
    Correction,
    choose_profile,
    find_profile,
    fits,
    list_profiles,
    predict,
    weight_bytes,
)
from pipeline.machine import GIB, Machine, look_at_machine, spell_bytes
from pipeline.profiles import compute_dtype
from tests.pipeline.machines import card, processor

RELEASED = ModelShape()
USUAL = Workload(480, 832, 49, 50)
LARGE = Workload(720, 1280, 81, 50)
SMALL = Workload(480, 832, 17, 50)
BY_NAME = {profile.name: profile for profile in PROFILES}


@pytest.mark.parametrize(
    ("machine", "load", "profile"),
    [
        (card(80), USUAL, "resident"),
        (card(80), LARGE, "resident"),
        (card(48), SMALL, "model"),
        (card(48), USUAL, "model"),
        (card(48), LARGE, "stream"),
        (card(24), USUAL, "stream"),
        (card(24, ram_gib=48), USUAL, "fp8-stream"),
        (card(24, ram_gib=32, packages=frozenset({"bitsandbytes"})), USUAL, "nf4"),
        (card(16), USUAL, "stream"),
        (card(12), USUAL, "stream"),
        (card(8), SMALL, "stream"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_machine_gets_the_best_profile_that_fits(machine: Machine, load: Workload, profile: str) -> None:
    """Exact before approximate, fast before slow; what the plan takes is there."""
    plan = choose_profile(machine, RELEASED, load)

    assert plan.profile.name == profile
    assert fits(machine, plan.estimate)


@pytest.mark.parametrize(("gib", "tiled", "split"), [(24, False, False), (8, True, True)])
def test_what_would_not_fit_otherwise_is_made_in_smaller_parts(gib: int, tiled: bool, split: bool) -> None:
    """On a small card frames are decoded in tiles, and guidance branches run one after the other, exactly."""
    estimate = choose_profile(card(gib), RELEASED, USUAL).estimate

    assert (estimate.tiled, estimate.split) == (tiled, split)


@pytest.mark.parametrize(("layers", "guided", "split"), [(40, True, True), (40, False, False), (4, True, False)])
def test_a_processor_takes_half_the_memory_where_that_costs_nothing(layers: int, guided: bool, split: bool) -> None:
    """Of the 14B's 40 blocks branches share half of one, of a small model's more; without guidance there is one."""
    shape = replace(RELEASED, layers=layers, experts=tuple(range(0, layers, 4)))
    load = replace(USUAL, guided=guided)

    estimate = predict(processor(ram_gib=256), BY_NAME["bf16"], shape, load)

    assert (estimate.tiled, estimate.split) == (False, split)


def test_unguided_steps_count_as_the_one_branch_they_are() -> None:
    """Half of the steps guided is half way between all and none; memory is that of the guided ones."""
    whole, half, none = (
        predict(card(80), BY_NAME["resident"], RELEASED, replace(USUAL, guided_share=share))
        for share in (1.0, 0.5, 0.0)
    )

    assert half.seconds == pytest.approx((whole.seconds + none.seconds) / 2)
    assert none.seconds < 0.6 * whole.seconds
    assert (half.step_s, half.card_bytes) == (whole.step_s, whole.card_bytes)


def test_a_plan_says_why() -> None:
    """The reason names what the profile takes, and what the better one would have taken."""
    reason = choose_profile(card(24), RELEASED, USUAL).reason

    assert reason.startswith(
        "Each layer is fetched while the one before it computes. The weights take 52 GB, a run 10 GB"
    )
    assert "“model” would take 45 GB on the card" in reason
    assert "there is 24 GB on the card, 128 GB of RAM" in reason


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    """A profile that a person chose, on a card too small for it: another profile is named."""
    machine = card(24)

    with pytest.raises(ModelError) as refusal:
        choose_profile(machine, RELEASED, USUAL, among=[BY_NAME["resident"]])

    assert "in the profile “resident” they take 58 GB on the card" in refusal.value.message
    assert refusal.value.message.endswith("the profile “stream” would fit.")


def test_what_fits_in_no_profile_is_refused_with_what_is_missing() -> None:
    """The 14B on a machine without a card and with little RAM."""
    with pytest.raises(ModelError, match=r"take \d+ GB of RAM, and there is 16 GB of RAM\.$"):
        choose_profile(processor(), RELEASED, USUAL)


@pytest.mark.parametrize(
    ("name", "machine", "sentence"),
    [
        (
            "fast",
            card(24),
            r"no profile “fast” for Card 24 with 24 GB, 128 GB of RAM; try auto, resident, model",
        ),
        ("stream", processor(), r"no profile “stream” for 2 processor cores"),
        ("nf4", card(24), r"needs the package bitsandbytes; pip install bitsandbytes"),
    ],
)
def test_a_profile_that_is_not_to_be_had_is_refused(name: str, machine: Machine, sentence: str) -> None:
    """The sentence names those there are, or the package that is missing."""
    with pytest.raises(ModelError, match=sentence):
        find_profile(name, machine)


def test_quantized_profiles_are_offered_only_with_their_package() -> None:
    """Nobody is given a profile by itself that could not be loaded."""
    without = {profile.name for profile in list_profiles(card(24))}
    with_both = {profile.name for profile in list_profiles(card(24, packages=frozenset({"torchao", "bitsandbytes"})))}

    assert with_both - without == {"int8", "nf4"}


def test_prefetching_hides_the_streaming_where_computing_takes_longer() -> None:
    """At a 4090's speed, streaming costs a step 4 % over weights that are there; one after the other, more."""
    seconds = {name: predict(card(96), BY_NAME[name], RELEASED, USUAL).step_s for name in ("resident", "stream")}
    seconds["sequential"] = predict(card(96), BY_NAME["sequential"], RELEASED, USUAL).step_s

    assert seconds["stream"] == pytest.approx(1.04 * seconds["resident"])
    assert seconds["sequential"] == pytest.approx(seconds["resident"] + 29.4 / 10, rel=0.01)


def test_several_cards_share_a_step_and_its_memory() -> None:
    """Eight of them take an eighth of the computing, and what they exchange; what was too large for one is not."""
    machines = [replace(card(80, tflops=790), sharing=sharing) for sharing in (1, 8)]
    alone, together = (predict(machine, BY_NAME["resident"], RELEASED, USUAL) for machine in machines)
    split, whole = (predict(machine, BY_NAME["resident"], RELEASED, LARGE).split for machine in machines)

    assert alone.step_s / 8 < together.step_s < alone.step_s / 6
    assert (split, whole) == (True, False)


def test_a_step_takes_no_less_than_the_streaming() -> None:
    """However fast a card computes, 29.4 GB at 25 GB/s take 1.18 s."""
    assert predict(card(24, tflops=1e6), BY_NAME["stream"], RELEASED, USUAL).step_s == pytest.approx(1.18, rel=0.01)


def test_frames_are_decoded_in_tiles_only_where_they_have_to_be() -> None:
    """Tiles blend: whole frames are the model's own numbers."""
    size = Workload(720, 1280, 17, 50)

    assert not predict(card(24), BY_NAME["stream"], RELEASED, size).tiled
    assert predict(card(16), BY_NAME["stream"], RELEASED, size).tiled


def test_what_runs_taught_corrects_the_estimate() -> None:
    """Steps, the rest and the peak of the card's memory have a factor each; CUDA's own share has none."""
    profile, taught = BY_NAME["resident"], Correction(step=2.0, rest=3.0, peak=1.1, runs=4)

    plain, corrected = predict(card(80), profile, RELEASED, USUAL), predict(card(80), profile, RELEASED, USUAL, taught)

    assert corrected.step_s == pytest.approx(2 * plain.step_s)
    rest = plain.seconds - 50 * plain.step_s
    assert corrected.seconds == pytest.approx(100 * plain.step_s + 3 * rest)
    assert corrected.card_bytes - CARD_OVERHEAD == pytest.approx(1.1 * (plain.card_bytes - CARD_OVERHEAD))


def test_less_memory_than_predicted_makes_no_plan_bolder() -> None:
    """What runs in tiles took tells nothing of whole frames, which fit this card only by what it was less."""
    plain, taught = (
        predict(card(8), BY_NAME["stream"], RELEASED, SMALL, Correction(peak=peak, runs=4)) for peak in (1.0, 0.7)
    )

    assert plain.tiled
    assert taught.tiled
    assert taught.card_bytes < plain.card_bytes


@pytest.mark.parametrize("name", BY_NAME)
def test_weights_are_counted_in_the_format_they_are_loaded_in(name: str) -> None:
    """On a processor the text encoder is float32 too; embedders are never brought to 8 or 4 bits."""
    profile = BY_NAME[name]
    machine = processor() if profile.devices == ("cpu",) else card(24)
    computing = compute_dtype(profile, machine).itemsize

    weights = weight_bytes(profile, RELEASED)

    assert weights["text_encoder"] == RELEASED.encoders["text_encoder"] * computing
    quantized = RELEASED.transformer_weights - 480_519_680
    assert weights["transformer"] == quantized * BYTES_PER_WEIGHT[profile.weights] + 480_519_680 * computing


@pytest.mark.parametrize(("name", "least", "most"), [("fp8-cpu", 85e9, 86e9), ("int8-cpu", 58e9, 60e9)])
def test_a_processor_has_room_for_the_weights_before_they_are_small(name: str, least: float, most: float) -> None:
    """In float32 first, where layers are brought to 8 bits afterwards; integers are made tensor by tensor."""
    assert least < predict(processor(ram_gib=256), BY_NAME[name], RELEASED, SMALL).ram_bytes < most


@pytest.mark.parametrize(
    ("name", "ram"),
    [("resident", 14.4e9), ("model", 55.7e9), ("stream", 55.7e9), ("fp8", 35.6e9), ("fp8-stream", 35.6e9)],
)
def test_beside_a_card_weights_wait_in_copies(name: str, ram: float) -> None:
    """Those of the file's own format are read from its pages where they go to the card for good, or change format."""
    told = predict(card(80), BY_NAME[name], RELEASED, USUAL).ram_bytes

    assert told == pytest.approx(ram + RAM_OVERHEAD, rel=0.02)


def test_each_process_of_a_machine_has_its_copies() -> None:
    """Eight on one machine take eight times the RAM, on two machines half of that each."""
    eight, four, one = (
        predict(replace(card(80), sharing=8, sharing_here=here), BY_NAME["resident"], RELEASED, USUAL).ram_bytes
        for here in (8, 4, 1)
    )

    assert (eight, four) == (pytest.approx(8 * one), pytest.approx(4 * one))


def test_processes_on_a_processor_share_the_pages_of_a_file() -> None:
    """Of weights that are used as they are stored; what each of them casts or computes is its own."""
    machine = processor(ram_gib=512)
    together = replace(machine, sharing=2, sharing_here=2)
    mapped = weight_bytes(BY_NAME["bf16"], RELEASED)["transformer"]

    shared = predict(replace(machine, sharing=2), BY_NAME["bf16"], RELEASED, USUAL).ram_bytes
    both = predict(together, BY_NAME["bf16"], RELEASED, USUAL).ram_bytes

    assert both == pytest.approx(2 * shared - mapped)


def test_a_full_disk_is_a_reason_to_refuse() -> None:
    """Memory alone does not make a video."""
    machine = replace(card(80), disk_bytes=10**6)

    with pytest.raises(ModelError, match="1 MB of free disk"):
        choose_profile(machine, RELEASED, USUAL)


def fake_torch(name: str = "", memory: int = 0, *, mps: bool = False) -> Any:
    properties = SimpleNamespace(name=name, total_memory=memory, major=9, minor=0)
    cuda = SimpleNamespace(
        is_available=lambda: bool(name), get_device_properties=lambda index: properties, device_count=lambda: 8
    )
    return SimpleNamespace(cuda=cuda, backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)))


def test_cards_are_seen(tmp_path: Path) -> None:
    """Name, memory, capability, number, and the speed of a known kind."""
    machine = look_at_machine(tmp_path, fake_torch("NVIDIA H100 80GB HBM3", 79 * GIB))

    assert (machine.device, machine.card_bytes, machine.capability, machine.cards) == ("cuda", 79 * GIB, (9, 0), 8)
    assert machine.tflops == 790
    assert machine.description.startswith("8 x NVIDIA H100 80GB HBM3 with 79 GB")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA RTX 6000 Ada Generation", 362),
        ("NVIDIA GeForce RTX 4060", 30),
    ],
)
def test_the_speed_of_a_usual_card_is_known(tmp_path: Path, name: str, tflops: float) -> None:
    """Whatever its name says of its maker, its memory and how it is mounted."""
    assert look_at_machine(tmp_path, fake_torch(name, 79 * GIB)).tflops == tflops


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A1000",
        "NVIDIA L40",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4060 Ti",
        "NVIDIA GeForce RTX 4070 Ti SUPER",
        "NVIDIA GeForce RTX 4060 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 PCIe",
        "NVIDIA GH200 480GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    ],
)
def test_a_card_of_a_similar_name_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is another chip, one with less power, or a part of one."""
    monkeypatch.setattr(machine_module, "measure_tflops", lambda torch, device: 7.0)

    assert look_at_machine(tmp_path, fake_torch(name, 79 * GIB)).tflops == 7.0


@pytest.mark.parametrize(("variables", "here"), [({}, 8), ({"LOCAL_WORLD_SIZE": "4"}, 4)])
def test_processes_of_other_machines_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], here: int
) -> None:
    """By what torchrun says; without, all are on this machine."""
    for name, value in ({"WORLD_SIZE": "8"} | variables).items():
        monkeypatch.setenv(name, value)

    seen = look_at_machine(tmp_path, fake_torch("NVIDIA L4", 24 * GIB))

    assert (seen.sharing, seen.sharing_here) == (8, here)


def test_this_machine_is_seen(tmp_path: Path) -> None:
    """Whatever it is, it has memory, disk and speed, also when the folder is yet to be made."""
    machine = look_at_machine(tmp_path / "not" / "there")

    assert min(machine.ram_bytes, machine.disk_bytes) > 0
    assert machine.tflops > 0


@pytest.mark.parametrize(("count", "words"), [(3 * 2**20, "3 MB"), (1.5 * GIB, "1.5 GB"), (23.6 * GIB, "24 GB")])
def test_memory_is_spelt_as_it_is_sold(count: float, words: str) -> None:
    """2^30 bytes are a GB here, as on the card's box."""
    assert spell_bytes(count) == words
