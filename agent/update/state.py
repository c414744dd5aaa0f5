"""Where updates stand, as the documents that leave the agent: MQTT `ota/state`, the HTTP state, `ota status`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from agent.update.journal import title_of
from agent.update.machine import Phase
from agent.update.parts import Progress
from agent.update.records import Action, Serving

ServerState = Literal["off", "unknown", "ok", "offline", "denied", "confused"]


@dataclass(frozen=True, slots=True)
class ServerView:
    """How the fleet server takes us. detail: the last error; polled_us: of the last good answer, 0 = none since the start."""

    state: ServerState = "unknown"
    detail: str = ""
    polled_us: int = 0


def state_document(
    action: Action | None,
    progress: Progress | None,
    slots: Mapping[str, Serving],
    server: ServerView,
    now: datetime,
) -> dict[str, Any]:
    """The whole state. action: the one under way, else the last one; progress: of the one under way."""
    return {
        "t": now.astimezone(UTC).isoformat(timespec="milliseconds"),
        **_action(action, slots, under_way=progress is not None),
        "progress": round(progress.share, 3) if progress else None,
        "detail": (progress.waiting or progress.text) if progress else (action.text if action else ""),
        "waiting": bool(progress and progress.waiting),
        "versions": {slot: serving_document(one) for slot, one in slots.items()},
        "server": server_document(server),
    }


def server_document(server: ServerView) -> dict[str, Any]:
    """polled: when it last gave a good answer, null: not since the start."""
    return {
        "state": server.state,
        "detail": server.detail,
        "polled": _time(server.polled_us) if server.polled_us else None,
    }


def _action(action: Action | None, slots: Mapping[str, Serving], *, under_way: bool) -> dict[str, Any]:
    if action is None:
        return {
            "action_id": None, "phase": "idle", "slot": None, "from": None, "to": None, "result": None, "reason": "",
            "figures": {},
        }  # fmt: skip
    serving = slots.get(action.slot, Serving(action.slot))
    return {
        "action_id": action.action_id,
        "phase": action.phase.value,
        "slot": action.slot,
        "from": title_of(serving.before if action.phase is Phase.COMMITTED else serving.current),
        "to": action.title,
        "result": None if under_way else _result(action),  # a way back is no end yet
        "reason": action.reason,
        "figures": action.flat_figures,
    }


def _result(action: Action) -> str | None:
    if not action.over:
        return None
    return "success" if action.phase is Phase.COMMITTED else "failure"


def serving_document(serving: Serving) -> dict[str, Any]:
    """One slot. sha256 is null where the configuration's model serves."""
    current = serving.current
    return {
        "version": title_of(current),
        "number": current.release.number if current else None,
        "sha256": current.sha256 if current else None,
        "before": title_of(serving.before) if serving.has_before else None,
        "highest": serving.highest,
    }


def action_document(action: Action) -> dict[str, Any]:
    """One line of the history."""
    return {
        "action_id": action.action_id,
        "slot": action.slot,
        "release": action.title,
        "phase": action.phase.value,
        "reason": action.reason,
        "text": action.text,
        "figures": action.flat_figures,
        "begun": _time(action.t_begun_us),
        "changed": _time(action.t_phase_us),
    }


def _time(t_us: int) -> str:
    return datetime.fromtimestamp(t_us / 1e6, UTC).isoformat(timespec="seconds")
