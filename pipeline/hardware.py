"""How a model runs on a machine: predicts time and memory, and picks a profile.

A profile says in which format the weights lie and where they wait while they are not needed. The numbers it is picked
by are `pipeline.estimate`'s; `pipeline.profiles` carries it out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.errors import ModelError
from pipeline.estimate import (
    BYTES_PER_WEIGHT,
    ModelShape,
    WeightFormat,
    Workload,
    activation_bytes,
    coding_flop,
    exchange_bytes,
    step_flop,
    vae_bytes,
)
from pipeline.machine import Device, Machine, spell_bytes

Offload = Literal["none", "model", "stream", "sequential"]

# Of what a card can do (`Machine.tflops`), what stock modules reach in this network: published 9.77 s a step of Wan2.1
# 14B, 81 frames, on an H100.
EFFICIENCY = 0.44
LINK_BYTES_PER_S = 25e9  # pinned memory to card, PCIe 4.0 x16
CARDS_LINK_BYTES_PER_S = 200e9  # card to card: NVLink 4 has 450e9 each way; that half is reached is an assumption
UNPINNED_BYTES_PER_S = 10e9  # layer by layer without a stream of its own
PREFETCH_COST = 1.04  # published for layer-wise prefetch on an H100
NF4_COST = 1.15  # of unpacking 4 bits in every layer: an assumption until this machine has measured it
SPLIT_COST = 1.025  # the most that half the memory may cost in work: 1.01 to 1.024 for the 14B, 1.03 and more for nano

CARD_OVERHEAD = 1.2e9  # CUDA's context, its libraries' workspaces
FRAGMENTATION = 1.05  # of activations
STREAMED_LAYERS = 3  # at once on the card: in use, on its way in, not yet released
RAM_OVERHEAD = 3e9  # the program itself with torch loaded
RAM_SHARE = 0.97  # of the machine's memory that may be planned with


@dataclass(frozen=True)
class Profile:
    """How weights lie and wait.

    weights: of the transformer's blocks. exact: whether results are the plain run's numbers.
    offload: none: all stay on the device. model: one part at a time is there. stream: layer by layer, the next fetched
    while one computes. sequential: layer by layer, one after the other.
    package: what has to be installed for it.
    """

    name: str
    weights: WeightFormat
    offload: Offload
    exact: bool
    devices: tuple[Device, ...]
    title: str
    package: str | None = None


# In the order of preference: exact before approximate, then fast before slow.
PROFILES: tuple[Profile, ...] = (
    Profile("float32", "float32", "none", True, ("cpu",), "all weights in float32"),
    Profile("resident", "bf16", "none", True, ("cuda", "mps"), "all weights stay on the device"),
    Profile("model", "bf16", "model", True, ("cuda",), "one part of the model at a time on the card"),
    Profile("stream", "bf16", "stream", True, ("cuda",), "each layer is fetched while the one before it computes"),
    Profile("bf16", "bf16", "none", False, ("cpu",), "all weights in bf16, which takes half the memory"),
    Profile("fp8", "fp8", "model", False, ("cuda",), "weights stored in 8 bits, one part of the model at a time"),
    Profile("fp8-stream", "fp8", "stream", False, ("cuda",), "weights stored in 8 bits, each layer fetched in time"),
    Profile("int8", "int8", "model", False, ("cuda",), "weights in 8-bit integers", package="torchao"),
    Profile("nf4", "nf4", "model", False, ("cuda",), "weights in 4 bits", package="bitsandbytes"),
    Profile("sequential", "bf16", "sequential", True, ("cuda",), "one layer at a time on the card, which is slow"),
    Profile("fp8-cpu", "fp8", "none", False, ("cpu",), "weights stored in 8 bits, computed with in float32"),
    Profile("int8-cpu", "int8", "none", False, ("cpu",), "weights in 8-bit integers", package="torchao"),
)


@dataclass(frozen=True)
class Correction:
    """What this machine's finished runs taught, as measured over predicted: a step, the rest, the memory's peak.

    peak: of what is allocated, which is weights and activations; what CUDA itself takes is never in it.
    """

    step: float = 1.0
    rest: float = 1.0
    peak: float = 1.0
    runs: int = 0


NO_CORRECTION = Correction()
Corrections = Mapping[str, Correction]  # by the profile's name


@dataclass(frozen=True)
class Estimate:
    """What a run takes. seconds: all of it; step_s: one denoising step, guided if any is. Bytes: at the peak.

    tiled: frames are decoded in tiles. split: guidance branches run one after the other.
    allocated_bytes: of the peak where the run computes, what torch itself would count; uncorrected.
    A cache's savings are not counted: how many steps repeat others only the run itself can tell.
    """

    seconds: float
    step_s: float
    card_bytes: int
    ram_bytes: int
    disk_bytes: int
    allocated_bytes: int
    tiled: bool
    split: bool = False
    correction: Correction = NO_CORRECTION

    @property
    def thrift(self) -> int:
        """Give how many ways of taking less memory the run needs."""
        return self.tiled + self.split


@dataclass(frozen=True)
class Plan:
    """A profile for a workload, what it takes, and why it is this one, as a sentence."""

    profile: Profile
    estimate: Estimate
    reason: str


def predict(
    machine: Machine, profile: Profile, shape: ModelShape, load: Workload, correction: Correction = NO_CORRECTION
) -> Estimate:
    """Predict a run. What would not fit otherwise has its frames decoded in tiles; then guidance branches are split.

    On a processor, to which weights are always near, branches are also split where that costs hardly any work.
    """
    # That a run took less than predicted says nothing of what it did without: whole frames, when it was in tiles. So
    # what is learned makes a plan more careful than the arithmetic, never less.
    careful = replace(correction, peak=max(1.0, correction.peak))

    def exceeds(tiled: bool, split: bool) -> bool:
        memory = _memory(machine, profile, shape, load, careful, tiled=tiled, split=split)
        return _exceeds(machine, memory.card, memory.ram)

    split = load.guided and machine.device == "cpu" and _split_cost(shape, load) < SPLIT_COST
    tiled = exceeds(tiled=False, split=split)
    split = split or (load.guided and tiled and exceeds(tiled=True, split=False))
    memory = _memory(machine, profile, shape, load, correction, tiled=tiled, split=split)

    step_s, unguided_step_s = (
        _step_s(profile, shape, _compute_s(machine, shape, each, split=each_split), 1 + each_split) * correction.step
        for each, each_split in ((load, split), (replace(load, guided=False), False))
    )
    rest_s = (coding_flop(shape, load) / _speed(machine) + _moving_s(profile, shape)) * correction.rest
    unguided_steps = load.num_inference_steps - load.guided_steps
    seconds = step_s * load.guided_steps + unguided_step_s * unguided_steps + rest_s
    amounts = (round(memory.card), round(memory.ram), _disk_bytes(shape, load), round(memory.allocated))
    return Estimate(seconds, step_s, *amounts, tiled, split, correction)


def _speed(machine: Machine) -> float:
    """Give what one device does in this network, in FLOP a second."""
    return machine.tflops * 1e12 * EFFICIENCY


def _compute_s(machine: Machine, shape: ModelShape, load: Workload, *, split: bool) -> float:
    """Give the time that a step computes, on all devices that share it, and that they exchange tokens."""
    work_s = step_flop(shape, load, split=split) / _speed(machine)
    return work_s / machine.sharing + exchange_bytes(shape, load, 2, machine.sharing) / CARDS_LINK_BYTES_PER_S


def _split_cost(shape: ModelShape, load: Workload) -> float:
    return step_flop(shape, load, split=True) / step_flop(shape, load)


def _step_s(profile: Profile, shape: ModelShape, compute_s: float, passes: int) -> float:
    """Give the time of a step. passes: over the weights."""
    loop_bytes = passes * shape.loop_weights * BYTES_PER_WEIGHT[profile.weights]
    if profile.weights == "nf4":
        compute_s *= NF4_COST
    match profile.offload:
        case "stream":
            return max(compute_s * PREFETCH_COST, loop_bytes / LINK_BYTES_PER_S)
        case "sequential":
            return compute_s + loop_bytes / UNPINNED_BYTES_PER_S
        case _:
            return compute_s


def _moving_s(profile: Profile, shape: ModelShape) -> float:
    """Give the time to bring every part to the card once, where they do not stay there."""
    return 0.0 if profile.offload == "none" else sum(weight_bytes(profile, shape).values()) / UNPINNED_BYTES_PER_S


def computing_bytes(profile: Profile) -> int:
    """Give the bytes of a number in the format a profile computes in: float32 on a processor but for bf16."""
    return 4 if profile.devices == ("cpu",) and profile.weights != "bf16" else 2


def weight_bytes(profile: Profile, shape: ModelShape) -> dict[str, float]:
    """Give the memory of each part's weights. Image encoder and VAE are always float32.

    Where the transformer's blocks are stored in 8 or 4 bits, its embedders and the text encoder keep the format it
    computes in.
    """
    computing = computing_bytes(profile)
    kept = 2 * shape.embedder_weights
    blocks = (shape.transformer_weights - kept) * BYTES_PER_WEIGHT[profile.weights]
    return {
        "transformer": blocks + kept * computing,
        "text_encoder": shape.encoders["text_encoder"] * computing,
        "image_encoder": shape.encoders["image_encoder"] * 4,
        "vae": shape.encoders["vae"] * 4,
    }


@dataclass(frozen=True)
class _Memory:
    """Bytes at the peak. allocated: where the run computes, uncorrected. ram: of all processes on this machine."""

    allocated: float
    card: float
    ram: float


def _memory(
    machine: Machine,
    profile: Profile,
    shape: ModelShape,
    load: Workload,
    correction: Correction,
    *,
    tiled: bool,
    split: bool,
) -> _Memory:
    phases = _phases(machine, profile, shape, load, tiled=tiled, split=split)
    allocated = max(weights + activations for weights, activations in phases)
    peak = max(weights + activations * FRAGMENTATION for weights, activations in phases) * correction.peak
    card = peak + CARD_OVERHEAD if machine.device == "cuda" else 0.0
    return _Memory(allocated, card, _ram(machine, profile, shape, peak))


def _phases(
    machine: Machine, profile: Profile, shape: ModelShape, load: Workload, *, tiled: bool, split: bool
) -> list[tuple[float, float]]:
    """Give what is there together where the run computes, of weights and of activations, for each part of a run."""
    weights = weight_bytes(profile, shape)
    loop = activation_bytes(shape, load, computing_bytes(profile), split=split, sharing=machine.sharing)
    coding = vae_bytes(shape, load, tiled=tiled)
    match profile.offload:
        case "none":
            return [(sum(weights.values()), max(loop, coding))]
        case "model":
            alone = [(part, 0.0) for part in weights.values()]
            return [(weights["transformer"], loop), (weights["vae"], coding), *alone]
        case _:
            layer = shape.largest_layer * 2 * STREAMED_LAYERS
            vocabulary = shape.largest_text_layer * 2
            return [(layer, loop), (weights["vae"], coding), (vocabulary, 0.0)]


def _ram(machine: Machine, profile: Profile, shape: ModelShape, peak: float) -> float:
    """Give the RAM of all processes on this machine. peak: where the run computes, for each of them.

    Weights that are used as they are stored lie in the pages of their file, which processes share, and which the system
    takes back when it needs room (docs/models.md): the transformer in bf16, as the 14B's is. All else counts as copied.
    """
    weights = weight_bytes(profile, shape)
    mapped = weights["transformer"] if profile.weights == "bf16" else 0.0
    if machine.device == "cuda":
        # What waits for its turn on the card was copied there and back, or to locked pages: no file holds it. Locked
        # pages are as many as the weights have bytes, since `heap.lock_pages_exactly`.
        copied, mapped = sum(weights.values()) - (mapped if profile.offload == "none" else 0.0), 0.0
    else:
        copied = peak - mapped
    if profile.weights == "fp8" and computing_bytes(profile) == 4:
        # A processor has the transformer in float32 first, and then brings layer after layer to 8 bits. For a card that
        # is done from the file's pages, and other formats are made tensor by tensor as they are read.
        copied = max(copied, shape.transformer_weights * 4.0)
    return mapped + machine.sharing_here * (copied + RAM_OVERHEAD)


def find_excess(machine: Machine, estimate: Estimate) -> float:
    """Give the correction of an estimate's peak with which the run would fill the card."""
    peak = (estimate.card_bytes - CARD_OVERHEAD) / estimate.correction.peak
    return (machine.card_bytes - CARD_OVERHEAD) / peak


