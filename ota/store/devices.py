"""Devices: who they are, what they say about themselves, what serves their slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, Text, bindparam, case, cast, delete, func, insert, or_, select, update

from ota.store import tables
from ota.store.errors import ConflictError, LimitError, MissingError
from ota.store.rows import ActionState, AutoConfirm, Device, Installed, UpdateStatus

MAX_ATTRIBUTES = 100
"""As hawkBit's default."""
_CHUNK = 500
_T = tables.devices.c


@dataclass(frozen=True, slots=True)
class Seen:
    """A device was heard of."""

    device_id: int
    at_ms: int
    address: str


def of_row(row: Row[Any]) -> Device:
    confirm = None
    if row.auto_confirm_ms is not None:
        confirm = AutoConfirm(row.auto_confirm_by or "", row.auto_confirm_remark or "", row.auto_confirm_ms)
    return Device(
        row.id, row.controller_id, row.name, row.token_hash, row.attributes, row.created_ms, row.last_seen_ms,
        row.address, UpdateStatus(row.update_status), row.ask_attributes, confirm,
    )  # fmt: skip


def create(
    connection: Connection,
    controller_id: str,
    *,
    name: str = "",
    token_hash: str | None = None,
    now_ms: int,
    address: str = "",
    seen: bool = False,
) -> Device:
    """seen: it registers itself. Raises ConflictError when there is one of that id."""
    if find(connection, controller_id) is not None:
        raise ConflictError(f"there is a device {controller_id} already")
    status = UpdateStatus.REGISTERED if seen else UpdateStatus.UNKNOWN
    statement = insert(tables.devices).values(
        controller_id=controller_id, name=name or controller_id, token_hash=token_hash, attributes={}, created_ms=now_ms,
        last_seen_ms=now_ms if seen else None, address=address, update_status=status, ask_attributes=True,
    )  # fmt: skip
    connection.execute(statement)
    return get(connection, controller_id)


def find(connection: Connection, controller_id: str) -> Device | None:
    row = connection.execute(select(tables.devices).where(_T.controller_id == controller_id)).one_or_none()
    return of_row(row) if row is not None else None


def get(connection: Connection, controller_id: str) -> Device:
    """Raises MissingError."""
    found = find(connection, controller_id)
    if found is None:
        raise MissingError("there is no such device")
    return found


def all_of(connection: Connection) -> Iterator[Device]:
    """Every device, by id: what a filter is applied to."""
    return map(of_row, connection.execute(select(tables.devices).order_by(_T.id)))


def page(
    connection: Connection, *, limit: int, offset: int, search: str = "", status: str = ""
) -> tuple[list[Device], int]:
    """Some devices by controller id, and how many there are. search: part of id or name."""
    chosen: Select[Any] = select(tables.devices)
    if search:
        chosen = chosen.where(
            or_(_T.controller_id.icontains(search, autoescape=True), _T.name.icontains(search, autoescape=True))
        )
    if status:
        chosen = chosen.where(_T.update_status == status)
    total = connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
    rows = connection.execute(chosen.order_by(_T.controller_id).limit(limit).offset(offset))
    return [of_row(row) for row in rows], total


def installed(connection: Connection, device_ids: Sequence[int] | None) -> list[Installed]:
    """device_ids: None = of all devices."""
    if device_ids is None:
        return [Installed(*row) for row in connection.execute(select(tables.installed))]
    found: list[Installed] = []
    for start in range(0, len(device_ids), _CHUNK):
        chosen = tables.installed.c.device_id.in_(device_ids[start : start + _CHUNK])
        found += [Installed(*row) for row in connection.execute(select(tables.installed).where(chosen))]
    return found


def change(connection: Connection, device_id: int, /, **values: Any) -> None:
    """Set columns."""
    connection.execute(update(tables.devices).where(_T.id == device_id).values(**values))


def set_attributes(
    connection: Connection, device_id: int, mode: Literal["merge", "replace", "remove"], data: Mapping[str, str]
) -> None:
    """hawkBit's three modes. Raises LimitError beyond MAX_ATTRIBUTES."""
    kept: dict[str, str] = dict(connection.execute(select(_T.attributes).where(_T.id == device_id)).scalar_one())
    if mode == "remove":
        kept = {key: value for key, value in kept.items() if key not in data}
    else:
        kept = {**({} if mode == "replace" else kept), **data}
    if len(kept) > MAX_ATTRIBUTES:
        raise LimitError(f"a device has at most {MAX_ATTRIBUTES} attributes")
    change(connection, device_id, attributes=kept, ask_attributes=False)


