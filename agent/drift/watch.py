"""The drift watch: sorts what the pipeline reports into signals and turns their alarms into events. Pure.

One signal per model slot and quantity, for poses also per camera: a dirty lens is one camera's affair. What a signal
needs to go on after a restart is in `state`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from agent.config.schema import DriftConfig
from agent.drift.card import frame_means, window_confidence
from agent.drift.mixture import MixtureSignal
from agent.drift.signals import AgreementSignal, MeanSignal, Pace, RateSignal, Reading, Signal
from agent.types import POSE_SLOT, ActionScores, Event, EventPhase, People, action_slot

KIND = "drift"
HOURS_PER_CONDITION = 4
POSITIVE_AT = 0.5
"""A window counts for its action from here on: what the model says, whatever the rules make of it."""
PEOPLE_EDGES = (1, 2, 3, 4, 5, 7, 10)
STATE_VERSION = 1
S = TypeVar("S", bound=Signal)


class Key(NamedTuple):
    """A signal's name, the slot of the model it is about, and the camera it is measured at (empty = all)."""

    signal: str
    slot: str
    camera: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """What is in a slot. device: who computes; card: mean values that its card promises, by signal. moving: another device may soon
    take over, as after each start until the stored TensorRT engine stands."""

    name: str
    device: str = ""
    card: Mapping[str, float] = field(default_factory=dict)
    moving: bool = False


@dataclass(frozen=True, slots=True)
class _Incident:
    """model: the one that drifts; another may be in the slot when it ends."""

    incident_id: str
    onset_utc: datetime
    model: str
    reading: Reading


@dataclass(frozen=True, slots=True)
class _Eyes:
    """The signals of one camera, looked up once."""

    confidence: MeanSignal
    visibility: MeanSignal
    people: MixtureSignal