def _exceeds(machine: Machine, card: float, ram: float) -> bool:
    return card > machine.card_bytes or ram > machine.ram_bytes * RAM_SHARE


def _disk_bytes(shape: ModelShape, load: Workload) -> int:
    """Give what a job writes: its saved state, and three files of at most 1 bit a pixel."""
    pixels = load.num_frames * load.height * load.width
    latents = pixels / shape.temporal_stride / shape.spatial_stride**2 * shape.out_channels * 4
    return round(2 * 4 * latents + 3 * pixels / 8)  # the latents, and three of the solver; two states for a moment


def fits(machine: Machine, estimate: Estimate) -> bool:
    """Say whether a run fits the machine's memory and disk."""
    exceeds = _exceeds(machine, estimate.card_bytes, estimate.ram_bytes)
    return not exceeds and estimate.disk_bytes <= machine.disk_bytes


def list_profiles(machine: Machine, weights: WeightFormat | None = None) -> list[Profile]:
    """Give the profiles this machine can work in, best first. weights: only those of this format."""
    return [
        profile
        for profile in PROFILES
        if machine.device in profile.devices
        and weights in (None, profile.weights)
        and (profile.package is None or profile.package in machine.packages)
    ]


def find_profile(name: str, machine: Machine) -> Profile:
    """Give a profile by its name. Raises ModelError, naming those there are, when this machine cannot work in it."""
    for profile in PROFILES:
        if profile.name == name and machine.device in profile.devices:
            if profile.package is not None and profile.package not in machine.packages:
                message = f"The profile “{name}” needs the package {profile.package}; pip install {profile.package}."
                raise ModelError(message, "profile")
            return profile
    names = ", ".join(profile.name for profile in list_profiles(machine))
    raise ModelError(f"There is no profile “{name}” for {machine.description}; try auto, {names}.", "profile")


