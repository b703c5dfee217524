"""The process behind wall.py: `python -m pipeline.media_process` reads one call from its input, and answers.

The answer is a line of JSON and, after it, the pixels of RGB pictures. No pickles: what a broken decoder might write
must not be run.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from pipeline import media
from pipeline.errors import MediaError

if sys.platform != "win32":
    import resource


def main() -> None:
    """Answer one call. A process that breaks, or is broken off, answers nothing and ends with another code than 0."""
    call = json.load(sys.stdin)
    _limit(call["memory_bytes"], call["cpu_s"])
    try:
        value, pictures = _read(call["reader"], Path(call["path"]), call["options"])
    except MediaError as error:
        _answer(sys.stdout.buffer, {"fault": [error.field, error.message]})
    except MemoryError:
        _answer(sys.stdout.buffer, {"too_large": True})
    else:
        _answer(sys.stdout.buffer, {"value": value}, pictures)


def _limit(memory_bytes: int, cpu_s: int) -> None:
    """Let the system refuse more. Windows knows no such limits, and macOS that of memory only by name."""
    if sys.platform == "win32":
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _read(reader: str, path: Path, options: Mapping[str, Any]) -> tuple[Any, Iterable[Image.Image]]:
    match reader:
        case "probe_video":
            return asdict(media.probe_video(path, **options)), ()
        case "check_image":
            media.check_image(path, **options)
            return None, ()
        case "read_image":
            return None, [media.read_image(path, **options)]
        case "read_video":
            # A short window repeats pictures; each is sent once.
            pictures = media.read_video(path, **options)
            kinds = {id(picture): picture for picture in pictures}
            places = {key: place for place, key in enumerate(kinds)}
            return [places[id(picture)] for picture in pictures], kinds.values()
        case _:
            raise ValueError(f"there is no reader {reader!r}")


def _answer(to: BinaryIO, head: Mapping[str, Any], pictures: Iterable[Image.Image] = ()) -> None:
    to.write(json.dumps(head).encode() + b"\n")
    to.writelines(picture.tobytes() for picture in pictures)


if __name__ == "__main__":
    main()