class DriftWatch:
    """All signals of a device. Not thread-safe.

    new_id: makes the ids of events. `observe_*` take what happened; `step` ends blocks and returns what is to be told.
    """

    def __init__(self, config: DriftConfig, new_id: Callable[[], str]) -> None:
        self._config = config
        self._new_id = new_id
        self._models: dict[str, Model] = {}
        self._signals: dict[Key, Signal] = {}
        self._eyes: dict[str, _Eyes] = {}
        self._incidents: dict[Key, _Incident] = {}
        self._stored: dict[Key, dict[str, Any]] = {}  # of signals that have not been seen since the start
        self._stored_models: dict[str, tuple[str, str]] = {}
        self._gone: list[tuple[Key, str]] = []
        self._positive: set[tuple[str, str]] = set()
        self._condition = 0
        self._t_s = 0.0

    # --- what there is to watch ---------------------------------------------------------------------------------------

    def set_model(self, slot: str, model: Model) -> None:
        """Say what is in `slot`. Another model starts afresh, another device does so for latencies; nothing is carried over. While a model
        is `moving`, the device that it had is kept, and latencies are left out."""
        before = self._models.get(slot)
        name, device = (
            (before.name, before.device) if before else self._stored_models.get(slot, (model.name, model.device))
        )
        if model.moving:
            model = replace(model, device=device)
        self._models[slot] = model
        if name != model.name:
            self._drop(lambda key: key.slot == slot, "model_changed")
        elif device != model.device:
            self._drop(lambda key: key.slot == slot and key.signal == "latency", "device_changed")

    def keep_cameras(self, cameras: Iterable[str]) -> None:
        """Forget cameras that are not among these."""
        wanted = {"", *cameras}
        self._drop(lambda key: key.camera not in wanted, "camera_removed")

    def forget_camera(self, camera: str) -> None:
        """It looks elsewhere from now on: what is usual there is learned again."""
        self._drop(lambda key: key.camera == camera, "view_accepted")

    def keep_slots(self, slots: Iterable[str]) -> None:
        """Forget models of slots that are not among these: a service that was taken out has nobody who could recover."""
        served = set(slots)
        self._drop(lambda key: key.slot not in served, "service_removed")

    @property
    def incidents(self) -> dict[Key, str]:
        """The alarms that are on, with the ids of their incidents."""
        return {key: incident.incident_id for key, incident in self._incidents.items()}

    def _drop(self, which: Callable[[Key], bool], reason: str) -> None:
        for key in [key for key in {**self._signals, **self._stored, **self._incidents} if which(key)]:
            self._signals.pop(key, None)
            self._stored.pop(key, None)
            if key.slot == POSE_SLOT:
                self._eyes.pop(key.camera, None)
            self._gone.append((key, reason))

    # --- observing ----------------------------------------------------------------------------------------------------

    def set_time(self, now_utc: datetime) -> None:
        """What is observed from now on belongs to this part of the day. `step` says it as well."""
        self._condition = now_utc.hour // HOURS_PER_CONDITION

    def observe_people(self, camera_id: str, people: People) -> None:
        """One frame. Without people it says nothing about the model, and is left out."""
        seen = frame_means(people)
        if seen is None or POSE_SLOT not in self._models:
            return
        eyes = self._eyes.get(camera_id) or self._open_eyes(camera_id)
        eyes.confidence.observe(seen.person_confidence, self._condition)
        eyes.visibility.observe(seen.keypoint_visibility, self._condition)
        eyes.people.observe(len(people))

    def observe_scores(self, scores: ActionScores, *, sparse: bool = False) -> None:
        """One verdict. Of neighbouring positive windows the first counts as a hit: one fight is one, however long.

        sparse: windows are farther apart than they are configured to be. The same fights begin in fewer of them, so they say
        nothing about the rate.
        """
        slot, confidence = action_slot(scores.service), window_confidence(scores)
        if slot not in self._models or confidence is None:
            return
        self._signal(Key("window_confidence", slot), MeanSignal).observe(confidence, self._condition)
        place, positive = (scores.camera_id, scores.service), scores.probability >= POSITIVE_AT
        if not sparse:
            self._signal(Key("class_rate", slot), RateSignal).observe(positive and place not in self._positive)
        (self._positive.add if positive else self._positive.discard)(place)

    def observe_latency(self, slot: str, items: int, seconds: float) -> None:
        """One call of the model in `slot` with a batch of `items`; each batch size has its own mean."""
        if slot in self._models and not self._models[slot].moving and seconds > 0:
            self._signal(Key("latency", slot), MeanSignal).observe(seconds, items)

    def observe_agreement(self, slot: str, agreement: float) -> None:
        """One check of the golden answers: the share that was given alike, 0-1."""
        self._signal(Key("golden_agreement", slot), AgreementSignal).observe(agreement)

    # --- judging ------------------------------------------------------------------------------------------------------

    def step(self, elapsed_s: float, now_utc: datetime) -> list[Event]:
        """Time goes on by `elapsed_s`: the alarms that began or ended, in the order to be told."""
        self._t_s += elapsed_s
        self.set_time(now_utc)
        events = []
        for key, reason in self._gone:
            if (incident := self._incidents.pop(key, None)) is not None:
                events.append(self._event(key, incident, now_utc, EventPhase.RESOLVED, reason))
        self._gone.clear()
        for key, signal in self._signals.items():
            if signal.tick(self._t_s):
                events.append(self._turn(key, signal.reading, now_utc))
        return events

    def _turn(self, key: Key, reading: Reading, now_utc: datetime) -> Event:
        if not reading.active:
            known = self._incidents.pop(key, None) or self._incident(key, now_utc, reading)
            return self._event(key, replace(known, reading=reading), now_utc, EventPhase.RESOLVED, "recovered")
        age_s = self._t_s - reading.onset_s if reading.onset_s is not None else 0.0
        incident = self._incident(key, now_utc - timedelta(seconds=age_s), reading)
        self._incidents[key] = incident
        return self._event(key, incident, now_utc, EventPhase.DETECTED, "drift")

    def _incident(self, key: Key, onset_utc: datetime, reading: Reading) -> _Incident:
        return _Incident(self._new_id(), onset_utc, self._model_name(key.slot), reading)

    def _event(self, key: Key, incident: _Incident, now_utc: datetime, phase: EventPhase, reason: str) -> Event:
        reading = incident.reading
        return Event(
            event_id=self._new_id(),
            incident_id=incident.incident_id,
            kind=KIND,
            phase=phase,
            camera_id=key.camera,
            track_ids=(),
            t_start_ns=0,
            t_utc=now_utc,
            t_onset_utc=incident.onset_utc,
            duration_s=max(0.0, (now_utc - incident.onset_utc).total_seconds()),
            confidence=1.0,
            attributes={
                "signal": key.signal, "slot": key.slot, "model": incident.model, "reason": reason,
                "baseline": _rounded(reading.baseline), "current": _rounded(reading.current),
                "change": _rounded(reading.change), "limit": _rounded(reading.limit), "basis": reading.basis,
                "blocks": reading.blocks,
            },
        )  # fmt: skip

    def _model_name(self, slot: str) -> str:
        model = self._models.get(slot)
        return model.name if model else self._stored_models.get(slot, ("", ""))[0]

    # --- looking ------------------------------------------------------------------------------------------------------

    def readings(self) -> dict[Key, tuple[str, Reading]]:
        """Model name and reading of every signal."""
        return {key: (self._models[key.slot].name, signal.reading) for key, signal in self._signals.items()}

    # --- keeping ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything for the next start, as JSON values."""
        signals = self._stored | {key: signal.state() for key, signal in self._signals.items()}
        return {
            "version": STATE_VERSION,
            "t_s": self._t_s,
            "models": self._stored_models | {slot: [one.name, one.device] for slot, one in self._models.items()},
            "signals": [[*key, state] for key, state in signals.items()],
            "incidents": [
                [*key, incident.incident_id, incident.onset_utc.isoformat()]
                for key, incident in self._incidents.items()
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was made; before anything is observed. Raises KeyError, TypeError, ValueError when it cannot."""
        if state["version"] != STATE_VERSION:
            raise ValueError(f"version {state['version']}, expected {STATE_VERSION}")
        models = {str(slot): (str(name), str(device)) for slot, (name, device) in state["models"].items()}
        stored = {Key(signal, slot, camera): dict(one) for signal, slot, camera, one in state["signals"]}
        nothing = Reading(None, None, 0.0, 0.0, 0.0, "local", 0, active=False)
        incidents = {
            Key(signal, slot, camera): _Incident(
                str(incident_id), datetime.fromisoformat(onset_utc), models.get(slot, ("", ""))[0], nothing
            )
            for signal, slot, camera, incident_id, onset_utc in state["incidents"]
        }
        for key, one in stored.items():  # a damaged one must show now, not when its camera comes
            self._make(key).restore(one)
        self._t_s = float(state["t_s"])
        self._stored_models, self._stored, self._incidents = models, stored, incidents

    # --- signals ------------------------------------------------------------------------------------------------------

    def _open_eyes(self, camera_id: str) -> _Eyes:
        eyes = self._eyes[camera_id] = _Eyes(
            self._signal(Key("person_confidence", POSE_SLOT, camera_id), MeanSignal),
            self._signal(Key("keypoint_visibility", POSE_SLOT, camera_id), MeanSignal),
            self._signal(Key("people_per_frame", POSE_SLOT, camera_id), MixtureSignal),
        )
        return eyes

    def _signal(self, key: Key, kind: type[S]) -> S:
        """The signal of `key`, which is a `kind`; made, and taken up where it was stored, at its first use."""
        signal = self._signals.get(key)
        if signal is None:
            signal = self._signals[key] = self._make(key)
            if (stored := self._stored.pop(key, None)) is not None:
                signal.restore(stored)
        if not isinstance(signal, kind):
            raise TypeError(f"{key} is a {type(signal).__name__}, not a {kind.__name__}")
        return signal

    def _make(self, key: Key) -> Signal:
        config = self._config
        card = self._models[key.slot].card.get(key.signal) if key.slot in self._models else None
        match key.signal:
            case "person_confidence" | "keypoint_visibility":
                return MeanSignal(self._pace(config.min_samples), -config.confidence_drop, card=card)
            case "window_confidence":
                return MeanSignal(self._pace(config.min_windows), -config.confidence_drop, card=card)
            case "latency":
                return MeanSignal(self._pace(config.min_samples), config.latency_rise, logarithmic=True)
            case "people_per_frame":
                pace = self._pace(config.min_samples)
                return MixtureSignal(pace, PEOPLE_EDGES, config.people_index, config.scene_h * 3600)
            case "class_rate":
                pace = replace(self._pace(config.min_windows), warmup_s=config.scene_h * 3600)
                return RateSignal(pace, config.class_rate_factor)
            case "golden_agreement":
                return AgreementSignal(config.accuracy_drop)
        raise ValueError(f"unknown signal {key.signal!r}")

    def _pace(self, min_samples: int) -> Pace:
        config = self._config
        return Pace(
            block_s=config.block_s,
            min_samples=min_samples,
            warmup_s=config.warmup_h * 3600,
            min_blocks=config.min_blocks,
            raise_after_s=config.alarm_after_h * 3600,
            clear_after_s=config.clear_after_h * 3600,
            limit=max(1.0, math.log(config.false_alarm_every_days * 86400 / config.block_s)),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