def choose_profile(
    machine: Machine,
    shape: ModelShape,
    load: Workload,
    *,
    among: Sequence[Profile] | None = None,
    corrections: Corrections | None = None,
) -> Plan:
    """Pick the first profile in which a workload fits. among: the profiles to pick from, best first; None: all.

    Raises ModelError, saying what is missing, and which other profile would fit, when it fits in none of them.
    """
    corrections = corrections or {}
    all_profiles = list_profiles(machine)
    given = all_profiles if among is None else among
    tried: list[tuple[Profile, Estimate]] = []
    for profile in given:
        estimate = predict(machine, profile, shape, load, corrections.get(profile.name, NO_CORRECTION))
        if fits(machine, estimate):
            return Plan(profile, estimate, _reason(machine, shape, profile, estimate, tried))
        tried.append((profile, estimate))
    others = [profile for profile in all_profiles if profile not in given]
    raise ModelError(_refusal(machine, shape, load, tried, others, corrections), "profile")


def _reason(
    machine: Machine, shape: ModelShape, profile: Profile, estimate: Estimate, tried: list[tuple[Profile, Estimate]]
) -> str:
    """Say why it is this profile: what it does, what it takes, and what the one before it would have taken."""
    weights = spell_bytes(sum(weight_bytes(profile, shape).values()))
    title = f"{profile.title[0].upper()}{profile.title[1:]}"
    chosen = f"{title}. The weights take {weights}, a run {spell_needs(machine, estimate)}"
    if not tried:
        return f"{chosen}, and this machine has that."
    better, missed = tried[-1]
    there = _spell_owned(machine, missed)
    return f"{chosen}; “{better.name}” would take {spell_needs(machine, missed)}, and there is {there}."


