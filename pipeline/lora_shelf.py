"""The LoRA files that requests may name: those of one folder, by their names. Never a path from a request."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InvalidInputError

ENDING = ".safetensors"  # the other formats in use can run code when they are read


@dataclass(frozen=True)
class LoraFile:
    """A LoRA. stamp: modification time and size; a file that was replaced is another one."""

    name: str
    path: Path
    stamp: tuple[int, int]


@dataclass(frozen=True)
class LoraShelf:
    """The LoRAs in a folder, looked at anew each time. folder: None where there are none."""

    folder: Path | None = None

    def names(self) -> list[str]:
        """Give the names, sorted: of the files that end in .safetensors, without that.

        Raises InvalidInputError when the folder cannot be read.
        """
        if self.folder is None:
            return []
        try:
            found = [path.name for path in self.folder.iterdir() if path.name.endswith(ENDING) and path.is_file()]
        except OSError as error:
            message = f"The folder “{self.folder}” for LoRAs cannot be read; make it, or give another --lora-dir."
            raise InvalidInputError("lora_dir", message) from error
        return sorted(name.removesuffix(ENDING) for name in found)

    def find(self, name: str | None) -> LoraFile | None:
        """Give the file of a name; None for none. Raises InvalidInputError, naming those there are."""
        if name is None:
            return None
        names = self.names()
        if self.folder is None or name not in names:
            there = f"there are {', '.join(names)}" if names else "there are none to choose from"
            raise InvalidInputError("lora", f"There is no LoRA “{name}” here; {there}.")
        path = self.folder / (name + ENDING)
        facts = path.stat()
        return LoraFile(name, path, (facts.st_mtime_ns, facts.st_size))


NO_LORAS = LoraShelf()
