"""Deletes old evidence: whole incidents, oldest first, by age and by total size."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.events.evidence_files import TEMPORARY_PREFIX


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` did. removed: incident folders, oldest first; errors: one line per folder that would not go."""

    removed: tuple[Path, ...]
    removed_bytes: int
    kept: int
    kept_bytes: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Incident:
    modified_s: float
    bytes: int
    folder: Path


def prune(root: Path, *, max_age_s: float, max_bytes: int, now_s: float) -> Pruned:
    """Remove incidents older than `max_age_s`, then the oldest until at most `max_bytes` are left.

    now_s: Unix time; an incident's age counts from the moment its folder was written. A folder that cannot be removed
    is reported and counts as kept. A missing `root` is an empty one.
    """
    incidents, errors = _scan(root)
    total = sum(incident.bytes for incident in incidents)
    removed: list[_Incident] = []
    for incident in incidents:
        if now_s - incident.modified_s <= max_age_s and total <= max_bytes:
            break  # sorted: all others are younger
        try:
            shutil.rmtree(incident.folder)
        except OSError as error:
            errors.append(str(error))
            continue
        total -= incident.bytes
        removed.append(incident)
        _remove_if_empty(incident.folder.parent, incident.folder.parent.parent)
    return Pruned(
        tuple(incident.folder for incident in removed),
        sum(incident.bytes for incident in removed),
        len(incidents) - len(removed),
        total,
        tuple(errors),
    )


def remove_leftovers(root: Path) -> int:
    """Delete folders that a crash left half-written; how many. Only while nothing is being written."""
    leftovers = list(root.glob(f"{TEMPORARY_PREFIX}*"))
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    return len(leftovers)


def _scan(root: Path) -> tuple[list[_Incident], list[str]]:
    """Every incident, oldest first; what cannot be read is reported instead."""
    incidents: list[_Incident] = []
    errors: list[str] = []
    for folder in _folders(root, 3, errors):
        try:
            size = sum(path.stat().st_size for path in folder.iterdir())
            incidents.append(_Incident(folder.stat().st_mtime, size, folder))
        except OSError as error:
            errors.append(str(error))
    incidents.sort(key=lambda incident: (incident.modified_s, incident.folder))
    return incidents, errors


def _folders(root: Path, depth: int, errors: list[str]) -> Iterator[Path]:
    """Folders exactly `depth` levels below `root`; links are not followed, hidden folders are left out."""
    if not root.is_dir():
        return
    try:
        inside = [path for path in sorted(root.iterdir()) if not path.name.startswith(".") and not path.is_symlink()]
    except OSError as error:
        errors.append(str(error))
        return
    for path in inside:
        if depth > 1:
            yield from _folders(path, depth - 1, errors)
        elif path.is_dir():
            yield path


def _remove_if_empty(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return  # not empty
