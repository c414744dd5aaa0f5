"""Every model that this machine has or could have, and what a name on the command line means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.catalogue.entries import Catalogue, Entry
from agent.catalogue.store import ModelStore, told_gone
from agent.config.paths import CATALOGUE, SHIPPED
from agent.errors import ModelError
from agent.runtime.bundle import MANIFEST, Bundle, read_bundle
from agent.runtime.manifest import InputInfo, Manifest

_BRIEF = 3
_TELLING = ("ap50", "ap", "accuracy", "f1", "recall", "ms")
"""Figures worth a place in a table, by how their names begin or end."""


@dataclass(frozen=True, slots=True)
class Item:
    """One line of `models list`.

    use: what to write into the configuration; state: `ready`, `unverified` (pulled without a known checksum), `damaged`,
    `not pulled`; size_bytes: of all files; problem: why it is damaged; path: empty = not here.
    """

    name: str
    version: str
    task: str
    use: str
    where: str
    state: str
    size_bytes: int
    input: str
    licence: str
    figures: Mapping[str, Any]
    path: str = ""
    problem: str = ""


def inventory(shipped: Path, store: ModelStore, catalogue: Catalogue) -> Iterator[Item]:
    """Shipped bundles, pulled ones, then the rest of the catalogue. Sizes are compared, checksums are not."""
    for folder in shipped_bundles(shipped):
        yield _present(folder.name, folder, "shipped", SHIPPED)
    pulled = store.names()
    for name, folder in pulled.items():
        yield _present(name, folder, "pulled", CATALOGUE)
    for entry in catalogue.models:
        if entry.name not in pulled:
            yield _absent(entry)


def shipped_bundles(folder: Path) -> list[Path]:
    """Bundle folders below the folder of shipped models."""
    return sorted(file.parent for file in folder.glob(f"*/{MANIFEST}"))


def find_model(text: str, shipped: Path, store: ModelStore, catalogue: Catalogue) -> Path:
    """The model that `text` means: a path, `shipped:NAME`, `catalogue:NAME`, or the plain name of a pulled or shipped one.

    Raises ModelError that says what there is.
    """
    name = text.removeprefix(CATALOGUE).removeprefix(SHIPPED)
    if not text.startswith(SHIPPED) and (pulled := store.find(name)):
        return pulled
    ships = {folder.name: folder for folder in shipped_bundles(shipped)}
    if not text.startswith(CATALOGUE) and name in ships:
        return ships[name]
    if text and Path(text).exists():
        return Path(text)
    names = store.names()
    if name in names and not text.startswith(SHIPPED) and (gone := told_gone(names[name])):
        raise ModelError(gone)
    if catalogue.find(name) and not text.startswith(SHIPPED):
        raise ModelError(f"{name} is not on this machine yet (hint: recognizer-agent models pull {name})")
    known = [*ships, *names]
    raise ModelError(
        f"{text or 'empty name'}: no such model (hint: {', '.join(known) or 'none here'}; or the path of a bundle or .onnx file)"
    )


def brief(figures: Mapping[str, Any]) -> str:
    """A few telling figures on one line, nested ones by their dotted path.

    >>> brief({"n": 40, "dev": {"accuracy": 0.8, "f1": 0.75}, "ms_per_window": 5.0})
    'dev.accuracy 0.8, dev.f1 0.75, ms_per_window 5'
    """
    telling = [f"{name} {value:g}" for name, value in _flat(figures, "") if _is_telling(name)]
    return ", ".join(telling[:_BRIEF])


def _flat(figures: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def _is_telling(name: str) -> bool:
    words = name.lower().rpartition(".")[2].split("_")
    return words[0] in _TELLING or words[-1] in _TELLING


def _present(name: str, folder: Path, where: str, prefix: str) -> Item:
    use = f"{prefix}{name}"
    try:
        bundle = read_bundle(folder)
    except ModelError as error:
        return Item(name, "", "", use, where, "damaged", 0, "", "", {}, str(folder), told_gone(folder) or str(error))
    manifest = bundle.manifest
    if manifest is None:
        raise ModelError(f"{folder}: not a bundle")
    problem = _size_problem(bundle, manifest)
    unverified = manifest.provenance is not None and manifest.provenance.trust != "catalogue"
    state = "damaged" if problem else "unverified" if unverified else "ready"
    size_bytes = sum(info.bytes for info in manifest.files.values())
    return Item(
        name, manifest.version, manifest.task, use, where, state, size_bytes, input_text(manifest.inputs[0]),
        manifest.licence, manifest.figures, str(folder), problem,
    )  # fmt: skip


def _absent(entry: Entry) -> Item:
    return Item(
        entry.name, entry.version, entry.task, f"{CATALOGUE}{entry.name}", "catalogue", "not pulled", entry.file.bytes,
        input_text(entry.inputs[0]), entry.licence, entry.figures,
    )  # fmt: skip


def _size_problem(bundle: Bundle, manifest: Manifest) -> str:
    for name, info in manifest.files.items():
        file = bundle.path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != info.bytes:
            return f"{file} has {file.stat().st_size:,} bytes, the manifest says {info.bytes:,}"
    return ""


def input_text(info: InputInfo) -> str:
    """`?x3x640x640`."""
    return "x".join(str(size) if isinstance(size, int) else "?" for size in info.shape)
