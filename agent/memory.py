"""glibc's allocator, kept from holding on to what is free: a daemon that runs for months shows it as a slow leak.

Threads get arenas of their own, up to eight a core, and each keeps what its largest clip or model needed. Two arenas and
a trim after each clip cost nothing that can be measured. Elsewhere (musl) both calls do nothing.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
_ARENAS = 2


def limit_arenas() -> bool:
    """Call once, before threads are started; False where there is no such thing."""
    libc = ctypes.CDLL(None)
    return hasattr(libc, "mallopt") and bool(libc.mallopt(_M_ARENA_MAX, _ARENAS))


def trim() -> bool:
    """Give free memory back to the system; some milliseconds. False where there was none or there is no such thing."""
    libc = ctypes.CDLL(None)
    return hasattr(libc, "malloc_trim") and bool(libc.malloc_trim(0))
