"""Which device is in which group: always the same answer for the same devices and release."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from ota.rollouts import filters
from ota.rollouts.plan import GroupPlan


def assign(groups: Sequence[GroupPlan], devices: Mapping[str, filters.Fields], salt: str) -> list[list[str]]:
    """Device ids of each group, in the order of `groups`; together they are all of `devices`.

    devices: by id, with their fields, as the rollout's filter took them. salt: what is rolled out; another release takes other
    canaries, the same release the same ones again. A group in per cent takes at least one device, if one is left.
    """
    left = sorted(devices, key=lambda device: hashlib.sha256(f"{salt}\n{device}".encode()).digest())
    taken: list[list[str]] = []
    for group in groups:
        wanted = filters.parse(group.filter)
        fitting = [device for device in left if wanted.matches(devices[device])]
        chosen = fitting[: _size(group, len(devices))]
        gone = set(chosen)
        left = [device for device in left if device not in gone]
        taken.append(chosen)
    return taken


def _size(group: GroupPlan, total: int) -> int:
    if group.percent is not None:
        return max(1, math.ceil(round(total * group.percent / 100, 9)))
    return total if group.count is None else group.count
