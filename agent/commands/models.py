"""`recognizer-agent models list|verify|pull|build|bench`: the models of this machine."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from agent.catalogue.entries import UNVERIFIED, Catalogue, Entry, load_catalogue
from agent.catalogue.examine import Examination, examine
from agent.catalogue.inventory import brief, find_model, inventory, shipped_bundles
from agent.catalogue.pull import PullOptions, pull, pull_file
from agent.catalogue.store import ModelStore
from agent.cli import EXIT_FAILED, EXIT_GOOD
from agent.commands import models_bench, models_build
from agent.commands.output import table_console
from agent.config.load import load_config
from agent.config.paths import CATALOGUE, models_dir, resource_dir
from agent.config.schema import AgentConfig
from agent.errors import ModelError
from agent.observe.logging import mask_text
from agent.runtime.bundle import read_bundle

_LINE_EVERY_S = 10.0
_COLOURS = {"ready": "green", "unverified": "yellow", "damaged": "red", "not pulled": "dim"}


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where the models of this machine are."""

    config: AgentConfig
    shipped: Path
    store: ModelStore
    catalogue: Catalogue

    def find(self, text: str) -> Path:
        """As `find_model`."""
        return find_model(text, self.shipped, self.store, self.catalogue)


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Do what the sub-command asks for; exit code 1 when a model is not what it should be."""
    config = load_config(args.config, env=env, need_pulled_models=False)
    store = ModelStore(models_dir(config.state_dir, env))
    shelf = Shelf(config, resource_dir("models"), store, load_catalogue(args.catalogue))
    commands: dict[str, Callable[[argparse.Namespace, Shelf], int]] = {
        "list": _list, "verify": _verify, "pull": _pull,
        "build": lambda a, s: models_build.run(a, s.config, s.find(a.model) if a.model else None),
        "bench": lambda a, s: models_bench.run(a, s.config, s.find(a.model)),
    }  # fmt: skip
    return commands[args.what](args, shelf)


# --- list, verify -----------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace, shelf: Shelf) -> int:
    items = list(inventory(shelf.shipped, shelf.store, shelf.catalogue))
    if args.json:
        print(json.dumps([asdict(item) for item in items]))
        return EXIT_GOOD
    table = Table("model", "version", "task", "MB", "input", "licence", "state", "figures", box=None, pad_edge=False)
    for item in items:
        state = f"[{_COLOURS[item.state]}]{item.state}[/]"
        size = f"{item.size_bytes / 1e6:.1f}" if item.size_bytes else ""
        remark = item.problem or brief(item.figures)
        table.add_row(item.use, item.version, item.task, size, item.input, item.licence, state, escape(remark))
    table_console().print(table if items else "no models")
    return EXIT_GOOD


def _verify(args: argparse.Namespace, shelf: Shelf) -> int:
    paths = [shelf.find(text) for text in args.models]
    if not args.models:
        paths = [*shipped_bundles(shelf.shipped), *shelf.store.names().values()]
    found = [examine(path, device=args.device) for path in paths]
    if args.json:
        print(json.dumps([_as_json(one) for one in found]))
    else:
        for one in found:
            _print_examination(one)
    return EXIT_GOOD if all(one.good for one in found) else EXIT_FAILED


def _as_json(found: Examination) -> dict[str, object]:
    return {
        "path": str(found.path), "title": found.title, "good": found.good, "checked": found.checked,
        "problems": found.problems, "notes": found.notes,
    }  # fmt: skip


def _print_examination(found: Examination) -> None:
    print(
        f"{found.title}: {'good' if found.good else 'BAD'} ({', '.join(found.checked) or 'nothing could be checked'})"
    )
    for problem in found.problems:
        print(f"  problem: {problem}")
    for note in found.notes:
        print(f"  note: {note}")


# --- pull -------------------------------------------------------------------------------------------------------------


def _pull(args: argparse.Namespace, shelf: Shelf) -> int:
    name = args.name.removeprefix(CATALOGUE)
    entry = shelf.catalogue.find(name)
    if entry is None:
        known = ", ".join(one.name for one in shelf.catalogue.models) or "no models at all"
        raise ModelError(f"the catalogue has no {name!r} (hint: it has {known})")
    there = shelf.store.find(name)
    if there and not args.force and _is_current(there, entry):
        print(f"{name} is here already: {there.resolve()} (--force fetches it again)")
        return EXIT_GOOD
    options = PullOptions(source=args.source or "", allow_unverified=args.allow_unverified)
    with Meter() as meter:
        if args.file:
            folder = pull_file(entry, args.file, shelf.store, meter, options)
        else:
            folder = pull(entry, shelf.store, meter, options)
    print(f"{name} is ready: {folder}\nin the configuration: pose: {{estimator: rtmo, model: {CATALOGUE}{name}}}")
    return EXIT_GOOD


def _is_current(folder: Path, entry: Entry) -> bool:
    """Is the pulled bundle sound, and of the version that the catalogue has now?"""
    if not examine(folder).good:
        return False
    manifest = read_bundle(folder).manifest
    return manifest is not None and manifest.version.removesuffix(UNVERIFIED) == entry.version


class Meter:
    """Shows a download on standard error: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("", total=None) if self._bar else None
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, received: int, total: int | None) -> None:
        """As `Progress.advance` of a download."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=received, total=total)
        elif received == total or time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            whole = f" of {total / 1e6:.1f}" if total else ""
            self.note(f"{received / 1e6:.1f}{whole} MB")

    def note(self, text: str) -> None:
        """A line, with passwords left out."""
        self._console.print(escape(mask_text(text)), highlight=False, soft_wrap=True)
