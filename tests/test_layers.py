"""Imports run one way: app -> server -> pipeline; training beside them, on pipeline alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "server": {"server", "pipeline"},
    "training": {"training", "pipeline"},
}
WEB_FRAMEWORKS = {"gradio", "fastapi", "starlette", "uvicorn"}


def imported_packages(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in plain | named}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    """A wrong-way import is named with its file."""
    files = sorted((ROOT / package).rglob("*.py"))
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] | {"app", "tests"}

    wrong = {str(file.relative_to(ROOT)): found for file in files if (found := imported_packages(file) & forbidden)}

    assert files
    assert wrong == {}


def test_files_of_visitors_are_read_behind_the_wall() -> None:
    """What decodes them runs in a process of its own, which can be ended; training reads its own files."""
    readers = {"probe_video", "read_video", "read_image", "check_image"}
    files = [file for package in ("pipeline", "server") for file in (ROOT / package).rglob("*.py")]

    direct = {
        f"{file.relative_to(ROOT)}: media.{node.attr}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in readers and getattr(node.value, "id", None) == "media"
    }

    assert direct == {f"pipeline/media_process.py: media.{reader}" for reader in readers}


@pytest.mark.parametrize("package", ["pipeline", "training"])
def test_the_library_knows_no_web_framework(package: str) -> None:
    """The library works from a Python prompt on a machine without the page's packages."""
    files = (ROOT / package).rglob("*.py")

    wrong = {str(file.relative_to(ROOT)) for file in files if imported_packages(file) & WEB_FRAMEWORKS}

    assert wrong == set()
