"""Actions: one release for one device, from the assignment to its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from ota.store import devices, tables
from ota.store.errors import ConflictError, LimitError, MissingError
from ota.store.releases import get as get_release
from ota.store.rows import OPEN, Action, ActionState, ReleaseRow, UpdateStatus

UNFETCHED = (ActionState.WAITING, ActionState.PENDING)
"""The device knows nothing of it yet."""
MAX_BY_HAND = 1000
"""Actions of one device that it made itself."""
_BY_DEVICE = "device"
"""Who makes actions for what came onto a device by another way."""
_CHUNK = 500
_T = tables.actions.c


def of_row(row: Row[Any]) -> Action:
    return Action(
        row.id, row.device_id, row.release_id, row.previous_release_id, row.rollout_id, ActionState(row.state), row.open,
        row.forced, row.detail, row.code, row.created_by, row.created_ms, row.updated_ms,
    )  # fmt: skip


def get(connection: Connection, action_id: int) -> Action:
    """Raises MissingError."""
    row = connection.execute(select(tables.actions).where(_T.id == action_id)).one_or_none()
    if row is None:
        raise MissingError("there is no such action")
    return of_row(row)


def of_device(connection: Connection, device_id: int, action_id: int) -> tuple[Action, ReleaseRow]:
    """An action with its release, when it is that device's. Raises MissingError."""
    action = get(connection, action_id)
    if action.device_id != device_id:
        raise MissingError("there is no such action")
    return action, get_release(connection, action.release_id)


def page(
    connection: Connection, *, limit: int, offset: int, device_id: int | None = None, only_open: bool = False
) -> tuple[list[Action], int]:
    """Some actions, newest first, and how many there are."""
    chosen = select(tables.actions)
    if device_id is not None:
        chosen = chosen.where(_T.device_id == device_id)
    if only_open:
        chosen = chosen.where(_T.open)
    total = connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
    rows = connection.execute(chosen.order_by(_T.id.desc()).limit(limit).offset(offset))
    return [of_row(row) for row in rows], total


def of_rollout(connection: Connection, rollout_id: int) -> list[Action]:
    rows = connection.execute(select(tables.actions).where(_T.rollout_id == rollout_id).order_by(_T.id))
    return [of_row(row) for row in rows]


def counts(connection: Connection) -> Counter[str]:
    """Actions by state."""
    return Counter(dict(connection.execute(select(_T.state, func.count()).group_by(_T.state)).all()))


def gets(connection: Connection, device_id: int, release_id: int) -> bool:
    """Whether the device may have the bytes of a release: it was told to, and not told otherwise since."""
    mine = select(_T.id).where(
        _T.device_id == device_id, _T.release_id == release_id, _T.state.not_in((ActionState.WAITING, ActionState.CANCELED))
    )  # fmt: skip
    return connection.execute(mine.limit(1)).first() is not None


def assign(
    connection: Connection,
    device_id: int,
    release_id: int,
    *,
    by: str,
    now_ms: int,
    forced: bool = False,
    confirm: bool = False,
    rollout_id: int | None = None,
) -> Action:
    """As `assign_many`, for one device."""
    return assign_many(
        connection, [device_id], release_id, by=by, now_ms=now_ms, forced=forced, confirm=confirm, rollout_id=rollout_id
    )[0]


def assign_many(
    connection: Connection,
    device_ids: Sequence[int],
    release_id: int,
    *,
    by: str,
    now_ms: int,
    forced: bool = False,
    confirm: bool = False,
    rollout_id: int | None = None,
) -> list[Action]:
    """Have devices get a release; their actions in the order of `device_ids`.

    An open action in the same slot gives way: at once when the device never fetched it, else the device is asked to cancel it. confirm:
    it waits for the device's (or its owner's) yes. Some hundred devices a call: everybody else's writes wait for it.
    Raises MissingError, ConflictError for a release that is gone from the signed targets.
    """
    release = _require_signed(connection, release_id)
    made: dict[int, Action] = {}
    for start in range(0, len(device_ids), _CHUNK):
        chunk = list(device_ids[start : start + _CHUNK])
        _give_way(connection, chunk, release.slot, now_ms)
        values = _new_actions(connection, chunk, release, confirm=confirm)
        common = {
            "release_id": release_id, "rollout_id": rollout_id, "open": True, "forced": forced, "detail": "", "code": None,
            "created_by": by, "created_ms": now_ms, "updated_ms": now_ms,
        }  # fmt: skip
        rows = connection.execute(
            insert(tables.actions).returning(tables.actions), [value | common for value in values]
        )
        made |= {row.device_id: of_row(row) for row in rows}
        connection.execute(
            update(tables.devices).where(tables.devices.c.id.in_(chunk)).values(update_status=UpdateStatus.PENDING)
        )
    return [made[device_id] for device_id in device_ids]


