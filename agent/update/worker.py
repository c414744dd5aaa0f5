"""Carries one update from where it stands to an end. Entering at any phase is the same as going on after a power loss."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from agent.errors import ConfigError, DeviceMemoryError, ModelError, StorageError, TransientError, TrustError
from agent.update.acquire import Acquirer, AlreadyHere
from agent.update.machine import NEXT, Phase, Report, after, may_cancel, report
from agent.update.models import CONFIGURATION
from agent.update.parts import Parts, Progress
from agent.update.records import Action, Serving, Version
from agent.update.trials import Candidate, Figures, Refusal, Tell

_log = structlog.get_logger(__name__)

_LOADS = 3
"""Of a candidate that no moment comes for: it may be the loaded candidate itself that the agent is not well with."""
_Trial = Callable[[Candidate, Tell], Awaitable[Figures | Refusal]]
_TRIAL_ERRORS = (ModelError, ConfigError, TrustError, TransientError)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """An end that was wished for, before anything had changed."""

    why: str


Outcome = Figures | Refusal | Cancelled | AlreadyHere


class _NoMomentError(Exception):
    """Something speaks against the change for longer than a candidate should lie in the memory beside the running model."""


class Worker:
    """`carry` does the work; `cancel` and `refuse` end it from outside. One update at a time.

    on_settled: awaited when an update has come to its end and is tidied up, before it is no longer under way.
    """

    def __init__(self, parts: Parts, progress: Progress, on_settled: Callable[[], Awaitable[None]]) -> None:
        self._parts = parts
        self._progress = progress
        self._on_settled = on_settled
        self._acquirer = Acquirer(parts, progress, self._note)
        self._wish: asyncio.Future[Refusal | Cancelled] | None = None
        self._swapping = False
        self._passed = False
        self.action: Action | None = None

    def cancel(self, why: str) -> bool:
        """End the update as if it had never been; False: too late, it is in its probation."""
        if self.action is None or self._swapping or not may_cancel(self.action.phase):
            return False
        return self._wish_for(Cancelled(why))

    def refuse(self, refusal: Refusal) -> bool:
        """Refuse the update, or take it back when it is in its probation; False: it is ending."""
        going = self.action is not None and not self.action.over and not self._passed
        return going and self._wish_for(refusal)

    def _wish_for(self, what: Refusal | Cancelled) -> bool:
        if self._wish is None or self._wish.done():
            return False
        self._wish.set_result(what)
        return True

    async def carry(self, action: Action) -> Action:
        """To the end of `action`. Raises StorageError; errors of models and servers are outcomes."""
        self.action = action
        self._wish = asyncio.get_running_loop().create_future()
        self._swapping, self._passed = action.phase is Phase.PROBATION, False
        try:
            while not self.action.over:
                self._progress.clear()
                self._parts.changed()
                outcome = await self._outcome(self.action)
                self._passed = self.action.phase is Phase.PROBATION and not isinstance(outcome, Refusal)
                self.action = await self._advance(self.action, outcome)
                _log.info("update", action=action.action_id, phase=self.action.phase, release=self.action.title)
            if not self.action.settled:
                self.action = await self._go_back(self.action)
            await self.tidy()
            await self._on_settled()
            return self.action
        finally:
            self.action = None
            self._progress.clear()
            self._parts.changed()

    def _note(self, action: Action) -> None:
        """What became known of it in the middle of a phase."""
        self.action = action

    # --- one phase ----------------------------------------------------------------------------------------------------

    async def _outcome(self, action: Action) -> Outcome:
        work = {
            Phase.DOWNLOADING: self._acquirer.acquire,
            Phase.VERIFIED: self._validate,
            Phase.VALIDATED: _pass_through,
            Phase.SHADOW: self._shadow,
            Phase.PROBATION: self._probation,
        }[action.phase]
        return await self._unless_ended(work(action))

    async def _unless_ended(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """The result of `work`, or the wish that came in between; then `work` is cancelled."""
        assert self._wish is not None  # noqa: S101 - made by carry
        task = asyncio.ensure_future(work)
        either: list[asyncio.Future[Any]] = [task, self._wish]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return self._wish.result() if self._wish.done() else task.result()

    async def _advance(self, action: Action, outcome: Outcome) -> Action:
        """Write what comes next; nothing is done about it before it is on the disk."""
        journal, disk = self._parts.journal, self._parts.disk
        if isinstance(outcome, Cancelled):
            refusal = Refusal("cancelled", outcome.why)
            return await disk.do(journal.enter, action, Phase.CANCELLED, None, refusal=refusal, settled=True)
        if isinstance(outcome, AlreadyHere):
            return await self._commit(action, report(Phase.COMMITTED, text="this version serves already"))
        phase = after(action.phase, outcome)
        if isinstance(outcome, Refusal):
            return await (self._turn_away if phase is Phase.REFUSED else self._take_back)(action, outcome)
        if outcome:
            action = await disk.do(journal.measured, action, outcome)
        if phase is Phase.COMMITTED:
            return await self._commit(action, _report(action, action.flat_figures, phase))
        if phase is Phase.PROBATION:
            serving = await disk.do(journal.serving, action.slot)
            if serving.current is not None and serving.current.sha256 == action.sha256:  # left aside until now
                serving = replace(serving, current=serving.before, before=None, has_before=False)
                await disk.do(journal.adopt, serving, f"{action.title} could not be loaded, and is tried again")
            came_from = serving.current.sha256 if serving.current else ""
            return await disk.do(journal.enter, action, phase, _report(action, {}, phase), came_from=came_from)
        return await disk.do(journal.enter, action, phase, _report(action, outcome, phase))

    async def _commit(self, action: Action, told: Report) -> Action:
        journal, disk = self._parts.journal, self._parts.disk
        committed = await disk.do(journal.commit, action, told)
        numbers = {slot: one.highest for slot, one in (await disk.do(journal.slots)).items()}
        await disk.do(self._parts.store.write_numbers, numbers)
        return committed

    async def _turn_away(self, action: Action, refusal: Refusal) -> Action:
        journal, disk = self._parts.journal, self._parts.disk
        changed = replace(action, reason=refusal.reason, text=refusal.text)
        verdict = _report(changed, refusal.figures, Phase.REFUSED)
        return await disk.do(journal.enter, action, Phase.REFUSED, verdict, refusal=refusal, settled=True)

    async def _take_back(self, action: Action, refusal: Refusal) -> Action:
        """A disk that takes nothing keeps no bad model serving: then the change comes first, and this is written once it can be."""
        parts = self._parts
        changed = False
        while True:
            try:
                return await parts.disk.do(parts.journal.enter, action, Phase.ROLLED_BACK, None, refusal=refusal)
            except StorageError as error:
                _log.error("update_end_not_written", action=action.action_id, reason=refusal.reason, error=str(error))
                self._progress.waiting = f"taken back ({refusal.reason}), which cannot be written: {error}"
            if not changed:
                await self._install(await parts.disk.do(parts.journal.serving, action.slot))
                changed = True
            parts.changed()
            await asyncio.sleep(parts.pace.first_s)

    # --- what each phase does -----------------------------------------------------------------------------------------

    async def _candidate(self, action: Action) -> Candidate:
        version = action.version
        serving = await self._parts.disk.do(self._parts.journal.serving, action.slot)
        before = serving.before is not None and serving.before.sha256 == version.sha256
        back = before and version.release.number != serving.highest  # else it is forth again, after a way back
        return Candidate(version.release, self._parts.store.path(version), version.sha256, action.spent_s, back)

    async def _validate(self, action: Action) -> Outcome:
        problem = await self._parts.disk.do(self._parts.store.problem, action.version)
        if problem:
            return Refusal("archive", f"damaged on this disk: {problem}")
        candidate = await self._candidate(action)
        if candidate.back and action.slot != CONFIGURATION:
            return {}
        return await _tried(self._parts.trials.validate(candidate, self._tell))

    async def _shadow(self, action: Action) -> Outcome:
        measured, back = action.figures.get(Phase.SHADOW.value), (await self._candidate(action)).back
        if measured is None and action.slot != CONFIGURATION:
            outcome: Figures | Refusal = {} if back else await self._timed(action, self._parts.trials.shadow)
            if isinstance(outcome, Refusal):
                return outcome
            self._note(await self._parts.disk.do(self._parts.journal.measured, action, outcome))
            measured = outcome
        await self._moment(back=back)
        self._swapping = True
        return measured or {}

    async def _moment(self, *, back: bool) -> None:
        """Until nothing speaks against a swap. back: see `Trials.not_now`."""
        parts, progress = self._parts, self._progress
        told = ""
        while True:
            config = parts.config()
            if not progress.may_install:
                progress.waiting = "the server holds the installation back"
            elif not (progress.forced or config.open_at(parts.local_time())):
                progress.waiting = "outside the maintenance windows"
            else:
                progress.waiting = parts.trials.not_now(back=back)
            if progress.waiting != told:
                told = progress.waiting
                parts.changed()
            if not progress.waiting:
                return
            await asyncio.sleep(parts.pace.look_s)

    async def _moment_after_all(self, *, back: bool) -> None:
        """Loading the candidate may have taken minutes. Raises _NoMomentError."""
        try:
            async with asyncio.timeout(self._parts.pace.moment_s):
                await self._moment(back=back)
        except TimeoutError:
            raise _NoMomentError from None

    async def _install_at_a_moment(self, slot: str, candidate: Candidate) -> Figures:
        """When none comes for long, the candidate is freed, and loaded again when one has come. Raises DeviceMemoryError."""
        ready = partial(self._moment_after_all, back=candidate.back)
        for _ in range(_LOADS):
            try:
                return await self._parts.trials.install(slot, candidate.path, ready)
            except _NoMomentError:
                waiting = self._progress.waiting
                await self._moment(back=candidate.back)
        raise DeviceMemoryError(f"loaded {_LOADS} times, and each time there was no moment for the change: {waiting}")

    async def _probation(self, action: Action) -> Outcome:
        parts, candidate = self._parts, await self._candidate(action)
        await parts.disk.do(parts.store.switch, action.slot, action.version)
        measured: dict[str, float | int | str] = {}
        if parts.trials.running(action.slot) != candidate.path:
            outcome = await _tried(self._install_at_a_moment(action.slot, candidate))
            if isinstance(outcome, Refusal):
                return outcome
            measured |= outcome
        outcome = await self._timed(action, parts.trials.watch)
        if isinstance(outcome, Refusal):
            return replace(outcome, figures={**measured, **outcome.figures})
        return {**measured, **outcome}

    async def _timed(self, action: Action, trial: _Trial) -> Figures | Refusal:
        """What it takes is written down as it passes, so that its limit counts over restarts of the agent."""
        counting = asyncio.create_task(self._count(action), name="update.count")
        try:
            return await _tried(trial(await self._candidate(action), self._tell))
        finally:
            counting.cancel()
            await asyncio.wait({counting})

    async def _count(self, action: Action) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            await asyncio.sleep(self._parts.pace.spent_s)
            try:
                spent_s = action.spent_s + loop.time() - began_s
                self._note(await self._parts.disk.do(self._parts.journal.spent, action, spent_s))
            except StorageError as error:  # the next time, or a restart makes it longer
                _log.warning("update_time_not_written", action=action.action_id, error=str(error))

    # --- ends ---------------------------------------------------------------------------------------------------------

    async def _go_back(self, action: Action) -> Action:
        """What served before the probation serves again."""
        parts = self._parts
        serving = await parts.disk.do(parts.journal.serving, action.slot)
        await parts.disk.do(parts.store.switch, action.slot, serving.current)
        outcome = await self._install(serving)
        text, figures = action.text, dict(action.flat_figures)
        if isinstance(outcome, Refusal):
            text = f"{text}; {outcome.text}"
        elif "gap_ms" in outcome:
            figures["back_gap_ms"] = outcome["gap_ms"]
        told = report(action.phase, text=text, reason=action.reason, figures=figures)
        return await parts.disk.do(parts.journal.settle, action, told)

    async def _install(self, serving: Serving) -> Figures | Refusal:
        """Load what should serve; the figures of the change, or what went wrong about it."""
        path = self._parts.store.path(serving.current) if serving.current else None
        outcome = await _tried(self._parts.trials.install(serving.slot, path))
        self._parts.trials.let_go(serving.slot)
        if not isinstance(outcome, Refusal):
            return outcome
        _log.error("update_back_failed", slot=serving.slot, error=outcome.text)
        return replace(outcome, text=f"and the version before does not load: {outcome.text}")

    async def exchange(self, slot: str, why: str, by: str) -> Version | None:
        """Go back to the version before the committed one, now. Raises StorageError (there is none), ModelError."""
        parts = self._parts
        serving = await parts.disk.do(parts.journal.exchange, slot, why, by)
        await parts.disk.do(parts.store.switch, slot, serving.current)
        outcome = await self._install(serving)
        if isinstance(outcome, Refusal):
            serving = await parts.disk.do(parts.journal.exchange, slot, outcome.text, "agent")
            await parts.disk.do(parts.store.switch, slot, serving.current)
            raise ModelError(f"{slot}: not gone back, {outcome.text.removeprefix('and ')}")
        self._parts.changed()
        return serving.current

    async def tidy(self) -> None:
        """Only what can serve, or is about to, stays on the disk."""
        parts = self._parts
        slots = (await parts.disk.do(parts.journal.slots)).values()
        under_way = {one.sha256 for one in await parts.disk.do(parts.journal.unsettled) if one.sha256}
        needed = {one.sha256 for slot in slots for one in (slot.current, slot.before) if one is not None}
        gone = await parts.disk.do(parts.store.prune, needed | under_way, parts.config().keep - 2)
        await parts.disk.do(parts.store.tidy, under_way)
        if gone:
            await parts.disk.do(parts.journal.note, "removed", versions=gone)

    def _tell(self, text: str, share: float) -> None:
        self._progress.text, self._progress.share = text, share
        self._parts.changed()


async def _pass_through(_action: Action) -> Outcome:
    """Nothing to do: the phase says that the trial on its own went well."""
    return {}


async def _tried(work: Awaitable[Figures | Refusal]) -> Figures | Refusal:
    """What a trial says; whatever it raises speaks against the candidate."""
    try:
        return await work
    except DeviceMemoryError as error:
        return Refusal("memory", str(error))
    except _TRIAL_ERRORS as error:
        return Refusal("crash", str(error))
    except Exception as error:  # noqa: BLE001 - a bug that only this candidate brings out must not be met again at every restart
        _log.exception("update_trial_failed")
        return Refusal("crash", f"an error of the agent: {type(error).__name__}")


def _report(action: Action, figures: Figures, phase: Phase) -> Report:
    if phase in NEXT or phase is Phase.COMMITTED:
        return report(phase, text=action.title, figures=figures)
    return report(phase, text=action.text, reason=action.reason, figures={**action.flat_figures, **figures})
