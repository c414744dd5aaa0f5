"""What each command does. Arguments are models, so that a wrong one is refused with its name and reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.daemon.commands import Handler
from agent.daemon.drift import SelfChecking
from agent.daemon.live import LiveHub
from agent.errors import DataError, DeviceMemoryError, ModelError
from agent.health.governor import LADDER
from agent.mqtt.commands import Command, RefusedError
from agent.mqtt.topics import Topics
from agent.outbox.tables import Requeued
from agent.overlay import Mode
from agent.ports import Envelope
from agent.types import CameraPhase, CameraStatus

MOST_REPLAYED = 100_000
"""Events that one command may ask for."""
MOST_RUNS = 500
"""Runs of missing numbers in an answer: some ten kilobytes."""

A = TypeVar("A", bound=BaseModel)


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SnapshotArguments(_Arguments):
    """camera: its id; mode: what is drawn on the picture."""

    camera: str
    mode: Literal["full", "skeleton", "minimal", "debug", "raw"] = "raw"


class AcceptViewArguments(_Arguments):
    """camera: its id."""

    camera: str


class SetLevelArguments(_Arguments):
    """degradation: the lowest step of the governor, 0 = let go; for_s: how long; log: level of the log until the next reload."""

    degradation: int | None = Field(default=None, ge=0, le=len(LADDER) - 1)
    for_s: float = Field(default=3600.0, gt=0, le=86_400, strict=False)
    log: Literal["debug", "info", "warning", "error"] | None = None

    @model_validator(mode="after")
    def _something(self) -> SetLevelArguments:
        if self.degradation is None and self.log is None:
            raise ValueError("name degradation or log")
        return self


class ReplayArguments(_Arguments):
    """first, last: sequences."""

    first: int = Field(ge=1, lt=1 << 53)
    last: int = Field(ge=1, lt=1 << 53)

    @model_validator(mode="after")
    def _range(self) -> ReplayArguments:
        if not self.first <= self.last < self.first + MOST_REPLAYED:
            raise ValueError(f"last must not be below first, nor {MOST_REPLAYED} above it")
        return self


class NoArguments(_Arguments):
    """None."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of a reload. error: empty when it was applied; needs_restart: keys that were not."""

    error: str = ""
    needs_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RemotePorts:
    """What the commands reach.

    hold_degradation: step, seconds, who wants it. requeue: of the store, with the relay told. check_database: what is wrong,
    empty = nothing. models: by slot. check_updates: asks the fleet server. accept_view: of a camera by its id.
    """

    topics: Topics
    live: LiveHub
    reload: Callable[[], Awaitable[Reloaded]]
    hold_degradation: Callable[[int, float, str], None]
    set_log_level: Callable[[str], None]
    requeue: Callable[[int, int], Awaitable[Requeued]]
    publish: Callable[[str, bytes, Envelope], Awaitable[None]]
    check_database: Callable[[], Awaitable[str]]
    statuses: Callable[[], list[CameraStatus]]
    models: Callable[[], Mapping[str, object]]
    check_updates: Callable[[], Awaitable[dict[str, Any]]]
    accept_view: Callable[[str], None]


