"""Supervision: which failure restarts what, the staged stop, and the watchdog that follows progress."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import structlog

from agent.errors import ConfigError, FatalError, SourceError, StorageError, TransientError
from agent.health.reasons import HealthState
from agent.supervise import (
    CORE,
    EDGE,
    STAGE_LIMITS_S,
    VITAL,
    ProgressWatch,
    RestartPolicy,
    Stage,
    StagedShutdown,
    feed_watchdog,
    shutdown_budget_s,
    supervise,
)

FAST = RestartPolicy(initial_s=0.001, max_s=0.01, stable_after_s=30)
FAST_EDGE = RestartPolicy(initial_s=0.001, max_s=0.01, stable_after_s=30, restart_on_bug=True)


class Part:
    """A part that fails with each of `errors` in turn and then returns."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.runs = 0

    async def __call__(self) -> None:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def health() -> HealthState:
    return HealthState()


# --- restart ----------------------------------------------------------------------------------------------------------


async def test_transient_failure_restarts_the_part_alone(health: HealthState) -> None:
    part, restarts = Part(SourceError("gone"), TransientError("again")), []
    await supervise("camera", part, FAST, health=health, on_restart=restarts.append)
    assert part.runs == 3
    assert restarts == ["camera", "camera"]


async def test_reason_is_raised_while_failing_and_cleared_when_the_part_has_ended_well(health: HealthState) -> None:
    seen: list[tuple[str, str]] = []
    health.subscribe(lambda snap: seen.extend((r.reason, r.detail) for r in snap.reasons))
    await supervise("camera", Part(SourceError("no route")), FAST, health=health)
    assert seen == [("part_failed:camera", "SourceError: no route")]
    assert health.snapshot().reasons == ()


async def test_reason_is_cleared_and_backoff_starts_anew_after_a_stable_run(health: HealthState) -> None:
    policy = RestartPolicy(initial_s=0.001, max_s=10, stable_after_s=0.02)
    asked: list[int] = []
    cleared_while_running = asyncio.Event()
    runs = 0

    async def part() -> None:
        nonlocal runs
        runs += 1
        if runs in {1, 2}:
            raise TransientError("start")
        if runs == 3:
            await asyncio.sleep(0.05)
            if not health.snapshot().reasons:
                cleared_while_running.set()
            raise TransientError("later")

    def draw() -> float:
        asked.append(runs)
        return 0.5

    await asyncio.wait_for(supervise("part", part, policy, health=health, random=draw), timeout=5)
    assert cleared_while_running.is_set()
    assert asked == [1, 2, 3]


async def test_bug_in_a_core_part_ends_the_task_group(health: HealthState) -> None:
    sibling_cancelled = asyncio.Event()

    async def sibling() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            sibling_cancelled.set()

    async def agent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise("sibling", sibling, CORE, health=health))
            group.create_task(supervise("pipeline", Part(KeyError("bug")), CORE, health=health))

    with pytest.raises(ExceptionGroup) as caught:
        await agent()
    assert caught.group_contains(KeyError)
    assert sibling_cancelled.is_set()


async def test_bug_in_an_edge_part_restarts_it_with_one_traceback(
    health: HealthState,
) -> None:
    with structlog.testing.capture_logs() as events:
        part = Part(KeyError("bug"), KeyError("bug"), KeyError("bug"))
        await supervise("mqtt", part, FAST_EDGE, health=health)
    tracebacks = [event for event in events if event.get("exc_info")]
    assert part.runs == 4
    assert len(tracebacks) == 1
    assert sum(event["event"] == "part_restarts_after_bug" for event in events) == 3


@pytest.mark.parametrize("policy", [CORE, EDGE, VITAL])
async def test_fatal_error_always_ends_the_process(policy: RestartPolicy, health: HealthState) -> None:
    with pytest.raises(FatalError):
        await supervise("gpu", Part(FatalError("dead CUDA context")), policy, health=health)


async def test_fatal_policy_never_restarts(health: HealthState) -> None:
    part = Part(TransientError("x"))
    with pytest.raises(TransientError):
        await supervise("outbox", part, VITAL, health=health)
    assert part.runs == 1


@pytest.mark.parametrize(
    ("inner", "restarts"),
    [([SourceError("a"), TransientError("b")], True), ([SourceError("a"), KeyError("b")], False)],
)
def test_a_group_restarts_only_when_all_of_it_is_expected(inner: list[Exception], restarts: bool) -> None:
    assert CORE.restarts(ExceptionGroup("both", inner)) is restarts


def test_fatal_inside_a_nested_group_is_found() -> None:
    assert not EDGE.restarts(ExceptionGroup("outer", [ExceptionGroup("inner", [FatalError("x")]), KeyError("y")]))


async def test_cancellation_passes_through(health: HealthState) -> None:
    task = asyncio.create_task(supervise("camera", asyncio.Event().wait, EDGE, health=health))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert health.snapshot().reasons == ()


async def test_cancellation_during_the_wait_passes_through(health: HealthState) -> None:
    slow = RestartPolicy(initial_s=60, max_s=60)
    task = asyncio.create_task(supervise("camera", Part(SourceError("x")), slow, health=health, random=lambda: 0.9))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_part_that_cancels_itself_is_a_bug_not_a_good_end(health: HealthState) -> None:
    async def part() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="nobody asked"):
        await supervise("pipeline", part, CORE, health=health)


