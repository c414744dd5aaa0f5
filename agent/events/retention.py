"""Deletes old evidence: whole incidents, oldest first, by age, by total size and for room on the disk."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.events.evidence_files import TEMPORARY_PREFIX

_LEFT_FREE_BYTES = 64_000_000
"""Evidence leaves the disk so much for the event database, whose reserve and its return need about half of it ..."""
_LEFT_FREE_SHARE = 0.1
"""... or this share of a small file system."""


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


def prune(root: Path, *, max_age_s: float, max_bytes: int, now_s: float, room_bytes: int = 0) -> Pruned:
    """Remove incidents older than `max_age_s`, then the oldest until at most `max_bytes` are left and `room_bytes` are gone. The
    newest makes room for nobody.

    now_s: Unix time; an incident's age counts from the moment its folder was written. A folder that cannot be removed
    is reported and counts as kept. A missing `root` is an empty one.
    """
    incidents, errors = _scan(root)
    total = sum(incident.bytes for incident in incidents)
    most = min(max_bytes, total - room_bytes)
    removed: list[_Incident] = []
    for incident in incidents:
        limit = max_bytes if incident is incidents[-1] else most
        if now_s - incident.modified_s <= max_age_s and total <= limit:
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


def lacking_bytes(root: Path) -> int:
    """What the disk of `root` lacks of the space that evidence leaves to others, 0 = nothing."""
    try:
        state = os.statvfs(root)
    except OSError:
        return 0
    left_free = min(_LEFT_FREE_BYTES, int(state.f_blocks * state.f_frsize * _LEFT_FREE_SHARE))
    return max(0, left_free - state.f_bavail * state.f_frsize)


def shift(root: Path, *, by_s: float, now_s: float) -> None:
    """The clock, which said `now_s`, has jumped by `by_s`: the times of the incidents that it stamped move along.

    As with the events that wait: for a jump ahead those until now, for one back those that would lie in the future.
    """
    after_s = -math.inf if by_s > 0 else now_s + by_s
    for incident in _scan(root)[0]:
        if after_s < incident.modified_s <= now_s:
            with contextlib.suppress(OSError):
                os.utime(incident.folder, (incident.modified_s + by_s,) * 2)


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
