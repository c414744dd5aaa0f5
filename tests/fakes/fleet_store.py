"""A fleet in a real database: devices, releases, and what devices report, put there by the functions that the server uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, select

from agent.update.release import Contract, Release, TensorInfo
from ota.store import actions, devices, feedback, releases, tables
from ota.store.feedback import DEPLOYMENT
from ota.store.rows import Device, ReleaseRow, Report

CONTRACT = Contract(
    task="pose",
    inputs=(TensorInfo(name="input", shape=(1, 3, 192, 256), meaning="letterbox"),),
    outputs=(TensorInfo(name="people", shape=(1, "people", 56), meaning="people"),),
)


def add_release(
    connection: Connection, number: int, *, name: str = "pose-nano", slot: str = "pose", now_ms: int = 0
) -> ReleaseRow:
    release = Release(
        slot=slot, name=name, version=f"0.{number}.0", number=number, manifest_sha256="ab" * 32, unpacked_bytes=1000,
        contract=None if slot == "configuration" else CONTRACT,
    )  # fmt: skip
    return releases.add(
        connection, release, target=release.path, length=500, sha256=f"{number:064x}", sha1="", md5="", now_ms=now_ms
    )


def add_devices(
    connection: Connection, names: Sequence[str], *, attributes: Mapping[str, str] | None = None, now_ms: int = 0
) -> list[Device]:
    made = [devices.create(connection, name, now_ms=now_ms, seen=True) for name in names]
    for device in made:
        devices.set_attributes(connection, device.id, "merge", dict(attributes or {}))
    return made


def install(connection: Connection, device_ids: Sequence[int], release_id: int, *, now_ms: int = 0) -> None:
    """As if each had got the release by an action of its own and reported success."""
    for action in actions.assign_many(connection, device_ids, release_id, by="setup", now_ms=now_ms):
        report(connection, action.device_id, "success", now_ms=now_ms)


def report(connection: Connection, device_id: int, finished: str, *, detail: str = "", now_ms: int = 0) -> None:
    """The device ends its oldest open action. finished: success | failure | canceled."""
    table = tables.actions.c
    mine = select(table.id).where(table.device_id == device_id, table.open).order_by(table.id).limit(1)
    action_id = connection.execute(mine).scalar_one()
    execution = "canceled" if finished == "canceled" else "closed"
    result = "none" if finished == "canceled" else finished
    said = Report(DEPLOYMENT, execution, result, details=(detail,) if detail else ())
    feedback.add(connection, device_id, action_id, said, now_ms=now_ms)


def fetch_all(connection: Connection, rollout_id: int) -> None:
    """Every device of the rollout has seen its open action: taking it back needs its word from now on."""
    fetch(connection, rollout_id, None)


def fetch(connection: Connection, rollout_id: int, number: int | None) -> None:
    """As `fetch_all`, by so many devices."""
    for action in [action for action in actions.of_rollout(connection, rollout_id) if action.open][:number]:
        said = Report(DEPLOYMENT, "proceeding", "none")
        feedback.add(connection, action.device_id, action.id, said, now_ms=0)


def open_actions(connection: Connection) -> dict[int, int]:
    """Release id by device id."""
    table = tables.actions.c
    rows = connection.execute(select(table.device_id, table.release_id).where(table.open))
    return {row.device_id: row.release_id for row in rows}
