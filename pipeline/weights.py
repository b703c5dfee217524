"""Loading a model: its files, fetched if need be, in the profile that was planned for this machine."""

from pathlib import Path

from pipeline import parallel
from pipeline.attention import use_attention
from pipeline.checkpoint import FOLDERS, load_components, load_transformer
from pipeline.encoding_cache import fingerprint_files
from pipeline.hardware import Profile
from pipeline.machine import Machine
from pipeline.model_progress import ModelProgress, OnModel, ignore
from pipeline.models import find_model
from pipeline.planner import Planner, make_planner
from pipeline.profiles import apply_profile, compute_dtype, find_device, quantization, store_weights
from pipeline.ranks import is_follower, is_parallel
from pipeline.spec import NATIVE_ATTENTION, ModelFacts
from pipeline.video_as_prompt import ENCODERS, VideoAsPromptPipeline


def load_model(
    name: str,
    on_progress: OnModel = ignore,
    planner: Planner | None = None,
    *,
    placed: bool = True,
    attention: str = NATIVE_ATTENTION,
    ring_degree: int = 1,
) -> tuple[VideoAsPromptPipeline, ModelFacts]:
    """Load a model in the profile its planner starts with; none: the one that suits this machine best.

    placed: bring the weights to where the profile says; if not, they stay in RAM until a run does.
    attention: by its name; see `pipeline.attention`, which raises InvalidInputError where it cannot be used.
    ring_degree: where several processes make each video; see `parallel.choose_degrees`, which raises it as well.
    Raises ModelError when it cannot fit, before anything is fetched or loaded; when its files are missing and cannot be
    fetched, or are not this model's.
    """
    if is_parallel():
        parallel.join()  # first: it says which of the machine's cards is this process's
    source = find_model(name)
    planner = planner or make_planner(name)
    profile = planner.start.profile
    if is_parallel() and not is_follower():
        parallel.tell_profile(profile.name)
    folder = source.folder or source.on_hub.fetch(on_progress)
    pipe = load_in_profile(folder, profile, planner.machine, on_progress, placed=placed)
    use_attention(pipe.transformer, attention)
    if is_parallel():
        parallel.share_out(pipe, ring_degree)
    return pipe, ModelFacts.of(source.name, pipe.config)


def follow_leader(name: str, attention: str = NATIVE_ATTENTION, ring_degree: int = 1) -> None:
    """Load a model in a process that another one leads, and make videos with it until it ends; see `parallel.py`.

    Its profile is the leader's, whom earlier runs may have taught another than this process would take.
    Raises ModelError and InvalidInputError as `load_model` does.
    """
    parallel.join()
    planner = make_planner(name, parallel.await_profile())
    pipe, _ = load_model(name, planner=planner, attention=attention, ring_degree=ring_degree)
    parallel.follow(pipe)


def load_in_profile(
    folder: Path, profile: Profile, machine: Machine, on_progress: OnModel = ignore, *, placed: bool = True
) -> VideoAsPromptPipeline:
    """Load the model in a folder in a profile. placed: as in `load_model`.

    Raises ModelError when its files are missing or not this model's.
    """
    dtype = compute_dtype(profile, machine)
    # First, and brought into its format before the others come: RAM then never holds it whole beside them.
    on_progress(ModelProgress("loading", 0, len(FOLDERS)))
    transformer = load_transformer(folder, dtype, quantization(profile, dtype))
    store_weights(transformer, profile, dtype)
    parts = load_components(
        folder,
        dtype,
        {"transformer": transformer},
        on_part=lambda done, total: on_progress(ModelProgress("loading", done, total)),
    )
    pipe = VideoAsPromptPipeline(**parts)
    pipe.fingerprint = fingerprint_files(folder, ENCODERS)
    pipe.set_progress_bar_config(disable=True)
    if placed:
        apply_profile(pipe, profile, find_device(machine))
    return pipe
