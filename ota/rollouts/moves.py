"""What a person may do to a rollout: each answers with decisions, or says why not now."""

from __future__ import annotations

from ota.rollouts.engine import (
    BACK,
    BEGUN,
    ENDED,
    Begin,
    Decision,
    Rollout,
    SetStage,
    SetState,
    Stage,
    State,
    waits_for_approval,
)
from ota.store.errors import ConflictError


class NotNowError(ConflictError):
    """The rollout is in no state for this."""


def approve(rollout: Rollout) -> list[Decision]:
    """Let the group begin that waits for a person's word. Raises NotNowError."""
    index = waits_for_approval(rollout)
    if index is None:
        raise NotNowError(f"nothing waits for approval: the rollout is {rollout.state}")
    agreed = SetStage(index, Stage.APPROVED)
    return [agreed, SetState(State.READY)] if rollout.state is State.DRAFT else [agreed]


def start(rollout: Rollout) -> list[Decision]:
    """Begin now, whatever start_at says. Raises NotNowError."""
    if rollout.state is State.DRAFT:
        raise NotNowError("the rollout waits for approval first")
    _only(rollout, "started", State.READY)
    return [Begin()]


def pause(rollout: Rollout, who: str) -> list[Decision]:
    """Nothing new begins; what devices have got already goes on. Raises NotNowError."""
    _only(rollout, "paused", State.RUNNING)
    return [SetState(State.PAUSED, f"paused by {who}")]


def resume(rollout: Rollout, *, accept: bool = False) -> list[Decision]:
    """accept: go on although a group has failed; its devices no longer count against the rollout. Raises NotNowError."""
    _only(rollout, "resumed", State.PAUSED)
    failed = [index for index, group in enumerate(rollout.groups) if group.stage is Stage.FAILED]
    if failed and not accept:
        name = rollout.groups[failed[0]].plan.name
        raise NotNowError(f"group {name} has failed: resume with accept to go on in spite of it, or abort")
    return [*(SetStage(index, Stage.ACCEPTED) for index in failed), SetState(State.RUNNING)]


def abort(rollout: Rollout, who: str, *, roll_back: bool = False) -> list[Decision]:
    """End it: open offers are taken back, and with `roll_back` every device that runs the release gets the version before; this also
    for a rollout that has ended, or of which a group went back by itself. Raises NotNowError."""
    if not roll_back:
        if rollout.state in ENDED:
            raise NotNowError(f"the rollout is {rollout.state} already")
        return [SetState(State.ABORTED, f"aborted by {who}")]
    _only(rollout, "rolled back", State.RUNNING, State.PAUSED, *ENDED)
    begun = [
        SetStage(index, Stage.WITHDRAWN)
        for index, group in enumerate(rollout.groups)
        if group.stage in BEGUN - BACK
    ]  # fmt: skip
    return [*begun, SetState(State.ROLLING_BACK, f"rolled back by {who}")]


def _only(rollout: Rollout, what: str, *states: State) -> None:
    if rollout.state not in states:
        expected = " or ".join(states)
        raise NotNowError(f"a rollout that is {rollout.state} cannot be {what}: it must be {expected}")
