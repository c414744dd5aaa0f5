"""`full_jitter`: the bounds of every wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.backoff import full_jitter


@given(
    attempt=st.integers(0, 10_000),
    initial_s=st.floats(1e-3, 60),
    max_s=st.floats(1e-3, 600),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_wait_stays_below_the_cap(attempt: int, initial_s: float, max_s: float, draw: float) -> None:
    wait_s = full_jitter(attempt, initial_s, max_s, lambda: draw)
    assert 0 <= wait_s <= max_s


def test_cap_doubles_until_the_maximum() -> None:
    waits = [full_jitter(n, 1.0, 30.0, lambda: 0.5) for n in range(7)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


def test_negative_attempt_is_refused() -> None:
    with pytest.raises(ValueError, match="attempt"):
        full_jitter(-1, 1.0, 30.0, lambda: 0.5)