async def test_a_permanent_error_waits_the_longest_wait_at_once(health: HealthState) -> None:
    policy = RestartPolicy(initial_s=0.001, max_s=0.05, restart_on_bug=True)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await supervise("mqtt", Part(ConfigError("no such CA file")), policy, health=health, random=lambda: 0.0)
    assert loop.time() - started >= 0.05


def test_policy_refuses_a_first_wait_above_the_longest() -> None:
    with pytest.raises(ValueError, match="initial_s"):
        RestartPolicy(initial_s=5, max_s=1)


def test_storage_errors_are_not_expected_of_a_core_part() -> None:
    assert not CORE.restarts(StorageError("disk"))


# --- staged stop ------------------------------------------------------------------------------------------------------


def noting(log: list[str], name: str, seconds: float = 0) -> Callable[[], Awaitable[None]]:
    async def action() -> None:
        await asyncio.sleep(seconds)
        log.append(name)

    return action


async def test_stages_run_in_order_whatever_the_order_of_adding() -> None:
    log: list[str] = []
    told: list[tuple[Stage, float]] = []
    stop = StagedShutdown(on_stage=lambda stage, limit_s: told.append((stage, limit_s)))
    for stage in reversed(Stage):
        stop.add(stage, stage, noting(log, stage))
    reports = await stop.run()
    assert log == list(Stage)
    assert [report.stage for report in reports] == list(Stage)
    assert told == [(stage, STAGE_LIMITS_S[stage]) for stage in Stage]


async def test_an_overrunning_action_is_cancelled_and_the_next_stage_still_runs() -> None:
    log: list[str] = []
    stop = StagedShutdown(dict.fromkeys(Stage, 0.05))
    stop.add(Stage.DRAIN, "slow", noting(log, "slow", 30))
    stop.add(Stage.DRAIN, "quick", noting(log, "quick"))
    stop.add(Stage.COMMIT, "commit", noting(log, "commit"))
    drain, commit = await stop.run()
    assert log == ["quick", "commit"]
    assert drain.overran == ("slow",)
    assert drain.failed == ()
    assert commit.overran == ()


async def test_an_action_that_ignores_its_cancellation_is_left_behind() -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    stop = StagedShutdown(dict.fromkeys(Stage, 0.02))
    stop.add(Stage.CLOSE, "stubborn", stubborn)
    (report,) = await asyncio.wait_for(stop.run(), timeout=5)
    release.set()
    await asyncio.sleep(0)
    assert report.overran == ("stubborn",)
    assert report.duration_s < 1


async def test_a_failing_action_is_reported_and_does_not_stop_the_stop() -> None:
    log: list[str] = []

    async def broken() -> None:
        raise StorageError("read-only file system")

    stop = StagedShutdown()
    stop.add(Stage.COMMIT, "outbox", broken)
    stop.add(Stage.CLOSE, "close", noting(log, "close"))
    commit, _ = await stop.run()
    assert commit.failed == ("outbox",)
    assert log == ["close"]


def test_stage_limits_fit_the_units_stop_timeout(repo_dir: Path) -> None:
    unit = (repo_dir / "systemd/recognizer-agent.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("TimeoutStopSec=")]
    assert shutdown_budget_s() < float(line.partition("=")[2].removesuffix("s"))


# --- progress ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_part_is_stalled_only_after_its_limit_and_recovers_with_a_beat() -> None:
    clock = Clock()
    watch = ProgressWatch(clock)
    watch.register("pipeline", 10)
    watch.beat("pipeline")
    clock.now_s += 10
    assert watch.stalls() == ()
    clock.now_s += 1
    (stall,) = watch.stalls()
    assert str(stall) == "pipeline silent for 11.0 s (limit 10.0 s)"
    watch.beat("pipeline")
    assert watch.stalls() == ()


def test_idle_and_forgotten_parts_owe_no_beat() -> None:
    clock = Clock()
    watch = ProgressWatch(clock)
    for name in ("never", "idle", "gone"):
        watch.register(name, 1)
    watch.beat("idle")
    watch.beat("gone")
    watch.idle("idle")
    watch.forget("gone")
    clock.now_s += 100
    assert watch.stalls() == ()


def test_a_beat_that_nobody_watches_is_refused() -> None:
    with pytest.raises(KeyError):
        ProgressWatch().beat("typo")


async def test_watchdog_is_fed_only_while_all_parts_progress(health: HealthState) -> None:
    clock = Clock()
    watch = ProgressWatch(clock)
    watch.register("outbox", 5)
    watch.beat("outbox")

    class Sink:
        fed = 0

        def watchdog(self) -> bool:
            self.fed += 1
            return True

    sink = Sink()
    task = asyncio.create_task(feed_watchdog(sink, watch, 0.005, health))
    await asyncio.sleep(0.03)
    assert sink.fed >= 2
    clock.now_s += 6
    await asyncio.sleep(0.02)
    starved = sink.fed
    await asyncio.sleep(0.03)
    assert sink.fed == starved
    assert [reason.reason for reason in health.snapshot().reasons] == ["stalled"]
    watch.beat("outbox")
    await asyncio.sleep(0.03)
    assert sink.fed > starved
    assert health.snapshot().reasons == ()
    task.cancel()
