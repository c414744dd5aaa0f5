"""Which share of a waiting time is a device's own. Pure."""

from __future__ import annotations

import hashlib

_BITS = 53
"""As many as a float holds exactly."""


def share(device_id: str) -> float:
    """A fraction in [0, 1): always the same for a device, uniform over devices.

    >>> share("gate-1") == share("gate-1") != share("gate-2")
    True
    """
    digest = hashlib.sha256(device_id.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) / float(1 << _BITS)
