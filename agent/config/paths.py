"""Paths in the configuration: relative ones belong to the file that names them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator

SHIPPED = "shipped:"
"""`model: shipped:fight-stgcn` names a bundle that comes with the agent."""


class LocatedStr(str):
    """A string of a configuration file that remembers the folder of that file."""

    __slots__ = ("folder",)
    folder: Path

    def __new__(cls, text: str, folder: Path) -> Self:
        value = super().__new__(cls, text)
        value.folder = folder
        return value


def resource_dir(name: str) -> Path:
    """Folder `configs` or `models` as shipped: beside the package in a source tree, else under `<prefix>/share`."""
    beside = Path(__file__).resolve().parent.parent.parent / name
    return beside if beside.is_dir() else Path(sys.prefix) / "share" / "recognizer-agent" / name


def _absolute(text: str, folder: Path) -> str:
    return str((folder / Path(text).expanduser()).absolute())


def _resolve_path(value: object) -> object:
    if isinstance(value, str) and value.startswith(SHIPPED):
        return str(resource_dir("models") / value.removeprefix(SHIPPED))
    return _absolute(value, value.folder) if isinstance(value, LocatedStr) and value else value


def _resolve_source(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a V4L2 index
    if isinstance(value, LocatedStr) and value and not re.match(r"[a-z][a-z0-9+.-]*:|\d+$", value):
        return _absolute(value, value.folder)
    return value


ConfigPath = Annotated[Path, BeforeValidator(_resolve_path)]
"""A path; made absolute against the folder of the file that names it."""

SourceText = Annotated[str, BeforeValidator(_resolve_source)]
"""A video source; a plain file name is treated as `ConfigPath`."""