def go_on(
    connection: Connection, device_id: int, release_id: int, *, now_ms: int, forced: bool, confirm: bool
) -> Action | None:
    """The open action by which a rollout gives the device this release already, as a new one would: without waiting for its window (forced),
    or for its yes. None: there is no such action, or the device is to be asked and has begun. Raises as `assign_many`."""
    _require_signed(connection, release_id)
    mine = select(tables.actions).where(
        _T.device_id == device_id, _T.release_id == release_id, _T.rollout_id.is_not(None), _T.open, _T.state != ActionState.CANCELING
    )  # fmt: skip
    row = connection.execute(mine).first()
    if row is None or (confirm and row.state != ActionState.WAITING):
        return None
    state = ActionState.PENDING if row.state == ActionState.WAITING and not confirm else row.state
    values = {"state": state, "forced": row.forced or forced, "updated_ms": now_ms}
    changed = update(tables.actions).where(_T.id == row.id).values(**values).returning(tables.actions)
    return of_row(connection.execute(changed).one())


def _require_signed(connection: Connection, release_id: int) -> ReleaseRow:
    release = get_release(connection, release_id)
    if not release.available:
        raise ConflictError(f"{release.title} is no longer among the signed targets")
    return release


def _new_actions(
    connection: Connection, device_ids: Sequence[int], release: ReleaseRow, *, confirm: bool
) -> list[dict[str, Any]]:
    known = select(tables.devices.c.id, tables.devices.c.auto_confirm_ms).where(tables.devices.c.id.in_(device_ids))
    says_yes = dict(connection.execute(known).all())
    if len(says_yes) != len(set(device_ids)):
        raise MissingError("there is no such device")
    before = {
        one.device_id: one.release_id for one in devices.installed(connection, device_ids) if one.slot == release.slot
    }
    return [
        {
            "device_id": device_id,
            "previous_release_id": before.get(device_id),
            "state": ActionState.WAITING if confirm and says_yes[device_id] is None else ActionState.PENDING,
        }
        for device_id in device_ids
    ]


def _give_way(connection: Connection, device_ids: Sequence[int], slot: str, now_ms: int) -> None:
    in_slot = select(tables.releases.c.id).where(tables.releases.c.slot == slot)
    mine = update(tables.actions).where(_T.device_id.in_(device_ids), _T.open, _T.release_id.in_(in_slot))
    connection.execute(
        mine.where(_T.state.in_(UNFETCHED)).values(
            state=ActionState.CANCELED, open=False, detail="replaced by a newer assignment", updated_ms=now_ms
        )
    )
    connection.execute(mine.values(state=ActionState.CANCELING, updated_ms=now_ms))


def cancel(connection: Connection, action_id: int, *, now_ms: int, force: bool = False) -> Action:
    """Ask the device to stop; closes the action at once when the device never fetched it, or with `force`.

    Raises MissingError, ConflictError for one that is at its end.
    """
    action = get(connection, action_id)
    if not action.open:
        raise ConflictError(f"the action is {action.state} already")
    if action.state in UNFETCHED or force:
        return close(connection, action, ActionState.CANCELED, now_ms=now_ms, detail="cancelled at the server")
    return set_state(connection, action, ActionState.CANCELING, now_ms=now_ms)


def cancel_many(connection: Connection, action_ids: Sequence[int], *, now_ms: int) -> None:
    """As `cancel`, for some hundred open ones; those at their end stay as they are."""
    mine = update(tables.actions).where(_T.id.in_(action_ids), _T.open)
    closed = mine.where(_T.state.in_(UNFETCHED)).values(
        state=ActionState.CANCELED, open=False, detail="cancelled at the server", updated_ms=now_ms
    )
    done = list(connection.execute(closed.returning(_T.device_id)).scalars())
    connection.execute(mine.values(state=ActionState.CANCELING, updated_ms=now_ms))
    devices.settle_cancelled(connection, done)


def set_state(
    connection: Connection,
    action: Action,
    state: ActionState,
    *,
    now_ms: int,
    detail: str | None = None,
    code: int | None = None,
) -> Action:
    """Into another open state, or with `close` into a closed one."""
    values: dict[str, Any] = {"state": state, "open": state in OPEN, "updated_ms": now_ms}
    if detail is not None:
        values |= {"detail": detail, "code": code}
    changed = update(tables.actions).where(_T.id == action.id).values(**values).returning(tables.actions)
    return of_row(connection.execute(changed).one())


