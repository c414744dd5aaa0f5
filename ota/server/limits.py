"""Failed sign-ins per address, bounded: whoever guesses is made to wait, and cannot fill the memory with addresses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MAX_KEYS = 10_000
_BURST, _PER_S = 10.0, 0.1
_ADDRESS_BURST, _ADDRESS_PER_S = 200.0, 2.0


class _Failures:
    """How many of them `burst` allows at once and `per_s` in the long run, for each key."""

    def __init__(self, burst: float, per_s: float, clock_s: Callable[[], float]) -> None:
        self._burst = burst
        self._per_s = per_s
        self._clock_s = clock_s
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str) -> float:
        """Seconds until one more may fail, 0 = now."""
        left = self._level(key)
        return 0.0 if left >= 1 else (1 - left) / self._per_s

    def note(self, key: str) -> None:
        self._left[key] = (self._level(key) - 1, self._clock_s())
        self._left.move_to_end(key)
        if len(self._left) > MAX_KEYS:
            self._left.popitem(last=False)

    def _level(self, key: str) -> float:
        left, at_s = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock_s() - at_s) * self._per_s)


class FailureLimits:
    """One bucket for an address with a name (a site behind one address has many devices), a wider one for the address.

    clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._named = _Failures(_BURST, _PER_S, clock_s)
        self._addresses = _Failures(_ADDRESS_BURST, _ADDRESS_PER_S, clock_s)

    def wait_s(self, address: str, name: str) -> float:
        """Seconds until this one is listened to again, 0 = now."""
        return max(self._named.wait_s(f"{address} {name}"), self._addresses.wait_s(address))

    def note(self, address: str, name: str) -> None:
        """A sign-in failed."""
        self._named.note(f"{address} {name}")
        self._addresses.note(address)