def ask_those_without(connection: Connection) -> None:
    """Have those say once more what they run that have named releases of which none is known here: one of them may be by now."""
    known = select(tables.installed.c.device_id)
    names_some = cast(_T.attributes, Text).contains('"number.')
    connection.execute(update(tables.devices).where(_T.id.not_in(known), names_some).values(ask_attributes=True))


def saw(connection: Connection, heard: Iterable[Seen]) -> None:
    """Note many last-seen times at once; a device entered by hand becomes a registered one."""
    values = [{"key": one.device_id, "at": one.at_ms, "heard_from": one.address} for one in heard]
    if not values:
        return
    known = tables.devices.update().where(_T.id == bindparam("key"))
    connection.execute(known.values(last_seen_ms=bindparam("at"), address=bindparam("heard_from")), values)


def registered(connection: Connection, device_id: int) -> None:
    """One that was entered by hand came."""
    connection.execute(
        update(tables.devices)
        .where(_T.id == device_id, _T.update_status == UpdateStatus.UNKNOWN)
        .values(update_status=UpdateStatus.REGISTERED)
    )


def remove(connection: Connection, device_id: int) -> None:
    """With everything about it but the audit log."""
    of_device = select(tables.actions.c.id).where(tables.actions.c.device_id == device_id)
    connection.execute(delete(tables.installed).where(tables.installed.c.device_id == device_id))
    connection.execute(delete(tables.rollout_members).where(tables.rollout_members.c.device_id == device_id))
    connection.execute(delete(tables.feedback).where(tables.feedback.c.action_id.in_(of_device)))
    connection.execute(delete(tables.actions).where(tables.actions.c.device_id == device_id))
    connection.execute(delete(tables.devices).where(_T.id == device_id))


def by_update_status(connection: Connection) -> dict[str, int]:
    """How many devices stand where."""
    by_status = connection.execute(select(_T.update_status, func.count()).group_by(_T.update_status))
    return {str(status): 0 for status in UpdateStatus} | dict(by_status.all())


def by_presence(connection: Connection, seen_after_ms: int) -> dict[str, int]:
    """How many devices are online (heard of since then), offline, or were never heard of."""
    presence = case((_T.last_seen_ms.is_(None), "never"), (_T.last_seen_ms >= seen_after_ms, "online"), else_="offline")
    each = select(presence.label("presence")).subquery().c
    counted = connection.execute(select(each.presence, func.count()).group_by(each.presence))
    return {"online": 0, "offline": 0, "never": 0} | dict(counted.all())


def settle_status(connection: Connection, device_id: int, outcome: ActionState) -> None:
    """After an action came to its end: where the device stands now."""
    others = select(func.count()).select_from(tables.actions).where(
        tables.actions.c.device_id == device_id, tables.actions.c.open
    )  # fmt: skip
    if connection.execute(others).scalar_one():
        status = UpdateStatus.PENDING
    elif outcome is ActionState.ERROR:
        status = UpdateStatus.ERROR
    elif installed(connection, [device_id]):
        status = UpdateStatus.IN_SYNC
    else:
        status = UpdateStatus.REGISTERED
    change(connection, device_id, update_status=status)


def settle_cancelled(connection: Connection, device_ids: Sequence[int]) -> None:
    """As `settle_status`, for many whose action was cancelled."""
    action, done = tables.actions.c, tables.installed.c
    status = case(
        (select(action.id).where(action.device_id == _T.id, action.open).exists(), UpdateStatus.PENDING),
        (select(done.slot).where(done.device_id == _T.id).exists(), UpdateStatus.IN_SYNC),
        else_=UpdateStatus.REGISTERED,
    )
    connection.execute(update(tables.devices).where(_T.id.in_(device_ids)).values(update_status=status))


def names(connection: Connection, device_ids: Sequence[int]) -> dict[int, str]:
    """Controller ids."""
    rows = connection.execute(select(_T.id, _T.controller_id).where(_T.id.in_(set(device_ids))))
    return dict(rows.all())
