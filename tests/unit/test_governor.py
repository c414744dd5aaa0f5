"""The degradation ladder and the governor's decisions on single scenarios (properties: tests/property)."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from test_windows import frame

from agent.action.windows import ActionWindows
from agent.config.schema import GovernorConfig, ServiceConfig, WindowConfig
from agent.events.rules import EventRules
from agent.health.governor import LADDER, MAX_PATIENCE, Decision, Governor, GovernorSample, GpuHeat, Step
from agent.types import ActionScores

S = 1_000_000_000
CONFIG = GovernorConfig(interval_s=2, step_down_after_s=6, step_up_after_s=30)
CALM = GovernorSample(cpu=0.3, memory=0.3, gpu_memory=0.2, gpus=(GpuHeat(50),))
BUSY = GovernorSample(cpu=0.95, memory=0.3, gpu_memory=0.2, gpus=(GpuHeat(50),))
BETWEEN = GovernorSample(cpu=0.8, memory=0.3, gpu_memory=0.2, gpus=(GpuHeat(50),))


class Run:
    """A governor fed every two seconds."""

    def __init__(self, config: GovernorConfig = CONFIG) -> None:
        self.governor = Governor(config)
        self.now_s = 0

    def feed(self, sample: GovernorSample, seconds: int) -> list[tuple[int, Decision]]:
        """The changes, with the second at which each came."""
        changes = []
        for _ in range(seconds // 2):
            decision = self.governor.update(sample, self.now_s * S)
            if decision.changed:
                changes.append((self.now_s, decision))
            self.now_s += 2
        return changes


def test_ladder_sheds_more_with_every_step() -> None:
    assert LADDER[0] == Step(max_fps=None, stride_factor=1, picture_scale=1.0, paused_priorities=0)
    for above, below in pairwise(LADDER):
        assert below != above
        assert below.camera_fps(30) <= above.camera_fps(30)
        assert below.stride_factor >= above.stride_factor
        assert 0 < below.picture_scale <= above.picture_scale
        assert below.paused_priorities >= above.paused_priorities


def test_steps_down_after_the_configured_time_and_says_why() -> None:
    changes = Run().feed(BUSY, 20)
    assert [(at_s, decision.step) for at_s, decision in changes] == [(6, 1), (12, 2), (18, 3)]
    assert changes[0][1].reasons == ("cpu 0.95 > 0.90 for 6 s",)


def test_a_short_peak_changes_nothing() -> None:
    run = Run()
    for _ in range(20):
        assert run.feed(BUSY, 4) == []
        assert run.feed(CALM, 2) == []


def test_between_the_marks_it_holds() -> None:
    run = Run()
    run.feed(BUSY, 8)
    assert run.feed(BETWEEN, 600) == []
    assert run.governor.step == 1


def test_recovers_one_step_at_a_time() -> None:
    run = Run()
    run.feed(BUSY, 14)
    assert run.governor.step == 2
    assert [decision.step for _, decision in run.feed(CALM, 400)] == [1, 0]


def test_one_high_signal_is_enough_to_go_down_and_to_stay_down() -> None:
    run = Run()
    hot = GovernorSample(cpu=0.1, gpus=(GpuHeat(90),))
    assert [d.reasons for _, d in run.feed(hot, 8)] == [("gpu temperature 90 C > 85 C for 6 s",)]
    assert run.feed(GovernorSample(cpu=0.1, gpus=(GpuHeat(80),)), 200) == []


@pytest.mark.parametrize(
    "critical",
    [
        GovernorSample(gpus=(GpuHeat(92),)),  # 7 above the high mark
        GovernorSample(gpus=(GpuHeat(88, 88),)),  # the device's own threshold
        GovernorSample(gpus=(GpuHeat(75, 95), GpuHeat(70, 70))),  # not the hottest
    ],
)
def test_critical_temperature_steps_at_once_every_interval(critical: GovernorSample) -> None:
    assert [(at_s, d.step) for at_s, d in Run().feed(critical, 6)] == [(0, 1), (2, 2), (4, 3)]


def test_a_gpu_that_may_be_hot_is_not_judged_by_another_that_may_not() -> None:
    mixed = GovernorSample(gpus=(GpuHeat(84, 95), GpuHeat(50, 80)))
    assert Run().feed(mixed, 60) == []


def test_thermal_throttling_counts_as_high() -> None:
    throttled = GovernorSample(cpu=0.1, gpus=(GpuHeat(70),), gpu_thermal_throttle=True)
    ((at_s, decision),) = Run().feed(throttled, 8)
    assert (at_s, decision.reasons) == (6, ("gpu throttles for heat for 6 s",))


def test_missing_signals_are_ignored() -> None:
    run = Run()
    assert run.feed(GovernorSample(), 100) == []
    run.feed(BUSY, 8)
    assert [d.step for _, d in run.feed(GovernorSample(memory=0.2), 60)] == [0]


def test_a_load_between_two_steps_is_tried_ever_more_rarely() -> None:
    """Calm at step 1, busy at step 0: without patience it would swing for ever."""
    run = Run()
    ups = []
    for _ in range(2000):
        changes = run.feed(BUSY if run.governor.step == 0 else CALM, 2)
        ups += [at_s for at_s, decision in changes if decision.step == 0]
    gaps = [later - earlier for earlier, later in pairwise(ups)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert max(gaps) <= CONFIG.step_up_after_s * MAX_PATIENCE + 3 * CONFIG.step_down_after_s
    assert gaps[-1] >= CONFIG.step_up_after_s * MAX_PATIENCE


def test_a_long_calm_forgets_the_relapses() -> None:
    run = Run()
    for _ in range(200):
        run.feed(BUSY if run.governor.step == 0 else CALM, 2)
    run.feed(CALM, 1000)
    run.feed(BUSY, 8)
    started_s = run.now_s
    ((at_s, _),) = run.feed(CALM, 60)
    assert at_s - started_s <= CONFIG.step_up_after_s + 2


def test_disabling_lets_go_at_once() -> None:
    run = Run()
    run.feed(BUSY, 20)
    run.governor.reconfigure(CONFIG.model_copy(update={"enabled": False}))
    assert [d.step for _, d in run.feed(BUSY, 20)] == [0]


def test_camera_cap_never_speeds_a_camera_up() -> None:
    step = Step(max_fps=10, stride_factor=1, picture_scale=1.0, paused_priorities=0)
    assert [step.camera_fps(fps) for fps in (0, 5, 25)] == [10, 5, 10]
    assert LADDER[0].camera_fps(25) == 25
    assert LADDER[0].camera_fps(0) == 0


SHIPPED = WindowConfig(length=100, stride=15, rate_hz=30)


@pytest.mark.parametrize(
    ("window", "silence_s", "usual_fps", "strides"),
    [
        pytest.param(SHIPPED, 10, 30, [15, 30, 30, 45, 45, 45, 45, 45], id="as the ladder says"),
        pytest.param(WindowConfig(), 10, 30, [50, 100, 75, 50, 50, 25, 25, 25], id="in frames: 5 s, half the silence"),
        pytest.param(WindowConfig(rate_hz=15), 10, 30, [50, 75, 75, 75, 75, 75, 75, 75], id="in time: 5 s"),
        pytest.param(WindowConfig(), 10, 6, [50, 50, 50, 50, 50, 42, 42, 42], id="what is configured is longer: 8.3 s"),
        pytest.param(WindowConfig(), 0.01, 30, [50, 50, 25, 17, 17, 8, 8, 8], id="no silence at all: 1.7 s as configured"),
        pytest.param(WindowConfig(stride=1), 0.01, 30, [1] * 8, id="never none"),
    ],
)  # fmt: skip
def test_verdicts_get_rarer_but_never_as_rare_as_silence(
    window: WindowConfig, silence_s: float, usual_fps: float, strides: list[int]
) -> None:
    found = [step.stride(window, silence_s, usual_fps=usual_fps, fps=step.camera_fps(usual_fps)) for step in LADDER]
    assert found == strides


@pytest.mark.parametrize("step", LADDER)
def test_a_fight_becomes_an_event_on_every_step(step: Step) -> None:
    """Windows and rules as the schema has them: three verdicts in a row, none of them farther from the next than 10 s."""
    service, fps, ids = ServiceConfig.model_validate({"model": "m"}), step.camera_fps(30), count()
    rules = EventRules("cam", "fight", service.rules, lambda: f"{next(ids)}")
    windows = ActionWindows("cam", {"fight": service})
    windows.set_stride("fight", step.stride(service.window, service.rules.silence_s, usual_fps=30, fps=fps))
    phases = []
    for number in range(int(60 * fps)):
        for window in windows.push(frame(number, fps=fps)):
            times = window.t_start_ns, window.t_end_ns, window.t_end_utc
            sure = ActionScores("cam", "fight", 0.9, {}, *times, window.track_ids, 0.0)
            phases += [event.phase for event in rules.step(sure)]
    assert phases[:3] == ["detected", "active", "sustained"]
    assert "resolved" not in phases


@pytest.mark.parametrize(
    ("paused_priorities", "paused"),
    [(0, set()), (1, {"yard", "lift"}), (2, {"yard", "lift", "hall"}), (99, {"yard", "lift", "hall"})],
)
def test_low_priorities_pause_first_and_the_highest_never(paused_priorities: int, paused: set[str]) -> None:
    priorities = {"yard": 0, "lift": 0, "hall": 5, "gate": 9}
    assert Step(5, 3, 1.0, paused_priorities).paused_cameras(priorities) == paused


@pytest.mark.parametrize("priorities", [{}, {"only": 3}, {"a": 1, "b": 1}])
def test_cameras_of_one_priority_all_keep_running(priorities: dict[str, int]) -> None:
    assert LADDER[-1].paused_cameras(priorities) == set()
