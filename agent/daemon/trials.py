"""Candidates tried on the running agent and put in place: the port `agent.update.trials.Trials`, over its models and figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.config.schema import AgentConfig
from agent.daemon.probation_run import Change, run_probation
from agent.daemon.shadow_run import Terms, run_shadow
from agent.daemon.vitals import FrameGaps, Vitals
from agent.errors import ConfigError, DeviceMemoryError, FatalError, ModelError, RecognizerError, TrustError
from agent.health.probes import free_bytes
from agent.health.reasons import HealthSnapshot, HealthState, Reason, reason_key
from agent.recognition import Model, Recognition, bundle_of, close_model, with_models, without_own_size
from agent.runtime.bundle import GoldenError
from agent.runtime.engines import EngineProgress, EngineState
from agent.types import POSE_SLOT, Level
from agent.update import probation
from agent.update.probing import ProbeLimits, clean, run_probe, too_poor
from agent.update.trials import Candidate, Figures, Ready, Refusal, Tell

_log = structlog.get_logger(__name__)

BLOCKING = frozenset({Reason.MEMORY_HIGH, Reason.GPU_MEMORY_HIGH, Reason.GPU_HOT, Reason.STORAGE_FULL})
"""Health reasons beside those of a failed agent under which no model is exchanged."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, for the process that tries a candidate."""
LEAST_MEMORY_BYTES = 64 << 20
COPIES = 4
"""Times the size of its files that a model takes at least, with all that is around it."""
LOOK_S = 1.0
ENGINE_MINUTES = 5.0
"""How long an engine is supposed to take; only for what is shown as progress."""
NEXT_FRAME_S = 5.0
SETTLE_FRAMES = 3
"""Between loading, which takes time from the cameras' frames, and the change."""


@dataclass(frozen=True, slots=True)
class TrialPorts:
    """What is tried on. incidents: those that are active now, as `LiveHub.active_incidents`."""

    recognition: Callable[[], Recognition | None]
    config: Callable[[], AgentConfig]
    health: HealthState
    incidents: Callable[[], Sequence[Mapping[str, str]]]
    vitals: Vitals


@dataclass(frozen=True, slots=True)
class _Spare:
    """The model that served before, still loaded: the way back takes one batch."""

    path: Path | None
    model: Model


