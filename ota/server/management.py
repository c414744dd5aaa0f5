"""What the management routes share: pages of lists, times and rows as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from sqlalchemy import Connection

from ota.server.bodies import number_in
from ota.store import devices, releases
from ota.store.rows import Action, Device, FeedbackRow, Installed, ReleaseRow

MAX_PAGE = 1000
NAME = r"^[^\s/\\\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,126}[^\s\x00-\x1f\x7f])?$"
"""Of what people name."""


def page_of(request: web.Request) -> tuple[int, int]:
    """`?limit=` (100) and `?offset=` (0). Raises 400."""
    return number_in(request, "limit", 100, 1, MAX_PAGE), number_in(request, "offset", 0, 0, 2**31)


def listing(name: str, items: Sequence[Any], total: int, offset: int) -> web.Response:
    """One page; next: the offset of the next one, null on the last."""
    after = offset + len(items)
    return web.json_response({name: items, "total": total, "next": after if items and after < total else None})


def moment(at_ms: int | None) -> str | None:
    """ISO 8601, UTC, to the millisecond."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def device_json(
    device: Device, serving: Iterable[tuple[Installed, ReleaseRow]], *, online_after_ms: int
) -> dict[str, Any]:
    """status: online, offline or never (seen)."""
    seen = device.last_seen_ms
    status = "never" if seen is None else "online" if seen >= online_after_ms else "offline"
    return {
        "id": device.controller_id, "name": device.name, "status": status, "update_status": device.update_status,
        "last_seen": moment(seen), "created": moment(device.created_ms), "address": device.address,
        "attributes": dict(device.attributes), "auto_confirm": device.auto_confirm is not None,
        "has_token": device.token_hash is not None,
        "installed": {
            one.slot: {
                "release": release.id, "name": release.name, "version": release.version, "number": release.number,
                "since": moment(one.at_ms),
            }
            for one, release in serving
        },
    }  # fmt: skip


def release_json(release: ReleaseRow) -> dict[str, Any]:
    return {
        "id": release.id, "slot": release.slot, "name": release.name, "version": release.version, "number": release.number,
        "target": release.target, "length": release.length, "sha256": release.sha256, "created": moment(release.created_ms),
        "available": release.available, "custom": dict(release.custom),
    }  # fmt: skip


def action_json(action: Action, controller_id: str, release: ReleaseRow) -> dict[str, Any]:
    return {
        "id": action.id, "device": controller_id, "release": release.id, "slot": release.slot, "title": release.title,
        "state": action.state, "open": action.open, "forced": action.forced, "rollout": action.rollout_id, "detail": action.detail,
        "code": action.code, "previous_release": action.previous_release_id, "created_by": action.created_by,
        "created": moment(action.created_ms), "updated": moment(action.updated_ms),
    }  # fmt: skip


def report_json(row: FeedbackRow) -> dict[str, Any]:
    return {
        "at": moment(row.at_ms), "kind": row.kind, "execution": row.execution, "finished": row.finished, "code": row.code,
        "details": list(row.details), "progress": dict(row.progress),
    }  # fmt: skip


def serving_of(connection: Connection, device_ids: Sequence[int]) -> Mapping[int, list[tuple[Installed, ReleaseRow]]]:
    """What serves the slots of some devices."""
    installed = devices.installed(connection, device_ids)
    known = releases.many(connection, [one.release_id for one in installed])
    found: dict[int, list[tuple[Installed, ReleaseRow]]] = {device_id: [] for device_id in device_ids}
    for one in installed:
        found[one.device_id].append((one, known[one.release_id]))
    return found
