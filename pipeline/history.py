"""What this machine's finished runs teach: a small file of measured over predicted, a line for each run."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter, ValidationError

from pipeline.hardware import Correction

READ_BYTES = 64 * 2**10  # of the file's end: some 400 runs
REMEMBERED = 20  # runs of a kind that count


@dataclass(frozen=True)
class Lesson:
    """One run. model, profile, device: the kind of run. step, rest, peak: measured over predicted; None: not known.

    Older lines have a `card` instead of a peak, which compared with what CUDA takes as well, and is not read.
    failed: it ran out of memory; `peak` is then what it must have exceeded. tflops: what the machine was taken to do by
    the prediction, measured anew at every start, on a busy machine as less; 0: not known, as in older lines.
    """

    model: str
    profile: str
    device: str
    step: float | None = None
    rest: float | None = None
    peak: float | None = None
    failed: bool = False
    tflops: float = 0.0


_LESSON = TypeAdapter(Lesson)


class History:
    """The lessons in a file. Several processes may write it at once; a line cut short is skipped."""

    def __init__(self, path: Path | None) -> None:
        """path: made on first use; None: nothing is remembered."""
        self._path = path
        self._read: tuple[tuple[int, int], list[Lesson]] | None = None

    def add(self, lesson: Lesson) -> None:
        """Remember a run."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(lesson)) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())  # one write: lines of several processes do not mix
        finally:
            os.close(file)

    def correction(
        self, model: str, profile: str, device: str, tflops: float = 0.0, *, mind_failures: bool = True
    ) -> Correction:
        """Give what runs of this kind taught: medians, so that one run on a busy machine changes nothing.

        tflops: what the machine is taken to do now. Where that differs, so do predictions, and what a run took is the
        other share of them.
        mind_failures: count on at least the memory that failed runs must have exceeded.
        """
        kind = (model, profile, device)
        lessons = [one for one in self._lessons() if (one.model, one.profile, one.device) == kind][-REMEMBERED:]
        finished = [one for one in lessons if not one.failed]
        peak = _median(one.peak for one in finished)
        if mind_failures:
            peak = max([peak, *(one.peak for one in lessons if one.failed and one.peak)])
        step = _median(_rebase(one.step, one.tflops, tflops) for one in finished)
        rest = _median(_rebase(one.rest, one.tflops, tflops) for one in finished)
        return Correction(step, rest, peak, len(finished))

    def _lessons(self) -> list[Lesson]:
        """Read the file's end, once for each of its states: the page asks at every move of a slider."""
        if self._path is None or not self._path.exists():
            return []
        status = self._path.stat()
        state = (status.st_mtime_ns, status.st_size)
        if self._read is None or self._read[0] != state:
            with self._path.open("rb") as file:
                file.seek(max(0, status.st_size - READ_BYTES))
                self._read = (state, list(_parse(file.read())))
        return self._read[1]


def _parse(lines: bytes) -> Iterator[Lesson]:
    for line in lines.splitlines():
        try:
            yield _LESSON.validate_json(line)
        except ValidationError:
            continue


def _rebase(ratio: float | None, then: float, now: float) -> float | None:
    """Give a ratio to what was predicted for a machine of `then` TFLOP/s as one to what is for one of `now`."""
    return ratio * now / then if ratio and then and now else ratio


def _median(values: Iterator[float | None]) -> float:
    known = [value for value in values if value is not None]
    return median(known) if known else 1.0