class AgentTrials:
    """Implements `Trials`. All of it belongs to the loop; one change at a time."""

    def __init__(self, ports: TrialPorts) -> None:
        self._ports = ports
        self._vitals = ports.vitals
        self._spares: dict[str, _Spare] = {}
        self._changes: dict[str, Change] = {}
        self._changing = asyncio.Lock()
        self._waits = False
        self._closing: set[asyncio.Future[None]] = set()
        self.paths: dict[str, Path] = {}
        """Bundles that serve in place of those that the configuration names, by slot; to be set before the models are loaded."""
        ports.health.subscribe(self._note_reasons)

    def _note_reasons(self, snapshot: HealthSnapshot) -> None:
        self._vitals.reasons(reason.reason for reason in snapshot.reasons)

    def left_aside(self, slot: str, path: Path, error: RecognizerError) -> None:
        """At the start: the bundle of an update cannot serve, the configured model does."""
        self.paths.pop(slot, None)
        _log.error("updated_model_left_aside", slot=slot, bundle=str(path), error=str(error))
        detail = f"the updated model cannot be loaded, the configured one serves: {clean(str(error))}"
        self._ports.health.raise_reason(_left_aside(slot), detail)

    async def close(self) -> None:
        """At the end, when the cameras have stopped."""
        for slot in list(self._spares):
            self.let_go(slot)
        if self._closing:
            await asyncio.wait(self._closing)

    # --- looking ------------------------------------------------------------------------------------------------------

    def not_now(self, *, back: bool = False) -> str:
        """See `Trials`."""
        if self._ports.recognition() is None:
            return "no model is loaded"
        if self._changing.locked() and not self._waits:
            return "another model is being put in place"
        services = self._ports.config().services
        active = [f"{one['kind']} at {one['camera']}" for one in self._ports.incidents() if one["kind"] in services]
        if active:
            return f"an event is active: {', '.join(active)}"
        if back:
            return ""
        snapshot = self._ports.health.snapshot()
        serious = [reason.reason for reason in snapshot.reasons if reason.code in BLOCKING]
        if snapshot.level is Level.FAILED or serious:
            return f"the agent is not well: {', '.join(serious or [reason.reason for reason in snapshot.reasons])}"
        return ""

    def running(self, slot: str) -> Path | None:
        """See `Trials`."""
        recognition = self._ports.recognition()
        return recognition.path(slot) if recognition is not None else None

    # --- before -------------------------------------------------------------------------------------------------------

    async def validate(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """See `Trials`."""
        slot, minimum = candidate.release.slot, candidate.release.minimum
        recognition = self._ports.recognition()
        running = recognition.path(slot) if recognition is not None else None
        if recognition is None or running is None:
            return Refusal("contract", f"this device has no slot {slot!r} that is served")
        if (refusal := _no_room(candidate)) is not None:
            return refusal
        config = without_own_size(recognition.config)  # times of one size compare
        request = {
            "slot": slot,
            "section": _section(with_models(config, {slot: candidate.path}), slot),
            "running": _section(with_models(config, {slot: running}), slot),
            "allow_custom_ops": config.update.allow_custom_ops,
        }
        outcome = await run_probe(request, ProbeLimits(int(free_bytes() * MEMORY_SHARE)), tell)
        return outcome if isinstance(outcome, Refusal) else too_poor(outcome, minimum) or outcome

    async def shadow(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """See `Trials`."""
        recognition, slot = self._ports.recognition(), candidate.release.slot
        terms = Terms.of(slot, candidate.release.minimum, self._ports.config().update, candidate.spent_s)
        if recognition is None or slot not in recognition.slots:
            return Refusal("contract", f"this device has no slot {slot!r} that is served")
        if not terms.shadow_s:
            return {"shadow_s": 0}
        if (refusal := _no_room(candidate)) is not None:
            return refusal
        try:
            model = await self._load(recognition, slot, candidate.path, tell, threads=1)
        except RecognizerError as error:
            return _refusal(error)
        try:
            return await run_shadow(recognition, slot, model, terms, tell)
        finally:
            self._close(model)

    # --- the change ---------------------------------------------------------------------------------------------------

    async def install(self, slot: str, path: Path | None, ready: Ready | None = None) -> Figures:
        """See `Trials`. What served before stays loaded until a probation has ended well, or until it serves again."""
        async with self._changing:
            recognition = self._ports.recognition()
            if recognition is None or slot not in recognition.slots:
                raise ModelError(f"no model serves the slot {slot!r}")
            here = bundle_of(recognition.slots[slot])
            if here is not None and here.path in self._bundles(slot, path):
                self._note_path(slot, path)
                return {}
            watched = self._vitals.watch_gaps()
            try:
                return await self._install(recognition, slot, path, watched, ready)
            finally:
                self._vitals.forget_gaps(watched)

    async def _install(
        self, recognition: Recognition, slot: str, path: Path | None, watched: FrameGaps, ready: Ready | None
    ) -> dict[str, float | int | str]:
        began_s = self._vitals.mark()
        before, spare = recognition.slots[slot], self._spares.get(slot)
        back = spare is not None and spare.path in self._bundles(slot, path)
        if spare is not None and back:
            model = spare.model
        else:
            self.let_go(slot)  # memory first
            model = await self._load(recognition, slot, path, lambda *_: None)
            await self._settled(model, watched, ready)
        load_gap_s = watched.longest_s
        change = Change(
            self._vitals.mark(),
            self._vitals.spell(slot, self._kinds(slot)),
            (getattr(before, "card", {}), getattr(model, "card", {})),
        )
        watched.longest_s = 0.0
        done = self._exchange(recognition, slot, path, model, None if back else change)
        await asyncio.shield(done)
        await self._next_frames(watched)
        figures: dict[str, float | int | str] = {
            "gap_ms": round(1e3 * watched.longest_s, 1),
            "usual_gap_ms": round(1e3 * watched.usual_s, 1),
            "load_gap_ms": round(1e3 * load_gap_s, 1),
            "load_s": round(change.at_s - began_s, 2),
        }
        _log.info("model_installed", slot=slot, model=model.name, before=before.name, way_back=back, **figures)
        return figures

    def _exchange(
        self, recognition: Recognition, slot: str, path: Path | None, model: Model, change: Change | None
    ) -> asyncio.Future[None]:
        """The change and the books about it at once, so that nobody who gives up in between finds them apart.

        change: for the probation that follows; None: this is the way back.
        """
        before, before_path = recognition.slots[slot], recognition.path(slot)
        done = recognition.swap(slot, model)
        self._spares.pop(slot, None)
        self._changes.pop(slot, None)
        if change is None:
            done.add_done_callback(lambda _: self._close(before))
        else:
            self._spares[slot], self._changes[slot] = _Spare(before_path, before), change
        self._note_path(slot, path)
        return done

    def _note_path(self, slot: str, path: Path | None) -> None:
        self.paths.pop(slot, None)
        if path is not None:
            self.paths[slot] = path
        self._ports.health.clear_reason(_left_aside(slot))

    async def _settled(self, model: Model, watched: FrameGaps, ready: Ready | None) -> None:
        """The loading is over, also for the cameras, and nothing has come up meanwhile."""
        try:
            await self._next_frames(watched, SETTLE_FRAMES)
            self._waits = True
            if ready is not None:
                await ready()
        except BaseException:
            self._close(model)
            raise
        finally:
            self._waits = False

    def _bundles(self, slot: str, path: Path | None) -> set[Path | None]:
        """Where a model that is to serve may have been loaded from."""
        if path is not None:
            return {path}
        config = self._ports.config()
        if slot == POSE_SLOT:
            return {one for one in (config.pose.model, config.pose.cpu_model) if one is not None}
        return {config.services[slot.partition("/")[2]].model}

    async def _next_frames(self, watched: FrameGaps, count: int = 1) -> None:
        """Until every camera that delivers has delivered `count` frames more."""
        cameras, had = self._vitals.streaming(), watched.frames.copy()
        deadline_s = asyncio.get_running_loop().time() + NEXT_FRAME_S
        while any(watched.frames[name] < had[name] + count for name in cameras):
            if asyncio.get_running_loop().time() > deadline_s:
                return
            await asyncio.sleep(0.01)

    async def _load(
        self, recognition: Recognition, slot: str, path: Path | None, tell: Tell, *, threads: int | None = None
    ) -> Model:
        """Loaded, and with the engine that the configuration wants for it. Raises as `Recognition.load`."""
        tell("loading", 0.0)
        served_by_engine = _serves(recognition.upgrades[slot])
        model = await recognition.load(slot, path, threads=threads)
        try:
            while (progress := getattr(model, "upgrade", None)) is not None and progress.state in _UNDER_WAY:
                share = progress.elapsed_s / (progress.elapsed_s + 60 * ENGINE_MINUTES)  # comes ever nearer to 1
                tell(f"engine {progress.state.value} {progress.detail}".strip(), share)
                await asyncio.sleep(LOOK_S)
            if served_by_engine:
                _need_engine(model, progress)
        except BaseException:
            self._close(model)
            raise
        return model

    # --- afterwards ---------------------------------------------------------------------------------------------------

    async def watch(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """See `Trials`."""
        slot = candidate.release.slot

        def since(at_s: float | None) -> probation.Spell:
            return self._vitals.spell(slot, self._kinds(slot), at_s)

        change = self._changes.get(slot) or Change(self._vitals.mark(), since(None))
        if candidate.back:  # what was raised before is no fault of its own; nothing else of the past counts
            change = Change(change.at_s, probation.Spell(change.before.seconds, change.before.reasons))
        outcome = await run_probation(
            self._vitals, candidate, self._ports.config(), change,
            since=lambda: since(change.at_s), frames=lambda: self._frames_for(slot), tell=tell,
        )  # fmt: skip
        if not isinstance(outcome, Refusal):
            self.let_go(slot)
        return outcome

    def _frames_for(self, slot: str) -> bool:
        """Whether a camera delivers that the slot's model looks at: a classifier's is one that its service watches."""
        service, streaming = slot.partition("/")[2], self._vitals.streaming()
        return any(
            camera.id in streaming and (not service or camera.services is None or service in camera.services)
            for camera in self._ports.config().cameras
        )

    def _kinds(self, slot: str) -> frozenset[str]:
        return probation.kinds_of(slot, tuple(self._ports.config().services))

    # --- letting go ---------------------------------------------------------------------------------------------------

    def let_go(self, slot: str) -> None:
        """See `Trials`."""
        self._changes.pop(slot, None)
        if (spare := self._spares.pop(slot, None)) is not None:
            self._close(spare.model)

    def _close(self, model: Model) -> None:
        """Off the loop: freeing a model takes its time."""
        closing = asyncio.ensure_future(asyncio.to_thread(close_model, model))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _no_room(candidate: Candidate) -> Refusal | None:
    """A second copy beside the running model, where there is no memory for it, would cost the agent and not the candidate."""
    free = free_bytes() * MEMORY_SHARE
    needed = LEAST_MEMORY_BYTES + COPIES * candidate.release.unpacked_bytes
    if free >= needed:
        return None
    return Refusal("memory", f"it takes some {needed / 1e6:.0f} MB, half of the free memory are {free / 1e6:.0f} MB")


_UNDER_WAY = (EngineState.WAITING, EngineState.BUILDING, EngineState.LOADING)


def _serves(progress: EngineProgress | None) -> bool:
    return progress is not None and progress.state is EngineState.SERVING


class _NoEngineError(ModelError):
    """The model in use runs in an engine, and for this one there is none."""


def _need_engine(model: Model, progress: EngineProgress | None) -> None:
    if not _serves(progress):
        why = progress.detail if progress is not None else "none was built"
        raise _NoEngineError(f"{model.name}: no engine, and the model in use has one: {why}")


def _left_aside(slot: str) -> str:
    return reason_key(Reason.MODEL_FALLBACK, f"{slot}/update")


def _section(config: AgentConfig, slot: str) -> dict[str, object]:
    part = config.pose if slot == POSE_SLOT else config.services[slot.partition("/")[2]]
    return part.model_dump(mode="json")


def _refusal(error: RecognizerError) -> Refusal:
    match error:
        case GoldenError():
            reason = "golden"
        case _NoEngineError():
            reason = "slower"
        case DeviceMemoryError():
            reason = "memory"
        case ModelError() | ConfigError() | TrustError():
            reason = "contract"
        case FatalError():
            reason = "crash"
        case _:
            raise error
    return Refusal(reason, clean(str(error)))
