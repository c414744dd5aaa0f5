"""Keeping parts alive, stopping them in order, and knowing whether they get anywhere.

`supervise` runs one part and decides what its failure means: restart it alone, or let the error through so that the
`TaskGroup` in `app` ends the process with a non-zero code. `StagedShutdown` stops parts in a fixed order within fixed
limits. `ProgressWatch` says whether every part that should move does; the systemd watchdog is fed only then.
"""

from __future__ import annotations

import asyncio
import random as random_module
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import structlog

from agent.backoff import full_jitter
from agent.errors import ConfigError, FatalError, TransientError, TrustError
from agent.health.reasons import Reason, reason_key
from agent.ports import HealthSink

_log = structlog.get_logger(__name__)

# --- restart ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What the failure of a part means.

    initial_s, max_s: full-jitter backoff between restarts. stable_after_s: running this long without failing clears
    the part's health reason and starts the backoff anew. restart_on: errors that a restart can repair.
    restart_on_bug: restart on any other error too (parts at the edge); otherwise such an error ends the process.
    fatal: every failure ends the process. `FatalError` always does.
    """

    initial_s: float = 1.0
    max_s: float = 30.0
    stable_after_s: float = 30.0
    restart_on: tuple[type[Exception], ...] = (TransientError,)
    restart_on_bug: bool = False
    fatal: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.initial_s <= self.max_s:
            raise ValueError(f"RestartPolicy: expected 0 < initial_s <= max_s, got {self.initial_s} and {self.max_s}")

    def expects(self, error: Exception) -> bool:
        """True when every error inside `error` (it may be a group) is one that a restart can repair."""
        return all(isinstance(leaf, self.restart_on) for leaf in _leaves(error))

    def restarts(self, error: Exception) -> bool:
        """True when the part is started again after `error`, False when `error` ends the process."""
        if self.fatal or any(isinstance(leaf, FatalError) for leaf in _leaves(error)):
            return False
        return self.restart_on_bug or self.expects(error)


CORE = RestartPolicy()
"""Capture and the pipeline: what is transient restarts the part, a bug ends the process."""
EDGE = RestartPolicy(restart_on_bug=True)
"""MQTT, HTTP, evidence, update: never a reason to stop watching."""
VITAL = RestartPolicy(fatal=True)
"""The outbox writer: nothing is safe without it, so a fresh process is the only repair."""

_PERMANENT = (ConfigError, TrustError)
"""No restart repairs these before somebody acts: wait the longest wait at once."""


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _origin(error: BaseException) -> str:
    """Type and innermost line: tells two bugs apart without looking at messages that hold varying figures."""
    first = next(_leaves(error))
    trace = first.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    line = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
    return f"{type(first).__qualname__}@{line}"


async def supervise(
    name: str,
    factory: Callable[[], Coroutine[Any, Any, object]],
    policy: RestartPolicy,
    *,
    health: HealthSink,
    reason: str = "",
    on_restart: Callable[[str], None] | None = None,
    random: Callable[[], float] = random_module.random,
) -> None:
    """Run `factory()` until it returns, restarting it as `policy` says; cancellation passes through.

    reason: health reason raised while the part is failing, default `part_failed:<name>`; cleared once the part has run
    for `policy.stable_after_s` or has returned. on_restart: called with `name` before each restart (metrics).
    Raises what the part raised when the policy says that it ends the process.
    """
    part = _Part(name, factory, policy, health, reason or reason_key(Reason.PART_FAILED, name))
    while (error := await part.run_once()) is not None:
        if not policy.restarts(error):
            raise error
        wait_s = part.note_failure(error, random)
        await asyncio.sleep(wait_s)
        if on_restart is not None:
            on_restart(name)


@dataclass(slots=True)
class _Part:
    """The state of one supervised part between its runs."""

    name: str
    factory: Callable[[], Coroutine[Any, Any, object]]
    policy: RestartPolicy
    health: HealthSink
    reason: str
    attempt: int = 0
    traced: set[str] = field(default_factory=set)

    async def run_once(self) -> Exception | None:
        """Run to the end: None when the part returned, else what it raised."""
        stable = asyncio.get_running_loop().call_later(self.policy.stable_after_s, self._settle)
        try:
            await self.factory()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # A TaskGroup takes a cancelled child for a good end, so the part would vanish without a word.
            return RuntimeError(f"{self.name} was cancelled, but nobody asked for it")
        except Exception as error:  # noqa: BLE001 - the one place that has to see every failure of a part
            return error
        finally:
            stable.cancel()
        self._settle()
        return None

    def _settle(self) -> None:
        self.attempt = 0
        self.health.clear_reason(self.reason)

    def note_failure(self, error: Exception, random: Callable[[], float]) -> float:
        """Log and publish `error`; returns the seconds to wait before the restart."""
        if any(isinstance(leaf, _PERMANENT) for leaf in _leaves(error)):
            wait_s = self.policy.max_s
        else:
            wait_s = full_jitter(self.attempt, self.policy.initial_s, self.policy.max_s, random)
        self.attempt += 1
        text = "; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in _leaves(error))
        self.health.raise_reason(self.reason, text)
        fields: dict[str, Any] = {"part": self.name, "error": text, "attempt": self.attempt, "wait_s": round(wait_s, 2)}
        origin = _origin(error)
        if self.policy.expects(error):
            _log.warning("part_restarts", **fields)
        elif origin in self.traced:
            _log.error("part_restarts_after_bug", **fields)
        else:
            self.traced.add(origin)
            _log.error("part_restarts_after_bug", **fields, exc_info=error)
        return wait_s


# --- staged stop ------------------------------------------------------------------------------------------------------


class Stage(StrEnum):
    """Stages of a stop, in order."""

    CAPTURE = "capture"  # no new frames
    DRAIN = "drain"  # frames and windows that are under way become events
    COMMIT = "commit"  # events reach the disk
    ANNOUNCE = "announce offline"  # the last state reaches the broker
    CLOSE = "close"  # sockets, files, devices


STAGE_LIMITS_S: Mapping[Stage, float] = {
    Stage.CAPTURE: 3.0,
    Stage.DRAIN: 7.0,
    Stage.COMMIT: 5.0,
    Stage.ANNOUNCE: 4.0,
    Stage.CLOSE: 4.0,
}
CANCEL_GRACE_S = 0.5
"""How long an overrunning action may take to react to its cancellation before it is left behind."""


def shutdown_budget_s(limits_s: Mapping[Stage, float] = STAGE_LIMITS_S) -> float:
    """The longest a staged stop takes; must stay below the unit's `TimeoutStopSec`."""
    return sum(limits_s.values()) + CANCEL_GRACE_S * len(limits_s)


