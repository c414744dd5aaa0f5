"""Decisions carried out on the tables, a part at a time, each part a transaction: whatever moment the server is killed at, what it
decided and what it noted are the same, and the next start goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from ota.rollouts import fleet, records
from ota.rollouts.engine import (
    Begin,
    Cancel,
    Decision,
    GoBack,
    Offer,
    SetStage,
    SetState,
    State,
    decide,
)
from ota.rollouts.records import Stored
from ota.store import actions, audit, devices
from ota.store.errors import ConflictError
from ota.store.rows import Action, Entry

SERVER = "fleet-server"
"""Who makes the changes that nobody asked for at that moment."""
CHUNK = 100
"""Devices in one transaction: everybody else's writes wait for it."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a decision is made, and since when a device counts as heard of; UTC milliseconds."""

    now_ms: int
    seen_after_ms: int


@dataclass(frozen=True, slots=True)
class Change:
    """Something to tell those who watch. group: its name; None: the rollout itself; devices: reached by it."""

    rollout_id: int
    name: str
    state: str
    detail: str = ""
    group: str | None = None
    devices: int = 0


def step(connection: Connection, rollout_id: int, moment: Moment) -> list[Change]:
    """One part of what is due; empty: nothing is. The decision is made in the transaction that carries it out, so that nobody's
    pause or abort comes between. Raises MissingError."""
    stored = records.get(connection, rollout_id)
    decisions = decide(stored.rollout, moment.now_ms)
    try:
        with connection.begin_nested():
            return carry_out(connection, stored, decisions, moment, by=SERVER)
    except ConflictError as error:
        if stored.rollout.state not in {State.READY, State.RUNNING}:
            raise
        return _cannot(connection, stored, str(error), moment)


def carry_out(
    connection: Connection, stored: Stored, decisions: Sequence[Decision], moment: Moment, *, by: str
) -> list[Change]:
    """Changes of state at once, devices up to CHUNK. by: a person's name or SERVER. Raises ConflictError."""
    changes: list[Change] = []
    left = CHUNK
    for decision in decisions:
        match decision:
            case Begin():
                changes.append(_begin(connection, stored, moment))
            case SetState(state, detail):
                if stored.rollout.state is State.ROLLING_BACK and by == SERVER:  # how it ended, and still why
                    detail = f"{stored.reason}; {detail}"
                _set_state(connection, stored, state, detail, moment)
                changes.append(Change(stored.id, stored.name, state, detail))
            case SetStage(group, stage, detail):
                records.set_stage(connection, stored.id, group, stage, now_ms=moment.now_ms, by=by)
                changes.append(Change(stored.id, stored.name, stage, detail, _name(stored, group)))
            case Offer() | Cancel() | GoBack():
                reached = _reach(connection, stored, decision, moment, limit=left, by=by)
                left -= reached
                word, where = _WORDS[type(decision)], _name(stored, decision.group)
                changes.append(Change(stored.id, stored.name, word, "", where, reached))
                if left <= 0:
                    break
    for change in changes:
        if by == SERVER and not change.devices:
            _log(connection, stored, change, moment)
    return changes


def _set_state(connection: Connection, stored: Stored, state: State, detail: str, moment: Moment) -> None:
    """A pause holds from its transaction on: in it, all the devices that have not fetched the release wait for it again."""
    records.set_state(connection, stored.id, state, detail, now_ms=moment.now_ms)
    while state is State.PAUSED and (offers := records.unfetched(connection, stored.id, CHUNK)):
        actions.cancel_many(connection, list(offers.values()), now_ms=moment.now_ms)
        records.note_offers(connection, stored.id, dict.fromkeys(offers))


_WORDS = {Offer: "offered", Cancel: "cancelled", GoBack: "sent back"}


def _reach(
    connection: Connection, stored: Stored, decision: Offer | Cancel | GoBack, moment: Moment, *, limit: int, by: str
) -> int:
    """How many devices it reached."""
    plan = stored.rollout.plan
    match decision:
        case Offer(group):
            ids = records.waiting(connection, stored.id, group, limit)
            made = actions.assign_many(
                connection, ids, stored.release.id, by=by, now_ms=moment.now_ms, forced=plan.forced,
                confirm=plan.confirmation, rollout_id=stored.id,
            )  # fmt: skip
            records.note_offers(connection, stored.id, {action.device_id: action.id for action in made})
            return len(ids)
        case Cancel(group):
            open_ones = records.cancellable(connection, stored.id, group, limit)
            actions.cancel_many(connection, open_ones, now_ms=moment.now_ms)
            return len(open_ones)
        case GoBack(group):
            due = records.returnable(connection, stored, group, limit)
            for release_id in {before for _, before in due}:
                ids = [device_id for device_id, before in due if before == release_id]
                made = actions.assign_many(
                    connection, ids, release_id, by=by, now_ms=moment.now_ms, forced=True, rollout_id=stored.id
                )
                records.note_returns(connection, stored.id, {action.device_id: action.id for action in made})
            return len(due)