def _refusal(
    machine: Machine,
    shape: ModelShape,
    load: Workload,
    tried: list[tuple[Profile, Estimate]],
    others: Sequence[Profile],
    corrections: Corrections,
) -> str:
    name, nearest = min(
        ((profile.name, estimate) for profile, estimate in tried), key=lambda entry: _excess(machine, entry[1])
    )
    size = f"{load.num_frames} frames of {load.width} x {load.height}"
    message = (
        f"{size} do not fit this machine: in the profile “{name}” they take {spell_needs(machine, nearest)}, and there "
        f"is {_spell_owned(machine, nearest)}"
    )
    for profile in others:
        estimate = predict(machine, profile, shape, load, corrections.get(profile.name, NO_CORRECTION))
        if fits(machine, estimate):
            return f"{message}; the profile “{profile.name}” would fit."
    return f"{message}."


def _excess(machine: Machine, estimate: Estimate) -> float:
    """Give by how many times a run takes more than there is of what is scarcest."""
    card = estimate.card_bytes / machine.card_bytes if machine.card_bytes else 0.0
    return max(card, estimate.ram_bytes / machine.ram_bytes, estimate.disk_bytes / max(machine.disk_bytes, 1))


def spell_needs(machine: Machine, estimate: Estimate) -> str:
    """Say what memory a run takes, and how much disk where that is the trouble."""
    amounts = (estimate.card_bytes, estimate.ram_bytes, estimate.disk_bytes)
    return " and ".join(_spell(machine, estimate, amounts, "disk"))


def _spell_owned(machine: Machine, estimate: Estimate) -> str:
    amounts = (machine.card_bytes, machine.ram_bytes, machine.disk_bytes)
    return ", ".join(_spell(machine, estimate, amounts, "free disk"))


def _spell(machine: Machine, estimate: Estimate, amounts: tuple[int, int, int], disk: str) -> list[str]:
    """Say amounts of card, RAM and disk, of those that matter on a machine for a run."""
    card_bytes, ram_bytes, disk_bytes = amounts
    words = [f"{spell_bytes(card_bytes)} on the card"] if machine.device == "cuda" else []
    words.append(f"{spell_bytes(ram_bytes)} of RAM")
    return words + ([f"{spell_bytes(disk_bytes)} of {disk}"] if estimate.disk_bytes > machine.disk_bytes else [])
