"""Full-jitter exponential backoff, as a pure function."""

from __future__ import annotations

from collections.abc import Callable

_MAX_DOUBLINGS = 64
"""2**64 times any sensible first wait is above any cap; more would only overflow a float."""


def full_jitter(attempt: int, initial_s: float, max_s: float, random: Callable[[], float]) -> float:
    """Seconds to wait before try `attempt + 1`: uniform in [0, min(max_s, initial_s * 2**attempt)).

    attempt: 0 for the first wait; random: uniform in [0, 1), for example `random.Random().random`.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    >>> full_jitter(3, initial_s=1.0, max_s=30.0, random=lambda: 0.5)
    4.0
    """
    if attempt < 0:
        raise ValueError(f"attempt must be 0 or more, got {attempt}")
    cap_s = min(max_s, initial_s * 2.0 ** min(attempt, _MAX_DOUBLINGS))
    return random() * cap_s
