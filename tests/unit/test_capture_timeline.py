"""Time line, thinning and rate of a camera."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.timeline import RateMeter, Thinner, Timeline, period_ns, plausible_fps

MS = 1_000_000
S = 1000 * MS


def placed(*pts_ms: int | None, fps: float = 10) -> list[int]:
    line = Timeline()
    line.start_pass(fps)
    return [line.place(None if pts is None else pts * MS) // MS for pts in pts_ms]


def test_times_start_at_zero_and_keep_their_distances() -> None:
    assert placed(200, 300, 450) == [0, 100, 250]


def test_disorder_is_repaired_and_the_line_meets_the_stream_again() -> None:
    assert placed(0, 300, 200, 400, 600, 700) == [0, 300, 400, 500, 600, 700]


def test_frames_without_a_time_follow_by_a_period() -> None:
    assert placed(None, None, 7000, 7100, None) == [0, 100, 200, 300, 400]


def test_a_new_time_base_goes_on_after_the_last_frame() -> None:
    assert placed(5000, 8000, 0, 100) == [0, 3000, 3100, 3200]


def test_a_second_pass_goes_on_one_frame_later() -> None:
    line = Timeline()
    line.start_pass(10)
    first = [line.place(t * MS) for t in (0, 100)]
    line.start_pass(10)
    assert [*first, *(line.place(t * MS) for t in (0, 100))] == [0, 100 * MS, 200 * MS, 300 * MS]


@given(st.lists(st.integers(-(10**15), 10**15), min_size=1), st.floats(0, 1000))
def test_the_line_is_strictly_increasing_whatever_the_stream_says(pts: list[int], fps: float) -> None:
    line = Timeline()
    line.start_pass(fps)
    times = [line.place(value) for value in pts]
    assert times[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(times))


def test_a_rate_that_no_camera_has_is_unknown() -> None:
    stated = (29.97, 240.0, 600.0, 90_000.0, 0.0, -1.0, float("inf"), float("nan"))
    assert [plausible_fps(fps) for fps in stated] == [29.97, 240.0, 0, 0, 0, 0, 0, 0]
    assert plausible_fps(0.0, 25.0) == plausible_fps(90_000.0, 25.0) == 25.0


def test_unknown_rates_get_a_usual_period() -> None:
    assert [period_ns(fps) for fps in (25, 0, float("inf"), float("nan"))] == [40 * MS] * 4


@given(max_fps=st.floats(0.5, 30), fps=st.floats(1, 60), seed=st.integers(0, 1000))
def test_thinned_rate_never_exceeds_the_bound(max_fps: float, fps: float, seed: int) -> None:
    thinner = Thinner(max_fps)
    jitter = np.random.default_rng(seed).uniform(-0.3, 0.3, 200)
    times = sorted(round((index + shift) * S / fps) + S for index, shift in enumerate(jitter))
    passed = sum(map(thinner.accept, times))
    assert passed <= (times[-1] - times[0]) / S * max_fps + 2


def test_a_bound_at_the_stream_rate_passes_every_frame_in_spite_of_jitter() -> None:
    thinner = Thinner(10)
    assert all(thinner.accept(index * 100 * MS + (15 * MS if index % 2 else 0)) for index in range(100))


def test_the_bound_may_change_while_running() -> None:
    thinner = Thinner(1)
    assert [thinner.accept(t * 100 * MS) for t in range(5)] == [True, False, False, False, False]
    thinner.max_fps = 5
    assert [thinner.accept(t * 100 * MS) for t in range(5, 10)] == [False, False, True, False, True]
    thinner.max_fps = 0
    assert all(thinner.accept(t * 100 * MS) for t in range(10, 15))


def test_rate_counts_the_last_seconds_only() -> None:
    meter = RateMeter(window_s=5)
    assert meter.per_second(0) == 0
    for index in range(100):
        meter.add(index * 100 * MS)
    assert 9 <= meter.per_second(10 * S) <= 11
    assert meter.per_second(30 * S) == 0


def test_rate_is_right_before_the_window_is_full() -> None:
    meter = RateMeter(window_s=5)
    for index in range(11):
        meter.add(index * 100 * MS)
    assert 9 <= meter.per_second(1 * S) <= 12