@dataclass(frozen=True, slots=True)
class StageReport:
    """How one stage went. overran, failed: names of its actions."""

    stage: Stage
    duration_s: float
    overran: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


class StagedShutdown:
    """Stops parts stage by stage; each stage has a limit and none can keep the later ones from running."""

    def __init__(
        self,
        limits_s: Mapping[Stage, float] = STAGE_LIMITS_S,
        on_stage: Callable[[Stage, float], None] | None = None,
    ) -> None:
        """limits_s: per stage. on_stage: called with each stage that has work and its limit in s, as it begins."""
        self._limits_s = dict(limits_s)
        self._on_stage = on_stage
        self._actions: dict[Stage, list[tuple[str, Callable[[], Awaitable[None]]]]] = {stage: [] for stage in Stage}

    def add(self, stage: Stage, name: str, action: Callable[[], Awaitable[None]]) -> None:
        """Have `action` run in `stage`, beside that stage's other actions."""
        self._actions[stage].append((name, action))

    async def run(self) -> tuple[StageReport, ...]:
        """Run all stages in order. Errors and overruns are logged and reported, never raised."""
        return tuple([await self._run_stage(stage) for stage in Stage if self._actions[stage]])

    async def _run_stage(self, stage: Stage) -> StageReport:
        limit_s = self._limits_s[stage]
        if self._on_stage is not None:
            self._on_stage(stage, limit_s)
        started_s = time.monotonic()
        # Not a TaskGroup: it would wait without limit for a child that ignores its cancellation.
        tasks = [asyncio.create_task(_call(action), name=name) for name, action in self._actions[stage]]
        try:
            _, late = await asyncio.wait(tasks, timeout=limit_s)
            for task in late:
                task.cancel(f"stage {stage} overran its {limit_s} s")
            if late:
                await asyncio.wait(late, timeout=CANCEL_GRACE_S)
        finally:
            for task in tasks:
                task.cancel()
        report = StageReport(
            stage,
            time.monotonic() - started_s,
            overran=tuple(task.get_name() for task in tasks if task in late),
            failed=tuple(task.get_name() for task in tasks if task not in late and _failed(task)),
        )
        if report.overran:
            _log.error("shutdown_stage_overran", stage=stage, limit_s=limit_s, actions=report.overran)
        return report


