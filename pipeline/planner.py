"""How a request would be made on this machine: its profile, what it takes, and what to try when it does not fit.

Cheap to ask: no weight is read and no model loaded, so the page asks at every move of a slider.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.errors import InvalidInputError, ModelError, Suggestion
from pipeline.estimate import ModelShape, Workload, read_shape
from pipeline.hardware import (
    Corrections,
    Plan,
    Profile,
    choose_profile,
    find_excess,
    find_profile,
    list_profiles,
    predict,
)
from pipeline.history import History, Lesson
from pipeline.machine import Machine, look_at_machine
from pipeline.models import find_model, read_index
from pipeline.spec import FRAME_STRIDE, SIZES, GenerationSpec, ModelFacts, default, limits

AUTO = "auto"
SMALLER_BY = 0.8  # after running out of memory, something at most this large is worth a try
FAILED_LEAST, FAILED_MOST = 1.1, 1.5  # how far beyond the prediction a failed run is taken to have gone


@dataclass(frozen=True)
class Measured:
    """What a finished run took. step_s: of a denoising step, the median; rest_s: of all else. allocated_bytes: the
    most that torch held on the card at once.
    """

    step_s: float | None
    rest_s: float
    allocated_bytes: int | None


class Planner:
    """Knows a machine, a model's sizes and the runs before."""

    def __init__(
        self, facts: ModelFacts, shape: ModelShape, machine: Machine, history: History, wanted: str = AUTO
    ) -> None:
        """wanted: the profile to use, or "auto". Raises ModelError when this machine has no such profile."""
        self.facts, self.shape, self.machine, self._history = facts, shape, machine, history
        self._wanted: Profile | None = None if wanted == AUTO else find_profile(wanted, machine)

    @cached_property
    def start(self) -> Plan:
        """Give the profile to load the model in: the one for a request with all its defaults, or for the smallest.

        Raises ModelError, saying what would fit, when not even the smallest fits.
        """
        try:
            return self._choose(self._workload(default("num_frames"), default("resolution")), self._all_profiles)
        except ModelError:
            smallest = self._workload(limits("num_frames")[0], next(iter(SIZES)))
        try:
            return self._choose(smallest, self._all_profiles)
        except ModelError as error:
            message = f"{error.message} The model {self.facts.name} needs a machine that has that; nano runs on any."
            raise ModelError(message, "model") from error

    def plan(self, spec: GenerationSpec) -> Plan:
        """Give the profile for a spec, of those in the loaded weights' format: its numbers do not depend on others.

        Raises InvalidInputError, naming what would fit, when it does not.
        """
        try:
            return self._plan(spec)
        except ModelError as error:
            smaller = self.suggest(spec)
            field, way_out = (next(iter(smaller.fields)), f" {smaller.label}.") if smaller else ("resolution", "")
            raise InvalidInputError(field, f"{error.message}{way_out}") from error

    def suggest(self, spec: GenerationSpec) -> Suggestion | None:
        """Give the next smaller setting that fits: a lower resolution, else fewer frames, else both."""
        tokens = self.shape.tokens(Workload.of(spec))
        for changes in self._smaller(spec):
            smaller = self._resize(spec, **changes)
            if self.shape.tokens(Workload.of(smaller)) <= SMALLER_BY * tokens and self._fits(smaller):
                return Suggestion(changes, f"Try {_spell(changes)}")
        return None

    def learn(self, spec: GenerationSpec, plan: Plan, measured: Measured) -> None:
        """Remember what a run took, for the estimates to come. Of a run that left work out, its memory only."""
        predicted = predict(self.machine, plan.profile, self.shape, Workload.of(spec))
        rest_s = predicted.seconds - predicted.step_s * spec.num_inference_steps
        # Alike with alike: what torch counts knows nothing of CUDA's own share and of gaps, which come on top.
        peak = measured.allocated_bytes / plan.estimate.allocated_bytes if measured.allocated_bytes else None
        if not spec.is_exact:
            self._remember(plan, peak=peak)
            return
        step = measured.step_s / predicted.step_s if measured.step_s else None
        self._remember(plan, step=step, rest=measured.rest_s / rest_s, peak=peak)

    def learn_failure(self, spec: GenerationSpec, plan: Plan) -> Suggestion | None:
        """Remember that a run ran out of memory. Gives what to try: a lighter profile, or a smaller setting."""
        beyond = find_excess(self.machine, plan.estimate) if self.machine.device == "cuda" else FAILED_LEAST
        self._remember(plan, peak=min(max(beyond * 1.02, FAILED_LEAST), FAILED_MOST), failed=True)
        now = self._plan(spec)
        if now.profile != plan.profile:
            return Suggestion({}, f"Try again, now in the lighter profile “{now.profile.name}”")
        if now.estimate.thrift > plan.estimate.thrift:
            return Suggestion({}, "Try again, now in smaller parts at a time")
        return self.suggest(spec)

    def _remember(
        self,
        plan: Plan,
        *,
        step: float | None = None,
        rest: float | None = None,
        peak: float | None = None,
        failed: bool = False,
    ) -> None:
        name, device = self.facts.name, self.machine.kind
        self._history.add(Lesson(name, plan.profile.name, device, step, rest, peak, failed, self.machine.tflops))

    @property
    def _all_profiles(self) -> list[Profile]:
        return [self._wanted] if self._wanted else list_profiles(self.machine)

    def _plan(self, spec: GenerationSpec) -> Plan:
        profiles = [one for one in self._all_profiles if one.weights == self.start.profile.weights]
        return self._choose(Workload.of(spec), profiles)

    def _choose(self, load: Workload, profiles: list[Profile]) -> Plan:
        try:
            return choose_profile(
                self.machine, self.shape, load, among=profiles, corrections=self._corrections(mind_failures=True)
            )
        except ModelError:  # what failed once may work now: it leads to a lighter profile, never to a refusal
            return choose_profile(
                self.machine, self.shape, load, among=profiles, corrections=self._corrections(mind_failures=False)
            )

    def _corrections(self, *, mind_failures: bool) -> Corrections:
        name, device = self.facts.name, self.machine.kind
        return {
            profile.name: self._history.correction(
                name, profile.name, device, self.machine.tflops, mind_failures=mind_failures
            )
            for profile in list_profiles(self.machine)
        }

    def _fits(self, spec: GenerationSpec) -> bool:
        try:
            self._plan(spec)
        except ModelError:
            return False
        return True

    def _smaller(self, spec: GenerationSpec) -> Iterator[Mapping[str, str | int]]:
        lower = [] if self.facts.render_size else list(SIZES)[: list(SIZES).index(spec.resolution)][::-1]
        fewer = range(spec.num_frames - FRAME_STRIDE, limits("num_frames")[0] - 1, -FRAME_STRIDE)
        for resolution in lower:
            yield {"resolution": resolution}
        for frames in fewer:
            yield {"num_frames": frames}
        for frames in fewer if lower else ():
            yield {"resolution": lower[-1], "num_frames": frames}

    def _resize(self, spec: GenerationSpec, **changes: str | int) -> GenerationSpec:
        resized = replace(spec, **changes)  # type: ignore[arg-type]  # from `_smaller`, so of the right types
        if self.facts.render_size:
            return resized
        short, long = SIZES[resized.resolution]
        upright = spec.render_height > spec.render_width
        height, width = (long, short) if upright else (short, long)
        return replace(resized, height=height, width=width, render_height=height, render_width=width)

    def _workload(self, num_frames: int, resolution: str) -> Workload:
        short, long = self.facts.render_size or SIZES[resolution]
        return Workload(short, long, num_frames, self.facts.num_inference_steps)


def _spell(changes: Mapping[str, str | int]) -> str:
    words = [f"{value} frames" if field == "num_frames" else str(value) for field, value in changes.items()]
    return " and ".join(words)


def make_planner(
    model: str, wanted: str = AUTO, data_dir: Path | None = None, machine: Machine | None = None
) -> Planner:
    """Make the planner of a model on a machine, without loading it.

    data_dir: the folder for what the runs teach; none: nothing is kept. machine: none: this one.

    Raises ModelError when there is no such model or profile.
    """
    source = find_model(model)
    shape = read_shape(source.folder) if source.folder else ModelShape()  # only the released one is on the hub
    facts = read_facts(source.name, source.folder)
    history = History(data_dir / "runs.jsonl" if data_dir else None)
    return Planner(facts, shape, machine or look_at_machine(data_dir or Path()), history, wanted)


def read_facts(name: str, folder: Path | None) -> ModelFacts:
    """Read what a request has to know of a model; without a folder, it is the released one's.

    Raises ModelError when its model_index.json cannot be read.
    """
    return ModelFacts.of(name, read_index(folder)) if folder else ModelFacts(name)
