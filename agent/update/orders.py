"""What the server's wishes mean for the journal and the worker: begin, cancel, hold, repeat."""

from __future__ import annotations

import re

import structlog

from agent.errors import DataError, TransientError, TrustError
from agent.update.ddi_documents import Chunk, Deployment
from agent.update.machine import Phase, not_cancelled, report
from agent.update.models import folder_of, slot_of
from agent.update.parts import Parts, Progress
from agent.update.records import Action
from agent.update.release import SLOT
from agent.update.trials import Refusal
from agent.update.worker import Worker

_log = structlog.get_logger(__name__)

_SLOT = re.compile(SLOT)
_SUPERSEDED = "another deployment came in its place"


class Orders:
    """wake: the worker has something to do."""

    def __init__(self, parts: Parts, worker: Worker, progress: Progress) -> None:
        self._parts = parts
        self._worker = worker
        self._progress = progress
        self._reused: set[str] = set()

    def progress_of_current(self) -> tuple[str, Phase, str] | None:
        """Action, phase and a line about it; None = nothing is under way."""
        action, progress = self._worker.action, self._progress
        if action is None or action.over or self.is_reused(action.action_id):
            return None
        text = f"waiting: {progress.waiting}" if progress.waiting else progress.text
        share = f", {progress.share:.0%}" if progress.share and not progress.waiting else ""
        return action.action_id, action.phase, f"{text}{share}" if text else ""

    async def take(self, deployment: Deployment) -> bool:
        """A deployment is on offer; False: not now, ask again."""
        do, journal, action_id = self._parts.disk.do, self._parts.journal, deployment.action_id
        slot, target, problem = understood(deployment)
        known = await do(journal.action, action_id)
        if known is not None and await self._is_meant(known, slot, target):
            self._reused.discard(action_id)
            if known.over and known.settled:
                await self._repeat(known)
            else:
                self._allow(deployment)
            return True
        if known is not None and action_id not in self._reused:
            self._reused.add(action_id)
            _log.warning("update_id_reused", action=action_id, was=known.target, now=target)
        if not await self._make_way():
            return False
        self._allow(deployment)
        told = report(Phase.DOWNLOADING, text=target)
        action = await do(journal.begin, action_id, target, slot, told, anew=known is not None)
        self._reused.discard(action_id)
        if problem:
            refusal = Refusal("deployment", problem)
            told = report(Phase.REFUSED, text=problem, reason=refusal.reason)
            await do(journal.enter, action, Phase.REFUSED, told, refusal=refusal, settled=True)
        self._parts.changed()
        return True

    def is_reused(self, action_id: str) -> bool:
        """Whether the server means another update by this id than the one that is under way: of that one it wants to hear nothing."""
        return action_id in self._reused

    def _allow(self, deployment: Deployment) -> None:
        progress = self._progress
        progress.may_download, progress.may_install = deployment.may_download, deployment.may_install
        progress.forced = deployment.forced

    async def _is_meant(self, known: Action, slot: str, target: str) -> bool:
        """Whether an action of the journal is the one on offer. A server that was begun anew, was restored, or is another one, hands out
        ids again; the same target may have been signed anew since, with another number."""
        if (known.slot, known.target) != (slot, target):
            return False
        if not known.settled or known.release is None:
            return True
        try:
            now = await self._parts.trust_thread.do(lambda: self._parts.trust().find(target))
        except (TransientError, TrustError, DataError):  # nothing could be done anew either
            return True
        return (now.sha256, now.release.number) == (known.sha256, known.release.number)

    async def _make_way(self) -> bool:
        """The server gives one update at a time; whatever else is under way is out of date, unless it is in its probation."""
        do, journal = self._parts.disk.do, self._parts.journal
        for action in await do(journal.unsettled):
            if self._worker.action is not None and self._worker.action.action_id == action.action_id:
                self._worker.cancel(_SUPERSEDED)
                return False  # it ends in a moment
            if action.phase in {Phase.PROBATION, Phase.ROLLED_BACK}:
                return False
            refusal = Refusal("cancelled", _SUPERSEDED)
            await do(journal.enter, action, Phase.CANCELLED, None, refusal=refusal, settled=True)
        return True

    async def _repeat(self, action: Action) -> None:
        """The server has not heard how it ended, or has forgotten it."""
        waiting = await self._parts.disk.do(self._parts.journal.waiting)
        if any(one.action_id == action.action_id and one.about == "deployment" for one in waiting):
            return
        told = report(action.phase, text=action.text, reason=action.reason, figures=action.flat_figures)
        await self._parts.disk.do(self._parts.journal.tell, action.action_id, "deployment", told)

    async def cancel(self, cancel_id: str, stop_id: str) -> None:
        """The server wants the action `stop_id` to end."""
        do, journal = self._parts.disk.do, self._parts.journal
        action = await do(journal.action, stop_id)
        running = self._worker.action
        if running is not None and running.action_id == stop_id:
            if self._worker.cancel("the server has cancelled it"):
                told = report(Phase.CANCELLED, text="nothing was changed")
            else:
                told = not_cancelled(running.phase)
        elif action is not None and not action.settled and action.phase not in {Phase.PROBATION, Phase.ROLLED_BACK}:
            refusal = Refusal("cancelled", "the server has cancelled it")
            await do(journal.enter, action, Phase.CANCELLED, None, refusal=refusal, settled=True)
            told = report(Phase.CANCELLED, text="nothing was changed")
        elif action is None or action.phase is Phase.CANCELLED:
            told = report(Phase.CANCELLED, text="nothing is under way")
        else:
            told = not_cancelled(action.phase)
        await do(journal.tell, cancel_id, "cancel", told)

    async def nothing_offered(self) -> None:
        """The server knows of no deployment for us: one that is under way has been withdrawn."""
        action = self._worker.action
        if action is not None and self._worker.cancel("the server has withdrawn it"):
            _log.warning("update_withdrawn", action=action.action_id)

    @staticmethod
    def misunderstood(deployment: Deployment) -> str:
        """What is wrong with a deployment, empty = nothing."""
        return understood(deployment)[2]


def understood(deployment: Deployment) -> tuple[str, str, str]:
    """Slot, target path, and what is wrong. Pure."""
    if len(deployment.chunks) != 1:
        return "", "", f"one release at a time: this deployment has {len(deployment.chunks)}"
    chunk = deployment.chunks[0]
    slot = slot_of(chunk.part)
    if not _SLOT.fullmatch(slot):
        return "", "", f"{chunk.part!r} is no slot (hint: pose, action/<service> or configuration)"
    return slot, chunk.target or _usual_target(slot, chunk), ""


def _usual_target(slot: str, chunk: Chunk) -> str:
    """Where a release lies unless the server says otherwise."""
    return f"{folder_of(slot)}/{chunk.name}-{chunk.version}.tar.zst"
