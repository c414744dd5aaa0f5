"""Rollouts as JSON: what the management interface, the page and the command line show."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ota.rollouts import engine
from ota.rollouts.engine import Group, Tally
from ota.rollouts.fleet import Choice
from ota.rollouts.plan import Plan
from ota.rollouts.records import GroupTimes, Stored
from ota.server.management import moment


def rollout_json(stored: Stored) -> dict[str, Any]:
    """needed, limit of a group: devices that must succeed, failed ones that stop the rollout. next: when time lets the next group
    (or the rollout) begin; waits_for_approval: the group that does."""
    rollout, release = stored.rollout, stored.release
    waits = engine.waits_for_approval(rollout)
    return {
        "id": stored.id, "name": stored.name, "state": rollout.state, "reason": stored.reason, "filter": stored.filter,
        "release": {"id": release.id, "slot": release.slot, "name": release.name, "version": release.version},
        "plan": rollout.plan.model_dump(mode="json"), "devices": sum(group.tally.members for group in rollout.groups),
        "waits_for_approval": rollout.plan.groups[waits].name if waits is not None else None,
        "next": moment(engine.next_start_ms(rollout)), "created_by": stored.created_by, "created": moment(stored.created_ms),
        "changed": moment(stored.changed_ms), "started": moment(stored.started_ms), "ended": moment(stored.ended_ms),
        "groups": [_group_json(group, times) for group, times in zip(rollout.groups, stored.times, strict=True)],
    }  # fmt: skip


def choice_json(choice: Choice, plan: Plan) -> dict[str, Any]:
    """matched: by the filter; devices: of them, who would get the release; lacking: as of a choice; needed, limit: as of a rollout's groups."""
    groups = [
        {
            "name": group.name, "devices": len(ids), "needed": engine.needed(group, len(ids)),
            "limit": engine.too_many(group, len(ids)),
        }
        for group, ids in zip(plan.groups, choice.members, strict=True)
    ]  # fmt: skip
    return {
        "matched": choice.matched, "already": choice.already, "newer": choice.newer, "busy": dict(choice.busy),
        "lacking": choice.lacking, "devices": choice.total, "groups": groups,
    }  # fmt: skip


def _group_json(group: Group, times: GroupTimes) -> dict[str, Any]:
    tally = group.tally
    return {
        "name": group.plan.name, "state": group.stage, "devices": tally.members,
        "counts": {field.name: getattr(tally, field.name) for field in fields(Tally)},
        "needed": engine.needed(group.plan, tally.judged), "limit": engine.too_many(group.plan, tally.judged),
        "approved_by": times.approved_by, "started": moment(times.started_ms), "met": moment(group.met_ms),
    }  # fmt: skip