def close(
    connection: Connection,
    action: Action,
    state: ActionState,
    *,
    now_ms: int,
    detail: str | None = None,
    code: int | None = None,
) -> Action:
    """To its end, one of CLOSED: what the device has, and where it stands, follow from it."""
    if state is ActionState.FINISHED:
        _note_installed(connection, action, now_ms)
        devices.change(connection, action.device_id, ask_attributes=True)
    closed = set_state(connection, action, state, now_ms=now_ms, detail=detail, code=code)
    devices.settle_status(connection, action.device_id, state)
    return closed


def note_by_hand(connection: Connection, device_id: int, release: ReleaseRow, *, now_ms: int) -> Action | None:
    """The device says that a release came onto it by another way; None when that is known. Raises LimitError."""
    serving = {one.slot: one.release_id for one in devices.installed(connection, [device_id])}
    if serving.get(release.slot) == release.id:
        return None
    by_hand = select(func.count()).where(_T.device_id == device_id, _T.created_by == _BY_DEVICE)
    if connection.execute(by_hand).scalar_one() >= MAX_BY_HAND:
        raise LimitError(f"a device tells of at most {MAX_BY_HAND} installations by hand")
    return close(
        connection,
        assign(connection, device_id, release.id, by=_BY_DEVICE, now_ms=now_ms),
        ActionState.FINISHED,
        now_ms=now_ms,
        detail="installed by hand",
    )


def note_serving(connection: Connection, device_id: int, slot: str, release: ReleaseRow | None, *, now_ms: int) -> None:
    """The device says that this serves a slot, and not what it reported last; None: a model of its configuration, or one that nobody here
    knows. What is under way goes on, and says itself when it has ended."""
    if release is None:
        mine = (tables.installed.c.device_id == device_id, tables.installed.c.slot == slot)
        connection.execute(delete(tables.installed).where(*mine))
        return
    under_way = select(_T.id).where(
        _T.device_id == device_id, _T.release_id == release.id, _T.open, _T.state.not_in(UNFETCHED)
    )  # fmt: skip
    if connection.execute(under_way.limit(1)).first() is None:
        action_id = _came_by(connection, device_id, release, now_ms)
        _serve(connection, device_id, slot, release.id, action_id=action_id, now_ms=now_ms)


def _came_by(connection: Connection, device_id: int, release: ReleaseRow, now_ms: int) -> int:
    """The action that stands for it: that of what the device was given last, should it be back at that; else one of the device's own, which
    belongs to no rollout: the way back of an earlier one would be refused."""
    in_slot = select(tables.releases.c.id).where(tables.releases.c.slot == release.slot)
    ended = select(_T.id, _T.release_id, _T.created_by).where(
        _T.device_id == device_id, _T.state == ActionState.FINISHED, _T.release_id.in_(in_slot)
    )  # fmt: skip
    rows = connection.execute(ended.order_by(_T.id.desc())).all()
    given = next((row for row in rows if row.created_by != _BY_DEVICE), None)
    own = next((row for row in rows if row.created_by == _BY_DEVICE and row.release_id == release.id), None)
    found = given if given is not None and given.release_id == release.id else own
    if found is not None:
        return int(found.id)
    statement = insert(tables.actions).values(
        device_id=device_id, release_id=release.id, state=ActionState.FINISHED, open=False, forced=False,
        detail="as it says", created_by=_BY_DEVICE, created_ms=now_ms, updated_ms=now_ms,
    )  # fmt: skip
    return int(connection.execute(statement.returning(_T.id)).scalar_one())


def _note_installed(connection: Connection, action: Action, now_ms: int) -> None:
    slot = get_release(connection, action.release_id).slot
    before = _serve(connection, action.device_id, slot, action.release_id, action_id=action.id, now_ms=now_ms)
    if before != action.release_id:  # what serves may have changed since the assignment
        connection.execute(update(tables.actions).where(_T.id == action.id).values(previous_release_id=before))


def _serve(
    connection: Connection, device_id: int, slot: str, release_id: int, *, action_id: int, now_ms: int
) -> int | None:
    """What served before."""
    table = tables.installed
    mine = (table.c.device_id == device_id, table.c.slot == slot)
    values = {"release_id": release_id, "action_id": action_id, "at_ms": now_ms}
    before = connection.execute(select(table.c.release_id).where(*mine)).scalar_one_or_none()
    if before is None:
        connection.execute(insert(table).values(device_id=device_id, slot=slot, **values))
    else:
        connection.execute(update(table).where(*mine).values(**values))
    return before