async def _call(action: Callable[[], Awaitable[None]]) -> None:
    await action()


def _failed(task: asyncio.Task[None]) -> bool:
    if task.cancelled():
        return True
    error = task.exception()
    if error is not None:
        _log.error("shutdown_action_failed", action=task.get_name(), exc_info=error)
    return error is not None


# --- progress ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stall:
    """A part that should have moved. silent_s: since its last beat; limit_s: what it is allowed."""

    name: str
    silent_s: float
    limit_s: float

    def __str__(self) -> str:
        return f"{self.name} silent for {self.silent_s:.1f} s (limit {self.limit_s:.1f} s)"


class ProgressWatch:
    """Knows when each part last got anywhere. `beat` and `idle` may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits_s: dict[str, float] = {}
        self._last_s: dict[str, float] = {}

    def register(self, name: str, limit_s: float) -> None:
        """Watch `name`: once it has beaten it must beat again within `limit_s` or say that it is idle."""
        if limit_s <= 0:
            raise ValueError(f"{name}: expected a limit above 0 s, got {limit_s}")
        self._limits_s[name] = limit_s

    def forget(self, name: str) -> None:
        """Stop watching `name` (a camera that was removed)."""
        self._limits_s.pop(name, None)
        self._last_s.pop(name, None)

    def beat(self, name: str) -> None:
        """`name` made progress now. Unregistered names raise KeyError: a beat that nobody watches is a bug."""
        self._limits_s[name]
        self._last_s[name] = self._clock()

    def idle(self, name: str) -> None:
        """`name` has nothing to do (no camera streams, nothing to publish) and owes no beat until its next one."""
        self._last_s.pop(name, None)

    def stalls(self) -> tuple[Stall, ...]:
        """The parts that are over their limit."""
        now_s = self._clock()
        silent_s = {name: now_s - last_s for name, last_s in list(self._last_s.items())}
        return tuple(
            Stall(name, silent, self._limits_s[name])
            for name, silent in silent_s.items()
            if name in self._limits_s and silent > self._limits_s[name]
        )


class WatchdogSink(Protocol):
    """Where progress is reported; `sdnotify.Notifier` is one."""

    def watchdog(self) -> bool: ...


async def feed_watchdog(sink: WatchdogSink, watch: ProgressWatch, interval_s: float, health: HealthSink) -> None:
    """Feed the watchdog for ever, every `interval_s`, but only while every part progresses.

    It runs on the loop, so a blocked loop starves the watchdog as well. A stall is raised as the reason `stalled`.
    """
    stalled = False
    while True:
        stalls = watch.stalls()
        if stalls:
            detail = "; ".join(map(str, stalls))
            health.raise_reason(Reason.STALLED, detail)
            if not stalled:
                _log.error("watchdog_starved", stalls=detail)
        else:
            sink.watchdog()
            health.clear_reason(Reason.STALLED)
        stalled = bool(stalls)
        await asyncio.sleep(interval_s)
