"""Rollouts in the database: rows in, the engine's values out. Each function runs inside its caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, case, func, insert, or_, select, update

from ota.rollouts.engine import BEGUN, ENDED, PASSED, Group, Rollout, Stage, State, Tally
from ota.rollouts.plan import Plan
from ota.store import releases, tables
from ota.store.actions import UNFETCHED
from ota.store.errors import MissingError
from ota.store.rows import ActionState, ReleaseRow

_R, _G, _M = tables.rollouts.c, tables.rollout_groups.c, tables.rollout_members.c
_OFFER, _UNDO = tables.actions.alias("offer"), tables.actions.alias("undo")
_BEFORE = tables.releases.alias("before")
_HERE = tables.installed


@dataclass(frozen=True, slots=True)
class GroupTimes:
    approved_by: str | None
    started_ms: int | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A rollout with all that the engine and a person want to know. times: per group."""

    id: int
    name: str
    release: ReleaseRow
    filter: str
    reason: str
    created_by: str
    created_ms: int
    changed_ms: int
    started_ms: int | None
    ended_ms: int | None
    rollout: Rollout
    times: tuple[GroupTimes, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A device in a rollout. at: where it stands, as the fields of `Tally`."""

    device_id: int
    controller_id: str
    group: int
    at: str
    detail: str
    updated_ms: int | None


def create(connection: Connection, *, name: str, release_id: int, chosen: str, plan: Plan, by: str, now_ms: int) -> int:
    """A rollout without members yet; its id. chosen: the filter."""
    state = State.DRAFT if plan.groups[0].approval else State.READY
    statement = insert(tables.rollouts).values(
        name=name, release_id=release_id, filter=chosen, plan=plan.model_dump(mode="json"), state=state, reason="",
        created_by=by, created_ms=now_ms, changed_ms=now_ms,
    )  # fmt: skip
    rollout_id: int = connection.execute(statement.returning(_R.id)).scalar_one()
    groups = [
        {"rollout_id": rollout_id, "position": position, "state": Stage.SCHEDULED}
        for position in range(len(plan.groups))
    ]
    connection.execute(insert(tables.rollout_groups), groups)
    return rollout_id


def get(connection: Connection, rollout_id: int) -> Stored:
    """Raises MissingError."""
    row = connection.execute(select(tables.rollouts).where(_R.id == rollout_id)).one_or_none()
    if row is None:
        raise MissingError("there is no such rollout")
    return _stored(connection, [row])[0]


def page(connection: Connection, *, limit: int, offset: int, state: str = "") -> tuple[list[Stored], int]:
    """Some rollouts, newest first, and how many there are."""
    chosen: Select[Any] = select(tables.rollouts)
    if state:
        chosen = chosen.where(_R.state == state)
    total: int = connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
    rows = connection.execute(chosen.order_by(_R.id.desc()).limit(limit).offset(offset)).all()
    return _stored(connection, rows), total


def alive(connection: Connection) -> list[int]:
    """Ids of the rollouts that may have something to do: not ended, or with offers to take back."""
    unfinished = [state for state in State if state not in ENDED]
    open_offers = (
        select(_M.rollout_id).join(_OFFER, _OFFER.c.id == _M.action_id)
        .where(_OFFER.c.open, _OFFER.c.state != ActionState.CANCELING)
    )  # fmt: skip
    aborted = and_(_R.state == State.ABORTED, _R.id.in_(open_offers))
    return list(
        connection.execute(select(_R.id).where(or_(_R.state.in_(unfinished), aborted)).order_by(_R.id)).scalars()
    )


def states(connection: Connection) -> dict[str, int]:
    """How many rollouts are in which state."""
    return {row.state: row[1] for row in connection.execute(select(_R.state, func.count()).group_by(_R.state))}


def set_state(connection: Connection, rollout_id: int, state: State, reason: str, *, now_ms: int) -> None:
    values: dict[str, Any] = {"state": state, "reason": reason, "changed_ms": now_ms}
    values["ended_ms"] = now_ms if state in ENDED else None
    if state is State.RUNNING:
        values["started_ms"] = func.coalesce(_R.started_ms, now_ms)
    connection.execute(update(tables.rollouts).where(_R.id == rollout_id).values(**values))


def set_reason(connection: Connection, rollout_id: int, reason: str) -> None:
    connection.execute(update(tables.rollouts).where(_R.id == rollout_id).values(reason=reason))


def set_stage(
    connection: Connection, rollout_id: int, group: int, stage: Stage, *, now_ms: int, by: str | None = None
) -> None:
    """by: who approved it."""
    values: dict[str, Any] = {"state": stage}
    if stage is Stage.RUNNING:
        values["started_ms"] = now_ms
    if stage in PASSED:
        values["met_ms"] = now_ms
    if stage is Stage.APPROVED:
        values["approved_by"] = by
    mine = and_(_G.rollout_id == rollout_id, _G.position == group)
    connection.execute(update(tables.rollout_groups).where(mine).values(**values))


def set_members(connection: Connection, rollout_id: int, groups: Sequence[Sequence[int]]) -> None:
    """Device ids of each group: who takes part from now on, and nobody else."""
    rows = [
        {"rollout_id": rollout_id, "device_id": device_id, "position": position}
        for position, ids in enumerate(groups)
        for device_id in ids
    ]
    if rows:
        connection.execute(insert(tables.rollout_members), rows)


def note_offers(connection: Connection, rollout_id: int, actions: Mapping[int, int | None]) -> None:
    """Action that gives the release, by device id; None: it waits."""
    _note(connection, rollout_id, "action_id", actions)


def note_returns(connection: Connection, rollout_id: int, actions: Mapping[int, int]) -> None:
    """Action that gives the version before, by device id."""
    _note(connection, rollout_id, "back_action_id", actions)


def _note(connection: Connection, rollout_id: int, column: str, actions: Mapping[int, int | None]) -> None:
    mine = and_(_M.rollout_id == rollout_id, _M.device_id == bindparam("device"))
    statement = update(tables.rollout_members).where(mine).values({column: bindparam("action")})
    connection.execute(statement, [{"device": device, "action": action} for device, action in actions.items()])


def waiting(connection: Connection, rollout_id: int, group: int, limit: int) -> list[int]:
    """Device ids of the group that have not been offered the release."""
    chosen = select(_M.device_id).where(_M.rollout_id == rollout_id, _M.position == group, _M.action_id.is_(None))
    return list(connection.execute(chosen.order_by(_M.device_id).limit(limit)).scalars())


def cancellable(connection: Connection, rollout_id: int, group: int, limit: int) -> list[int]:
    """Action ids of the group's open offers that nobody has taken back yet."""
    chosen = (
        select(_OFFER.c.id)
        .join(tables.rollout_members, _M.action_id == _OFFER.c.id)
        .where(
            _M.rollout_id == rollout_id, _M.position == group, _OFFER.c.open, _OFFER.c.state != ActionState.CANCELING
        )
    )
    return list(connection.execute(chosen.order_by(_OFFER.c.id).limit(limit)).scalars())


def unfetched(connection: Connection, rollout_id: int, limit: int) -> dict[int, int]:
    """Offers that no device knows of yet: the action by device id."""
    chosen = (
        select(_M.device_id, _OFFER.c.id)
        .join(_OFFER, _OFFER.c.id == _M.action_id)
        .where(_M.rollout_id == rollout_id, _OFFER.c.state.in_(UNFETCHED))
    )
    return dict(connection.execute(chosen.limit(limit)).all())


def returnable(connection: Connection, stored: Stored, group: int, limit: int) -> list[tuple[int, int]]:
    """Device and release before of those of the group that run the release and can go back."""
    chosen = _with_actions(select(_M.device_id, _OFFER.c.previous_release_id), stored.release.slot).where(
        _M.rollout_id == stored.id, _M.position == group, _OFFER.c.state == ActionState.FINISHED,
        _M.back_action_id.is_(None), ~_rooted(),
    )  # fmt: skip
    return [(row[0], row[1]) for row in connection.execute(chosen.order_by(_M.device_id).limit(limit))]


def members(
    connection: Connection, stored: Stored, *, limit: int, offset: int, group: int | None = None, at: str = ""
) -> tuple[list[Member], int]:
    """Some devices of a rollout by controller id, and how many there are."""
    detail = func.coalesce(_UNDO.c.detail, _OFFER.c.detail, "")
    updated = func.coalesce(_UNDO.c.updated_ms, _OFFER.c.updated_ms)
    columns = (
        _M.device_id, tables.devices.c.controller_id, _M.position, _at().label("at"), detail.label("detail"),
        updated.label("updated_ms"),
    )  # fmt: skip
    chosen = _with_actions(select(*columns), stored.release.slot).where(_M.rollout_id == stored.id)
    chosen = chosen.join(tables.devices, tables.devices.c.id == _M.device_id)
    if group is not None:
        chosen = chosen.where(_M.position == group)
    if at:
        chosen = chosen.where(_at() == at)
    total: int = connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
    rows = connection.execute(chosen.order_by(tables.devices.c.controller_id).limit(limit).offset(offset))
    return [Member(*row) for row in rows], total


def only_member_of(connection: Connection, device_id: int) -> list[tuple[int, int]]:
    """Rollouts at work (running, paused) and their groups that have yet to show something, in which the device is the only one, and
    after which others come."""
    own, other = tables.rollout_members.alias("own"), tables.rollout_members.alias("other")
    open_stages = [stage for stage in Stage if stage not in BEGUN or stage is Stage.RUNNING]
    with_it = select(other.c.device_id).where(
        other.c.rollout_id == own.c.rollout_id, other.c.position == own.c.position, other.c.device_id != device_id
    )
    after_it = select(other.c.device_id).where(
        other.c.rollout_id == own.c.rollout_id, other.c.position > own.c.position
    )
    chosen = (
        select(own.c.rollout_id, own.c.position)
        .join(tables.rollouts, _R.id == own.c.rollout_id)
        .join(tables.rollout_groups, and_(_G.rollout_id == own.c.rollout_id, _G.position == own.c.position))
        .where(own.c.device_id == device_id, _R.state.in_((State.RUNNING, State.PAUSED)), _G.state.in_(open_stages))
        .where(~with_it.exists(), after_it.exists())
    )
    return [(row.rollout_id, row.position) for row in connection.execute(chosen)]


def going_to(connection: Connection, device_id: int, release_id: int) -> int | None:
    """The rollout that gives the device this release, or will: it runs or pauses, no group has failed, and the device has yet to end."""
    failed = select(_G.rollout_id).where(_G.state == Stage.FAILED)
    yet_to_end = or_(_M.action_id.is_(None), and_(_OFFER.c.open, _OFFER.c.state != ActionState.CANCELING))
    chosen = (
        select(_M.rollout_id)
        .join(tables.rollouts, _R.id == _M.rollout_id)
        .outerjoin(_OFFER, _OFFER.c.id == _M.action_id)
        .where(_M.device_id == device_id, yet_to_end)
        .where(_R.release_id == release_id, _R.state.in_((State.RUNNING, State.PAUSED)), _R.id.not_in(failed))
    )
    return connection.execute(chosen.limit(1)).scalar_one_or_none()


def member_ids(connection: Connection, rollout_id: int) -> list[int]:
    return list(connection.execute(select(_M.device_id).where(_M.rollout_id == rollout_id)).scalars())


def taken(connection: Connection, device_ids: Sequence[int], slot: str, *, but: int) -> dict[int, str]:
    """Those of the devices that are in another rollout of the slot which has not ended, each with that rollout's name."""
    unfinished = [state for state in State if state not in ENDED]
    chosen = (
        select(_M.device_id, _R.name)
        .join(tables.rollouts, _R.id == _M.rollout_id)
        .join(tables.releases, tables.releases.c.id == _R.release_id)
        .where(_R.id != but, _R.state.in_(unfinished), tables.releases.c.slot == slot)
    )
    wanted = set(device_ids)
    return {row.device_id: row.name for row in connection.execute(chosen) if row.device_id in wanted}


def _stored(connection: Connection, rows: Sequence[Row[Any]]) -> list[Stored]:
    ids = [row.id for row in rows]
    known = releases.many(connection, [row.release_id for row in rows])
    groups: dict[int, list[Row[Any]]] = defaultdict(list)
    for group in connection.execute(select(tables.rollout_groups).where(_G.rollout_id.in_(ids)).order_by(_G.position)):
        groups[group.rollout_id].append(group)
    found = []
    for row in rows:
        release, plan = known[row.release_id], Plan.model_validate(row.plan)
        tallies = _tallies(connection, row.id, release.slot)
        state = State(row.state)
        own = tuple(
            Group(plan.groups[group.position], Stage(group.state), tallies.get(group.position, Tally()), group.met_ms)
            for group in groups[row.id]
        )
        times = tuple(GroupTimes(group.approved_by, group.started_ms) for group in groups[row.id])
        found.append(
            Stored(
                row.id, row.name, release, row.filter, row.reason, row.created_by, row.created_ms, row.changed_ms,
                row.started_ms, row.ended_ms, Rollout(plan, state, own), times,
            )
        )  # fmt: skip
    return found


def _tallies(connection: Connection, rollout_id: int, slot: str) -> dict[int, Tally]:
    """By group."""
    each = _with_actions(select(_M.position, _at().label("at"), _rooted().label("rooted")), slot)
    one = each.where(_M.rollout_id == rollout_id).subquery().c
    chosen = select(one.position, one.at, one.rooted, func.count().label("number"))
    chosen = chosen.group_by(one.position, one.at, one.rooted)
    numbers: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in connection.execute(chosen):
        numbers[row.position][row.at] += row.number
        if row.at == "succeeded" and row.rooted:
            numbers[row.position]["rooted"] += row.number
    return {position: Tally(**counts) for position, counts in numbers.items()}


def _with_actions(columns: Select[Any], slot: str) -> Select[Any]:
    """Members with their actions, the release before, and what the slot of the device holds."""
    joined = (
        tables.rollout_members.outerjoin(_OFFER, _OFFER.c.id == _M.action_id)
        .outerjoin(_UNDO, _UNDO.c.id == _M.back_action_id)
        .outerjoin(_BEFORE, _BEFORE.c.id == _OFFER.c.previous_release_id)
        .outerjoin(_HERE, and_(_HERE.c.device_id == _M.device_id, _HERE.c.slot == slot))
    )
    return columns.select_from(joined)


def _at() -> Any:
    """Where a member stands: a field of Tally."""
    return case(
        (and_(_UNDO.c.id.is_not(None), _UNDO.c.open), "returning"),
        (_UNDO.c.state == ActionState.FINISHED, "returned"),
        (_UNDO.c.id.is_not(None), "stuck"),
        (_OFFER.c.id.is_(None), "waiting"),
        (_OFFER.c.state == ActionState.CANCELING, "ending"),
        (_OFFER.c.open, "open"),
        (_OFFER.c.state == ActionState.FINISHED, "succeeded"),
        (_OFFER.c.state == ActionState.ERROR, "failed"),
        else_="left",
    )


def _rooted() -> Any:
    """No way back: no version before, none that is still signed, or something else runs by now."""
    elsewhere = func.coalesce(_HERE.c.action_id, 0) != func.coalesce(_OFFER.c.id, 0)
    return or_(_BEFORE.c.id.is_(None), _BEFORE.c.available.is_(False), elsewhere)
