"""Start-up hook for Python programs that use fal-client: points the client at a studio, over plain http too.

    FAL_STUDIO_URL=http://127.0.0.1:7860 FAL_KEY=any PYTHONPATH=/path/to/server/fal_hook python their_program.py

The program stays as it is. The hook acts when `fal_client` is imported, and stops the import where it cannot do its
work: a client that is half configured would call the real fal. It needs nothing but Python itself.
"""

import importlib.util
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

VARIABLE = "FAL_STUDIO_URL"
CLIENT = "fal_client.client"


def addresses(base: str) -> dict[str, str]:
    """Give the client's constants for a studio at this address."""
    base = base.rstrip("/")
    return {
        "RUN_URL_FORMAT": f"{base}/fal/run/",
        "QUEUE_URL_FORMAT": f"{base}/fal/queue/",
        "REALTIME_URL_FORMAT": f"{base.replace('http', 'ws', 1)}/fal/run/",
        "REST_URL": f"{base}/fal/rest",
        "CDN_URL": f"{base}/fal/cdn",
    }


def point(module: ModuleType, base: str | None) -> None:
    """Set the constants of the client's module. Raises ImportError where that cannot be done."""
    if not base or not base.startswith(("http://", "https://")):
        raise ImportError(f"Set {VARIABLE} to the address of your studio, such as http://127.0.0.1:7860.")
    values = addresses(base)
    if missing := [name for name in values if not hasattr(module, name)]:
        raise ImportError(f"This fal-client has no {', '.join(missing)}; the hook knows version 1.0.3.")
    vars(module).update(values)


class _PointingLoader(Loader):
    """Loads the client's module as ever, then points it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        point(module, os.environ.get(VARIABLE))


class _Finder(MetaPathFinder):
    """Stands first in line and knows one module."""

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != CLIENT:
            return None
        spec = PathFinder.find_spec(fullname, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = _PointingLoader(spec.loader)
        return spec


def run_next_hook() -> None:
    """Run the sitecustomize that this one hides, where the machine has one."""
    here = Path(__file__).resolve().parent
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Finder())
    run_next_hook()
