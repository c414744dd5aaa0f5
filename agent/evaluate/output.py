"""What a measurement leaves behind: `OUT.json`, for people `OUT.md`, and its pictures in the folder `OUT`."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from agent.errors import ModelError
from agent.evaluate.gate import Outcome
from agent.evaluate.pages import page
from agent.evaluate.pictures import draw

_OWN = re.compile(r"(missed|worst|mistake)-\d+\.jpg|(precision|hota|calls|sources|timelines|delays|verdicts-.+)\.png")
"""Names of the pictures that belong to reports."""


def prepare(path: Path, read: Iterable[Path] = ()) -> None:
    """Find out at the start whether the report can be written: an hour of work must not end there. Raises OSError.

    read: files and folders that the work reads; report, page and pictures must leave them alone.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.is_symlink() or (path.exists() and not path.is_file()):  # the report would take the place of `/dev/null`
        raise OSError(errno.EINVAL, "no regular file, and the report would replace it (hint: OUT.json)", str(path))
    if path.suffix == ".md":
        raise OSError(errno.EINVAL, "the page for people goes there (hint: OUT.json)", str(path))
    pictures, drawn = pictures_of(path), drawn_in(path)
    for folder in (pictures, drawn):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "the folder of the pictures goes there", str(folder))
    markdown = path.with_suffix(".md")
    if markdown.exists() and not path.exists():
        what = f"the page for people goes there, and without {path.name} beside it this is no earlier one"
        raise FileExistsError(errno.EEXIST, f"{what} (hint: another name for the report)", str(markdown))
    for place, source in product((path, markdown, pictures, drawn), read):
        if _real(source).is_relative_to(_real(place)):
            what = f"the report would go there, where {source} is read"
            raise FileExistsError(errno.EEXIST, f"{what} (hint: another name for the report)", str(place))
    path.parent.mkdir(parents=True, exist_ok=True)
    _partial(path).touch()
    _partial(path).unlink()
    if pictures.is_dir():
        with TemporaryFile(dir=pictures):
            pass


@contextmanager
def new_pictures(path: Path) -> Iterator[None]:
    """While pictures are drawn in `drawn_in(path)`: however that ends, none are left there, nor those of a run that was killed."""
    _clear(drawn_in(path))
    try:
        yield
    finally:
        _clear(drawn_in(path))


def write_report(
    path: Path,
    kind: str,
    report: Mapping[str, Any],
    *,
    extra: Mapping[str, Path] | None = None,
    gate: Sequence[Outcome] | None = None,
) -> str:
    """JSON at `path`, beside it Markdown and pictures; what is missing from these and why, empty for nothing.

    An earlier report is replaced when everything is drawn. extra: more pictures (title -> file in `drawn_in(path)`), shown
    after the drawn ones.
    """
    missing = ""
    try:
        pictures = draw(kind, report, drawn_in(path))
    except ModelError as error:  # the figures do not depend on it
        pictures, missing = {}, str(error)
    pictures |= dict(extra or {})
    folder = pictures_of(path)
    shown = {title: (folder / file.name).relative_to(path.parent).as_posix() for title, file in pictures.items()}
    text = page(kind, report, shown, gate)
    _write(path, json.dumps(report, indent=2) + "\n")
    clear_pictures(path)
    for file in pictures.values():
        folder.mkdir(exist_ok=True)
        shutil.move(file, folder / file.name)
    _clear(drawn_in(path))
    _write(path.with_suffix(".md"), text)
    return missing


def pictures_of(path: Path) -> Path:
    """The folder of pictures that belongs to the report at `path`."""
    folder = path.with_suffix("")
    return folder if folder != path else path.with_name(path.name + "-pictures")


def drawn_in(path: Path) -> Path:
    """The folder in which pictures wait until the report at `path` is written: those of an earlier one are good until then."""
    return _partial(path.with_name(path.name + ".pictures"))


def clear_pictures(path: Path) -> None:
    """Remove the pictures of an earlier run, nothing else: its worst examples are not those of this one."""
    _clear(pictures_of(path))


def _clear(folder: Path) -> None:
    for picture in folder.glob("*"):
        if _OWN.fullmatch(picture.name):
            picture.unlink()
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        shutil.rmtree(folder)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `resolve` raises where links lead nowhere but to each other


def _write(path: Path, text: str) -> None:
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