def _begin(connection: Connection, stored: Stored, moment: Moment) -> Change:
    """Who takes part is settled here and stays so. Raises ConflictError."""
    if not stored.release.available:
        raise ConflictError(f"{stored.release.title} is no longer among the signed targets")
    choice = fleet.choose(
        connection, stored.rollout.plan, stored.filter, stored.release, moment.seen_after_ms, but=stored.id
    )
    refuse_busy(choice)
    if not choice.total:
        raise ConflictError("the filter takes no device that could get this release")
    if not choice.members[0]:  # it would be met at once, and the next group get the release unseen
        raise ConflictError(f"the first group, {_name(stored, 0)}, takes no device: change its filter")
    records.set_members(connection, stored.id, choice.members)
    records.set_state(connection, stored.id, State.RUNNING, "", now_ms=moment.now_ms)
    return Change(stored.id, stored.name, State.RUNNING, f"{choice.total} devices")


def refuse_busy(choice: fleet.Choice) -> None:
    """Raises ConflictError when a device is in another rollout: two of them would pull at it."""
    for name, number in choice.busy.items():
        raise ConflictError(f"{number} of the devices are in rollout {name}, which has not ended")


def assign(
    connection: Connection, device_id: int, release_id: int, *, by: str, now_ms: int, forced: bool, confirm: bool
) -> Action:
    """One device gets a release by a person's word. In a rollout of this release it counts all the same: what it has been offered goes on,
    what it would be offered later comes now. Raises MissingError, ConflictError."""
    under_way = actions.go_on(connection, device_id, release_id, now_ms=now_ms, forced=forced, confirm=confirm)
    if under_way is not None:
        return under_way
    rollout_id = records.going_to(connection, device_id, release_id)
    action = actions.assign(
        connection, device_id, release_id, by=by, now_ms=now_ms, forced=forced, confirm=confirm, rollout_id=rollout_id
    )
    if rollout_id is not None:
        records.note_offers(connection, rollout_id, {device_id: action.id})
    return action


def remove_device(connection: Connection, device_id: int, moment: Moment) -> list[Change]:
    """With everything about it. A group that had this device alone has shown nothing: its rollout pauses, for a person to say whether the
    next group shall get the release all the same."""
    alone = [
        (records.get(connection, rollout_id), group)
        for rollout_id, group in records.only_member_of(connection, device_id)
    ]
    devices.remove(connection, device_id)
    changes: list[Change] = []
    for stored, group in alone:
        why = f"group {_name(stored, group)}: its last device was deleted"
        if stored.rollout.state is State.PAUSED and stored.reason:
            why = f"{stored.reason}; {why}"
        changes += carry_out(connection, stored, [SetState(State.PAUSED, why)], moment, by=SERVER)
    return changes


def _cannot(connection: Connection, stored: Stored, why: str, moment: Moment) -> list[Change]:
    """A scheduled one waits until it can begin; a running one stops, for a person to look."""
    if stored.rollout.state is State.READY:
        if stored.reason != why:
            records.set_reason(connection, stored.id, why)
        return []
    _set_state(connection, stored, State.PAUSED, why, moment)
    change = Change(stored.id, stored.name, State.PAUSED, why)
    _log(connection, stored, change, moment)
    return [change]


def _log(connection: Connection, stored: Stored, change: Change, moment: Moment) -> None:
    where = {} if change.group is None else {"group": change.group}
    detail = {"state": change.state, **where, **({"detail": change.detail} if change.detail else {})}
    what = "rollout.state" if change.group is None else "rollout.group"
    audit.add(connection, Entry(moment.now_ms, SERVER, "server", "", what, subject(stored), detail))


def _name(stored: Stored, group: int) -> str:
    return stored.rollout.plan.groups[group].name


def subject(stored: Stored) -> str:
    """How the audit log names a rollout."""
    return f"{stored.id} {stored.name}"
