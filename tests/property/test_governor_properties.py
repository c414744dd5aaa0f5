"""The governor over arbitrary histories: bounded, calm, monotone under constant load, and always able to recover."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.schema import GovernorConfig, WindowConfig
from agent.health.governor import LADDER, MAX_PATIENCE, Governor, GovernorSample, GpuHeat, Step

S = 1_000_000_000
unhurried = settings(deadline=None)  # a loaded machine is no finding
fractions = st.none() | st.floats(0, 1)
samples = st.builds(
    GovernorSample,
    cpu=fractions,
    memory=fractions,
    gpu_memory=fractions,
    gpus=st.lists(st.builds(GpuHeat, st.floats(-10, 120), st.none() | st.floats(80, 110)), max_size=3).map(tuple),
    gpu_thermal_throttle=st.none() | st.booleans(),
)
steps_ns = st.integers(1, 60 * S)
histories = st.lists(st.tuples(samples, steps_ns), max_size=150)
configs = st.builds(
    GovernorConfig,
    interval_s=st.floats(0.1, 10),
    step_down_after_s=st.floats(0, 20),
    step_up_after_s=st.floats(0, 60),
)


def replay(governor: Governor, history: list[tuple[GovernorSample, int]]) -> list[tuple[int, int, bool]]:
    """(time, step, changed) after each update."""
    now_ns, out = 0, []
    for sample, pause_ns in history:
        now_ns += pause_ns
        decision = governor.update(sample, now_ns)
        out.append((now_ns, decision.step, decision.changed))
    return out


@unhurried
@given(configs, histories)
def test_steps_stay_on_the_ladder_and_move_one_at_a_time(
    config: GovernorConfig, history: list[tuple[GovernorSample, int]]
) -> None:
    before = 0
    for _, step, changed in replay(Governor(config), history):
        assert 0 <= step < len(LADDER)
        assert abs(step - before) == int(changed)
        before = step


@unhurried
@given(configs, histories)
def test_at_most_one_change_per_interval(config: GovernorConfig, history: list[tuple[GovernorSample, int]]) -> None:
    changes_ns = [now_ns for now_ns, _, changed in replay(Governor(config), history) if changed]
    for earlier, later in pairwise(changes_ns):
        assert later - earlier >= config.interval_s * S


@unhurried
@given(configs, histories)
def test_every_change_says_why(config: GovernorConfig, history: list[tuple[GovernorSample, int]]) -> None:
    governor, now_ns = Governor(config), 0
    for sample, pause_ns in history:
        now_ns += pause_ns
        decision = governor.update(sample, now_ns)
        assert not decision.changed or decision.reasons


@unhurried
@given(configs, histories, steps_ns)
def test_calm_brings_it_back_to_full_service(
    config: GovernorConfig, history: list[tuple[GovernorSample, int]], pause_ns: int
) -> None:
    governor = Governor(config)
    past = replay(governor, history)
    now_ns = past[-1][0] if past else 0
    calm = GovernorSample(cpu=0.0, memory=0.0, gpu_memory=0.0, gpus=(GpuHeat(20),))
    longest_ns = (len(LADDER) + 1) * int(
        config.step_up_after_s * MAX_PATIENCE * S + config.interval_s * S + 2 * pause_ns
    )
    end_ns, previous = now_ns + longest_ns, governor.step
    for at_ns in range(now_ns + pause_ns, end_ns + pause_ns, max(pause_ns, longest_ns // 200)):
        step = governor.update(calm, at_ns).step
        assert step <= previous
        previous = step
    assert governor.step == 0


@unhurried
@given(configs, st.lists(steps_ns, min_size=1, max_size=150))
def test_constant_overload_never_speeds_it_up(config: GovernorConfig, pauses: list[int]) -> None:
    overload = GovernorSample(cpu=1.0)
    steps = [step for _, step, _ in replay(Governor(config), [(overload, pause) for pause in pauses])]
    assert steps == sorted(steps)


@unhurried
@given(configs, histories)
def test_same_history_same_decisions(config: GovernorConfig, history: list[tuple[GovernorSample, int]]) -> None:
    assert replay(Governor(config), history) == replay(Governor(config), history)


windows = st.builds(WindowConfig, stride=st.integers(1, 300), rate_hz=st.just(0.0) | st.floats(1, 60))


@unhurried
@given(st.sampled_from(LADDER), windows, st.floats(0.5, 60), st.floats(1, 60))
def test_verdicts_are_never_quicker_than_configured_and_slow_only_up_to_half_the_silence(
    step: Step, window: WindowConfig, silence_s: float, usual_fps: float
) -> None:
    fps = step.camera_fps(usual_fps)
    stride = step.stride(window, silence_s, usual_fps=usual_fps, fps=fps)
    rate_hz = window.rate_hz or fps
    usual_s, half_a_step_s = window.stride / (window.rate_hz or usual_fps), 0.501 / rate_hz
    assert stride <= window.stride * step.stride_factor
    assert usual_s - half_a_step_s <= stride / rate_hz <= max(silence_s / 2, usual_s, 1 / rate_hz) + half_a_step_s
