"""Does a release fit this device? Asked before anything is downloaded. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.runtime.manifest import Dimension, Manifest
from agent.update.models import CONFIGURATION
from agent.update.records import Serving
from agent.update.release import Contract, Release, TensorInfo
from agent.update.trials import Refusal


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a release is held against. agent: version; runtime: `cpu`, `cuda`, `tensorrt`, empty = not known yet.

    contracts: of what serves each slot now, None = it cannot say (a bare model file, a plug-in); its keys are the slots there are.
    """

    agent: str
    runtime: str
    contracts: Mapping[str, Contract | None]
    max_bytes: int


def contract_of(manifest: Manifest) -> Contract:
    """What the model of a bundle takes and gives."""
    return Contract(
        task=manifest.task,
        inputs=tuple(
            TensorInfo(name=one.name, shape=one.shape, meaning=one.preprocessing.kind) for one in manifest.inputs
        ),
        outputs=tuple(TensorInfo(name=one.name, shape=one.shape, meaning=one.meaning) for one in manifest.outputs),
        labels=manifest.labels,
    )


def objection(release: Release, length: int, serving: Serving, facts: DeviceFacts) -> Refusal | None:
    """Why `release`, `length` bytes packed, does not get in; None = it may be tried."""
    if release.slot != CONFIGURATION and release.slot not in facts.contracts:
        known = ", ".join(sorted(facts.contracts)) or "none"
        return Refusal("contract", f"this device has no slot {release.slot} (it has {known})")
    if length > facts.max_bytes or release.unpacked_bytes > facts.max_bytes:
        text = f"{max(length, release.unpacked_bytes):,} bytes, this device takes at most {facts.max_bytes:,}"
        return Refusal("memory", text)
    if _numbers(facts.agent) < _numbers(release.min_agent):
        return Refusal("agent", f"needs agent {release.min_agent}, this is {facts.agent}")
    if release.slot != CONFIGURATION and facts.runtime and facts.runtime not in release.runtimes:
        return Refusal("runtime", f"made for {', '.join(release.runtimes)}, this device computes with {facts.runtime}")
    before = serving.before.release.number if serving.before else None
    if release.number < serving.highest and release.number != before:
        return Refusal("number", f"number {release.number} is below {serving.highest}, which was here already")
    return _contract_objection(release, facts)


def _contract_objection(release: Release, facts: DeviceFacts) -> Refusal | None:
    have, want = facts.contracts.get(release.slot), release.contract
    if want is None:
        return None
    if (want.task == "pose") != (release.slot == "pose"):
        return Refusal("contract", f"a model for {want.task} does not serve {release.slot}")
    if have is None:
        return None
    for what in ("inputs", "outputs"):
        mine, theirs = getattr(have, what), getattr(want, what)
        if [_meaning(one) for one in mine] != [_meaning(one) for one in theirs]:
            return Refusal("contract", f"{what}: expected {_shown(mine)}, got {_shown(theirs)}")
    if have.task == "action" and set(have.labels) != set(want.labels):
        return Refusal("contract", f"labels: expected {', '.join(have.labels)}, got {', '.join(want.labels)}")
    return None


def _meaning(tensor: TensorInfo) -> tuple[str, int]:
    """Names of tensors and sizes of pictures are the model's own affair: its manifest says how to feed it."""
    return tensor.meaning, len(tensor.shape)


def _shown(tensors: tuple[TensorInfo, ...]) -> str:
    return ", ".join(f"{one.meaning} [{' x '.join(_size(size) for size in one.shape)}]" for one in tensors)


def _size(size: Dimension) -> str:
    return str(size) if size is not None else "?"


def _numbers(version: str) -> tuple[int, ...]:
    """`0.6.0rc1` counts as 0.6.0."""
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
    return tuple(numbers + [0] * (3 - len(numbers)))
