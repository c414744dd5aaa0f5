"""The drift watch in the running agent: fed by the pipelines, kept in a file, its alarms told to everyone."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import structlog

from agent.config.schema import DriftConfig
from agent.drift.signals import Reading
from agent.drift.watch import DriftWatch, Key, Model
from agent.errors import DeviceMemoryError, ModelError
from agent.health.reasons import Reason, reason_key
from agent.observe.metrics import Metrics
from agent.ports import HealthSink
from agent.runtime.engines import EngineProgress, EngineState
from agent.types import POSE_SLOT, ActionScores, Event, People

_log = structlog.get_logger(__name__)

SAVE_EVERY_S = 300.0
MAX_PENDING_LATENCIES = 8192
"""Between two rounds; older ones give way."""
QUIET_S = 30.0
"""Without people for this long the machine has time for golden answers;"""
IMPATIENT_S = 3600.0
"""... when they are late by this much, they are asked in any case."""

_SETTLED = frozenset({EngineState.SERVING, EngineState.FAILED, EngineState.CANCELLED})
"""The device that computes will stay."""


@runtime_checkable
class SelfChecking(Protocol):
    """A model that can be asked for its golden answers; plug-ins need not be one."""

    @property
    def card(self) -> Mapping[str, float]:
        """Mean values that its card promises, by signal."""
        ...

    def self_check(self) -> float | None:
        """Share of the golden answers given alike; None when there are none (any more). Blocks; safe beside the inference thread."""
        ...


class ModelWatch:
    """Feeds a `DriftWatch` and acts on it. All but `observe_latency` belong to the loop.

    file: where the watch is kept between two runs; tell: returns once an event is safe.
    """

    def __init__(
        self,
        config: DriftConfig,
        file: Path,
        *,
        new_id: Callable[[], str],
        metrics: Metrics,
        health: HealthSink,
        tell: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._config = config
        self._file = file
        self._metrics = metrics
        self._health = health
        self._tell = tell
        self._new_id = new_id
        self._watch = DriftWatch(config, new_id)
        self._latencies: deque[tuple[str, int, float]] = deque(maxlen=MAX_PENDING_LATENCIES)
        self._raised: set[str] = set()
        self._golden_due_s = self._saved_s = self._round_s = time.monotonic()
        self._people_s = float("-inf")
        self.smaller_pictures = False
        """The governor has the pose model see less than it is judged by: its figures say nothing about drift meanwhile."""
        self.sparse_windows = False
        """The governor has windows farther apart than they are configured to be: how many begin something says nothing meanwhile."""

    @property
    def incidents(self) -> frozenset[str]:
        """Ids of the alarms that are on: they outlive a restart."""
        return frozenset(self._watch.incidents.values())

    async def open(self) -> None:
        """Go on where the last run stopped; what cannot be read is learned again."""
        if not self._config.enabled:
            return
        try:
            text = await asyncio.to_thread(self._file.read_text, encoding="utf-8")
            self._watch.restore(json.loads(text, parse_constant=_refuse))
        except FileNotFoundError:
            _log.info("drift_learning", warmup_h=self._config.warmup_h, scene_h=self._config.scene_h)
        except (OSError, KeyError, TypeError, ValueError) as error:
            _log.error("drift_state_unreadable", file=str(self._file), error=repr(error))
            self._watch = DriftWatch(self._config, self._new_id)

    # --- observing ----------------------------------------------------------------------------------------------------

    def observe_people(self, camera_id: str, people: People) -> None:
        """One frame that the pose estimator has seen."""
        if self._config.enabled and len(people):
            self._people_s = time.monotonic()
            if not self.smaller_pictures:
                self._watch.observe_people(camera_id, people)

    def observe_scores(self, scores: ActionScores) -> None:
        """One classified window."""
        if self._config.enabled:
            self._watch.observe_scores(scores, sparse=self.sparse_windows)

    def observe_latency(self, slot: str, items: int, seconds: float) -> None:
        """One call of a model; from any thread."""
        if not (self.smaller_pictures and slot == POSE_SLOT):
            self._latencies.append((slot, items, seconds))

    # --- a round ------------------------------------------------------------------------------------------------------

    def keep_cameras(self, cameras: list[str]) -> None:
        """Forget cameras that are not configured any more."""
        self._watch.keep_cameras(cameras)

    def forget_camera(self, camera_id: str) -> None:
        """It looks elsewhere from now on."""
        self._watch.forget_camera(camera_id)

    async def round(self, models: Mapping[str, object]) -> None:
        """Judge what has come in, tell what has changed. models: estimator and classifiers by slot, all that serve."""
        if not self._config.enabled:
            self._latencies.clear()
            return
        self._watch.set_time(datetime.now(UTC))  # before the first model is known, since frames come while it is asked
        self._watch.keep_slots(models)
        for slot, model in models.items():
            self._watch.set_model(slot, self._describe(model))
        while self._latencies:
            self._watch.observe_latency(*self._latencies.popleft())
        now_s = time.monotonic()
        await self._ask_golden(models, now_s)
        elapsed_s, self._round_s = now_s - self._round_s, now_s
        events = self._watch.step(elapsed_s, datetime.now(UTC))
        for event in events:
            await self._tell(event)
        self._show()
        if events or now_s - self._saved_s >= SAVE_EVERY_S:
            await self.save()

    async def save(self) -> None:
        """Keep what was learned."""
        if not self._config.enabled:
            return
        self._saved_s = time.monotonic()
        try:
            await asyncio.to_thread(_write, self._file, self._watch.state())
        except OSError as error:  # the next save may succeed; until then a restart costs the latest minutes
            _log.warning("drift_state_not_saved", file=str(self._file), error=str(error))

    def report(self) -> list[dict[str, Any]]:
        """Every signal for the state document: what is normal, what is, and on what grounds."""
        return [
            {
                "signal": key.signal, "slot": key.slot, "camera": key.camera, "model": model,
                "state": _state(reading), "baseline": reading.baseline, "current": reading.current,
                "change": reading.change, "basis": reading.basis, "blocks": reading.blocks,
            }
            for key, (model, reading) in self._watch.readings().items()
        ]  # fmt: skip

    # ------------------------------------------------------------------------------------------------------------------

    def _describe(self, model: object) -> Model:
        card = model.card if isinstance(model, SelfChecking) and self._config.baseline == "card" else {}
        name, own_scale = getattr(model, "name", ""), getattr(model, "own_scale", 1.0)
        upgrade: EngineProgress | None = getattr(model, "upgrade", None)
        moving = upgrade is not None and upgrade.state not in _SETTLED
        return Model(name if own_scale == 1 else f"{name} at {own_scale:g}", getattr(model, "device", ""), card, moving)

    async def _ask_golden(self, models: Mapping[str, object], now_s: float) -> None:
        """Between frames with people if there are such moments, off the loop."""
        late_s = now_s - self._golden_due_s
        quiet = now_s - self._people_s > QUIET_S
        if not self._config.golden_every_h or late_s < 0 or not (quiet or late_s > IMPATIENT_S):
            return
        self._golden_due_s = now_s + self._config.golden_every_h * 3600
        for slot, model in models.items():
            if not isinstance(model, SelfChecking):
                continue
            try:
                agreement = await asyncio.to_thread(model.self_check)
            except DeviceMemoryError as error:  # says nothing about the model
                _log.warning("golden_check_skipped", slot=slot, error=str(error))
                continue
            except ModelError as error:
                _log.error("golden_check_failed", slot=slot, error=str(error))
                agreement = 0.0
            if agreement is not None:
                self._watch.observe_agreement(slot, agreement)

    def _show(self) -> None:
        readings = self._watch.readings()
        strengths: dict[tuple[str, str], float] = {}
        for key, (model, reading) in readings.items():
            if reading.current is not None:
                strengths[model, key.signal] = max(strengths.get((model, key.signal), 0.0), reading.strength)
                if key.signal == "golden_agreement":
                    self._metrics.set_model_accuracy(model, reading.current)
        self._metrics.set_model_drift(strengths)
        raised = set()
        for key in self._watch.incidents:
            reason = reason_key(
                Reason.MODEL_DRIFT, "/".join(part for part in (key.slot, key.signal, key.camera) if part)
            )
            raised.add(reason)
            known = readings.get(key)
            self._health.raise_reason(reason, _sentence(key, *known) if known else "as before the restart")
        for reason in self._raised - raised:
            self._health.clear_reason(reason)
        self._raised = raised


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _state(reading: Reading) -> str:
    if reading.active:
        return "drift"
    return "learning" if reading.current is None else "watching"


def _sentence(key: Key, model: str, reading: Reading) -> str:
    place = f" at {key.camera}" if key.camera else ""
    if reading.current is None or reading.baseline is None:
        return f"{key.signal} of {model}{place}"
    if key.slot == POSE_SLOT and key.signal == "people_per_frame":
        return f"{key.signal}{place}: stability index {reading.current:.2f}, drift from {reading.limit:.2f}"
    return (
        f"{key.signal} of {model}{place}: {reading.current:.3g}, {reading.change:+.0%} against {reading.baseline:.3g} "
        f"({reading.basis})"
    )


def _write(file: Path, state: dict[str, Any]) -> None:
    temporary = file.with_name(file.name + ".new")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(state, stream, separators=(",", ":"))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
