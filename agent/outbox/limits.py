"""How long and how much may wait in each lane. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from agent.config.delivery import CommandsConfig, OutboxConfig
from agent.types import Lane, Loss

SLACK = 0.1
"""A full lane is emptied by this share at once: one announcement for many messages, not one for each."""

_RANGES_PER_MESSAGE = 500
"""Some ten kilobytes of JSON."""
_US_PER_S = 1_000_000
_COMMANDS = 10_000


def max_age_us(config: OutboxConfig, lane: Lane) -> int:
    """How long a message of `lane` may wait, in microseconds."""
    ages_s = {
        Lane.ALARM: config.alarm_max_age_s,
        Lane.EVENT: config.event_max_age_s,
        Lane.STATE: config.state_max_age_s,
        Lane.TELEMETRY: config.telemetry_max_age_s,
    }
    return int(ages_s[lane] * _US_PER_S)


def history_us(config: OutboxConfig) -> int:
    """How long the history reaches back, in microseconds."""
    return int(config.history_days * 86_400 * _US_PER_S)


def commands_us(config: OutboxConfig, commands: CommandsConfig) -> int:
    """How long a command stays in the record, in microseconds: as the history, and until it can no longer be sent again."""
    return max(history_us(config), int((commands.max_validity_s + 60.0) * _US_PER_S))


def commands_most(commands: CommandsConfig) -> int:
    """How many commands stay in the record: no fewer than may come while the first of them could be sent again."""
    return max(_COMMANDS, math.ceil((commands.max_validity_s / 60.0 + 1.0) * commands.max_per_minute))


def max_bytes(config: OutboxConfig, lane: Lane) -> int:
    """How many bytes of payload may wait in `lane`."""
    sizes = (config.alarm_max_bytes, config.event_max_bytes, config.state_max_bytes, config.telemetry_max_bytes)
    return sizes[lane]


def runs(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Rising numbers as first and last of each run without a hole.

    >>> runs([3, 4, 5, 9, 11, 12])
    ((3, 5), (9, 9), (11, 12))
    """
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)


def missing(numbers: Iterable[int], first: int, end: int) -> tuple[tuple[int, int], ...]:
    """The runs of `first` <= n < `end` that are not among the rising `numbers`.

    >>> missing([3, 4, 7], 1, 10)
    ((1, 2), (5, 6), (8, 9))
    """
    found = []
    for number in numbers:
        if number > first:
            found.append((first, min(number, end) - 1))
        first = max(first, number + 1)
    if first < end:
        found.append((first, end - 1))
    return tuple(run for run in found if run[0] <= run[1])


def parts(loss: Loss) -> list[Loss]:
    """`loss` in pieces whose ranges fit into one message."""
    if len(loss.ranges) <= _RANGES_PER_MESSAGE:
        return [loss]
    pieces = [
        loss.ranges[start : start + _RANGES_PER_MESSAGE] for start in range(0, len(loss.ranges), _RANGES_PER_MESSAGE)
    ]
    return [
        replace(loss, ranges=piece, lost=None if loss.lost is None else sum(last - first + 1 for first, last in piece))
        for piece in pieces
    ]