class Remote:
    """The handlers of all commands."""

    def __init__(self, ports: RemotePorts) -> None:
        self._ports = ports

    def handlers(self) -> dict[str, Handler]:
        """By the command's name."""
        return {
            "snapshot": _typed(SnapshotArguments, self._snapshot),
            "set-level": _typed(SetLevelArguments, self._set_level),
            "replay-events": _typed(ReplayArguments, self._replay),
            "self-test": _typed(NoArguments, self._self_test),
            "accept-view": _typed(AcceptViewArguments, self._accept_view),
            "reload": _typed(NoArguments, self._reload),
            "ota-check": _typed(NoArguments, self._check_updates),
        }

    async def _snapshot(self, wanted: SnapshotArguments, _command: Command) -> dict[str, Any]:
        """The picture goes out on a topic of its own: it is no JSON, and others may want it."""
        self._watched(wanted.camera)
        picture = await self._ports.live.picture(wanted.camera, Mode(wanted.mode))
        if picture is None:
            raise DataError(f"{wanted.camera} has delivered no picture that may be shown")
        topic = self._ports.topics.camera_snapshot(wanted.camera)
        await self._ports.publish(topic, picture, Envelope("image/jpeg"))
        return {"topic": topic, "bytes": len(picture)}

    async def _accept_view(self, wanted: AcceptViewArguments, _command: Command) -> dict[str, Any]:
        """It takes effect with the next half a minute of pictures that can be judged on."""
        moved = self._watched(wanted.camera).moved
        self._ports.accept_view(wanted.camera)
        return {"camera": wanted.camera, "was_moved": moved}

    def _watched(self, camera_id: str) -> CameraStatus:
        """Raises RefusedError."""
        for status in self._ports.statuses():
            if status.camera_id == camera_id:
                return status
        raise RefusedError(f"no camera {camera_id!r} is watched")

    async def _set_level(self, wanted: SetLevelArguments, command: Command) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if wanted.degradation is not None:
            self._ports.hold_degradation(wanted.degradation, wanted.for_s, command.client or "a command")
            result |= {"degradation": wanted.degradation, "for_s": wanted.for_s if wanted.degradation else 0}
        if wanted.log is not None:
            self._ports.set_log_level(wanted.log)
            result["log"] = wanted.log
        return result

    async def _replay(self, wanted: ReplayArguments, _command: Command) -> dict[str, Any]:
        done = await self._ports.requeue(wanted.first, wanted.last)
        result: dict[str, Any] = {"sent": done.found, "missing": [list(run) for run in done.missing[:MOST_RUNS]]}
        if len(done.missing) > MOST_RUNS:
            result["more_missing"] = len(done.missing) - MOST_RUNS
        return result

    async def _reload(self, _wanted: NoArguments, _command: Command) -> dict[str, Any]:
        outcome = await self._ports.reload()
        if outcome.error:
            raise DataError(f"not applied: {outcome.error}")
        return {"needs_restart": list(outcome.needs_restart)}

    async def _check_updates(self, _wanted: NoArguments, _command: Command) -> dict[str, Any]:
        """What comes of it shows in `ota/state`."""
        return await self._ports.check_updates()

    async def _self_test(self, _wanted: NoArguments, _command: Command) -> dict[str, Any]:
        """Database, cameras, and the golden answers of the models. Everything is looked at, whatever fails first."""
        started_s = time.monotonic()
        problem = await self._ports.check_database()
        findings = [_finding("database", ok=not problem, detail=problem)]
        for status in self._ports.statuses():
            good = status.phase in {CameraPhase.STREAMING, CameraPhase.ENDED, CameraPhase.PAUSED} and not status.moved
            detail = status.error or ("moved" if status.moved else status.phase.value)
            findings.append(_finding(f"camera {status.camera_id}", ok=good, detail=detail))
        for slot, model in self._ports.models().items():
            findings.append(await _check_model(slot, model))
        return {
            "good": all(finding["good"] for finding in findings),
            "findings": findings,
            "seconds": round(time.monotonic() - started_s, 2),
        }


async def _check_model(slot: str, model: object) -> dict[str, Any]:
    if not isinstance(model, SelfChecking):
        return _finding(slot, ok=True, detail="cannot check itself")
    try:
        agreement = await asyncio.to_thread(model.self_check)
    except (DeviceMemoryError, ModelError) as error:
        return _finding(slot, ok=False, detail=str(error))
    if agreement is None:
        return _finding(slot, ok=True, detail="has no golden answers")
    return _finding(slot, ok=agreement == 1.0, detail=f"{agreement:.0%} of the golden answers")


def _finding(what: str, *, ok: bool, detail: str) -> dict[str, Any]:
    return {"what": what, "good": ok, "detail": detail}


def _typed(model: type[A], work: Callable[[A, Command], Awaitable[dict[str, Any]]]) -> Handler:
    """A handler that takes arguments as JSON gave them."""

    async def handle(arguments: dict[str, Any], command: Command) -> dict[str, Any]:
        try:
            wanted = model.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RefusedError(f"{place or 'arguments'}: {first['msg']}") from error
        return await work(wanted, command)

    return handle
