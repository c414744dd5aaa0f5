"""Closed-loop degradation with hysteresis: how much to slow down, from load and heat. Pure.

Each step of `LADDER` costs less than the one before. A signal above its high mark for `step_down_after_s` goes one step
down; every signal below its low mark for `step_up_after_s` goes one step up; in between nothing moves. A GPU at its
critical temperature goes down at once. At most one step per `interval_s`.

Going up and having to come down again soon is a relapse: each one doubles the wait for the next step up (to at most
`MAX_PATIENCE` times), so that a load which sits between two steps does not swing for ever. Back at step 0 for a
while, the patience is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.config.schema import GovernorConfig, WindowConfig

_NS_PER_S = 1_000_000_000
MAX_PATIENCE = 8
CRITICAL_MARGIN_C = 7.0
"""Critical = the GPU's own slow-down threshold where it is known, else this far above the high mark."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rung. The agent applies it to what is configured; it never makes anything faster.

    max_fps: cap on frames per second and camera, None = as configured. stride_factor: multiplies the classification
    stride, as far as `stride` allows. picture_scale: share of its configured sides at which the pose model sees a picture, where
    the model allows it. paused_priorities: how many of the lowest distinct camera priorities pause; the highest never does.
    """

    max_fps: float | None
    stride_factor: int
    picture_scale: float
    paused_priorities: int

    def camera_fps(self, configured_fps: float) -> float:
        """Cap in frames/s for a camera configured with `configured_fps`; 0 means no cap in both."""
        if self.max_fps is None:
            return configured_fps
        return min(configured_fps, self.max_fps) if configured_fps > 0 else self.max_fps

    def stride(self, window: WindowConfig, silence_s: float, *, usual_fps: float, fps: float) -> int:
        """Time steps between two windows of a service whose rules wait `silence_s` for a verdict.

        usual_fps, fps: frames/s of the camera where nothing slows it, and under this step. Verdicts as far apart as `silence_s`
        would end each incident and each run of alerts, so they get no farther apart than half of it, or than what is configured.
        """
        longest_s = max(silence_s / 2, window.stride / (window.rate_hz or usual_fps))
        return max(1, min(window.stride * self.stride_factor, round(longest_s * (window.rate_hz or fps))))

    def paused_cameras(self, priorities: Mapping[str, int]) -> frozenset[str]:
        """The cameras that pause, given the priority (higher = more important) of each one that shows something or pauses."""
        levels = sorted(set(priorities.values()))[:-1][: self.paused_priorities]
        return frozenset(camera for camera, priority in priorities.items() if priority in levels)


_ALL = 1 << 16

LADDER: tuple[Step, ...] = (
    Step(max_fps=None, stride_factor=1, picture_scale=1.0, paused_priorities=0),
    Step(max_fps=None, stride_factor=2, picture_scale=1.0, paused_priorities=0),
    Step(max_fps=15.0, stride_factor=2, picture_scale=1.0, paused_priorities=0),
    Step(max_fps=10.0, stride_factor=3, picture_scale=1.0, paused_priorities=0),
    Step(max_fps=10.0, stride_factor=3, picture_scale=0.67, paused_priorities=0),
    Step(max_fps=5.0, stride_factor=3, picture_scale=0.67, paused_priorities=0),
    Step(max_fps=5.0, stride_factor=3, picture_scale=0.67, paused_priorities=1),
    Step(max_fps=5.0, stride_factor=3, picture_scale=0.67, paused_priorities=_ALL),
)
"""Cheapest loss first, as far as it was measured (ADR 12): fewer verdicts, fewer frames down to the ten a second that fights need, smaller
pictures, fewer frames still, fewer cameras."""


@dataclass(frozen=True, slots=True)
class GpuHeat:
    """One GPU, degrees Celsius. critical_c: its own slow-down threshold, None = it names none."""

    temperature_c: float
    critical_c: float | None = None


@dataclass(frozen=True, slots=True)
class GovernorSample:
    """What was measured; None = not known, and then ignored.

    cpu, memory, gpu_memory: fraction in use 0-1 (cpu of all cores). gpus: those that say how hot they are.
    gpu_thermal_throttle: the driver slows the clocks for heat.
    """

    cpu: float | None = None
    memory: float | None = None
    gpu_memory: float | None = None
    gpus: tuple[GpuHeat, ...] = ()
    gpu_thermal_throttle: bool | None = None

    @property
    def gpu_temperature_c(self) -> float | None:
        """Of the hottest."""
        return max((gpu.temperature_c for gpu in self.gpus), default=None)


@dataclass(frozen=True, slots=True)
class Decision:
    """step: index in `LADDER`. changed: it moved in this update. reasons: why it is not lower, or why it moved."""

    step: int
    changed: bool
    reasons: tuple[str, ...]

    @property
    def effect(self) -> Step:
        """What the step asks for."""
        return LADDER[self.step]


@dataclass(frozen=True, slots=True)
class Hold:
    """Somebody's wish for a step of at least `step` until `until_ns` (monotonic)."""

    step: int
    until_ns: int
    who: str

    def over(self, decision: Decision, before: int, now_ns: int) -> Decision:
        """`decision` with the wish fulfilled. before: the step that was in force until now."""
        if self.step <= decision.step or now_ns >= self.until_ns:
            return Decision(decision.step, decision.step != before, decision.reasons)
        return Decision(self.step, self.step != before, (f"held by {self.who}", *decision.reasons))


@dataclass(frozen=True, slots=True)
class _Signal:
    """One measured value against its marks."""

    name: str
    value: float
    high: float
    low: float
    unit: str

    def text(self, mark: float) -> str:
        sign = ">" if self.value > mark else "<="
        digits = 0 if self.unit else 2
        return f"{self.name} {self.value:.{digits}f}{self.unit} {sign} {mark:.{digits}f}{self.unit}"


class Governor:
    """Holds the step between updates. Time comes in, decisions come out."""

    def __init__(self, config: GovernorConfig) -> None:
        self._config = config
        self._step = 0
        self._high_since_ns: int | None = None
        self._low_since_ns: int | None = None
        self._moved_ns: int | None = None
        self._up_ns: int | None = None
        self._patience = 1

    @property
    def step(self) -> int:
        """Index in `LADDER`."""
        return self._step

    def reconfigure(self, config: GovernorConfig) -> None:
        """Take new marks and times; the step and the running waits stay. Disabling lets go at the next update."""
        self._config = config

    def update(self, sample: GovernorSample, now_ns: int) -> Decision:
        """Decide from `sample` at `now_ns` (monotonic, never going back)."""
        if not self._config.enabled:
            changed, self._step = self._step != 0, 0
            return Decision(0, changed, ("disabled",) if changed else ())
        signals = self._signals(sample)
        high = [signal for signal in signals if signal.value > signal.high]
        # With nothing measured there is nothing to hold on to: the agent must not stay slow for a probe that died.
        low = all(signal.value < signal.low for signal in signals) and not sample.gpu_thermal_throttle
        reasons = self._reasons(high, sample)
        self._time_marks(bool(reasons), low, now_ns)
        critical = self._critical(sample)
        if self._moved_ns is not None and now_ns - self._moved_ns < self._config.interval_s * _NS_PER_S:
            return Decision(self._step, changed=False, reasons=reasons)
        if critical and self._step < len(LADDER) - 1:
            return self._move(1, now_ns, (critical, *reasons))
        if self._waited(self._high_since_ns, self._config.step_down_after_s, now_ns) and self._step < len(LADDER) - 1:
            for_s = self._config.step_down_after_s
            return self._move(1, now_ns, tuple(f"{reason} for {for_s:g} s" for reason in reasons))
        up_after_s = self._config.step_up_after_s * self._patience
        if self._waited(self._low_since_ns, up_after_s, now_ns):
            if self._step > 0:
                return self._move(-1, now_ns, (f"all signals low for {up_after_s:g} s",))
            self._patience = 1
        return Decision(self._step, changed=False, reasons=reasons)

    def _signals(self, sample: GovernorSample) -> list[_Signal]:
        config = self._config
        pairs = (
            ("cpu", sample.cpu, config.cpu_high, config.cpu_low, ""),
            ("memory", sample.memory, config.memory_high, config.memory_low, ""),
            ("gpu memory", sample.gpu_memory, config.gpu_memory_high, config.gpu_memory_low, ""),
            (
                "gpu temperature",
                sample.gpu_temperature_c,
                config.gpu_temperature_high_c,
                config.gpu_temperature_low_c,
                " C",
            ),
        )
        return [_Signal(name, value, high, low, unit) for name, value, high, low, unit in pairs if value is not None]

    @staticmethod
    def _reasons(high: list[_Signal], sample: GovernorSample) -> tuple[str, ...]:
        texts = [signal.text(signal.high) for signal in high]
        if sample.gpu_thermal_throttle:
            texts.append("gpu throttles for heat")
        return tuple(texts)

    def _critical(self, sample: GovernorSample) -> str:
        """Each GPU against its own threshold: one that is hot and may be says nothing about another that may not."""
        usual_c = self._config.gpu_temperature_high_c + CRITICAL_MARGIN_C
        for gpu in sample.gpus:
            limit_c = usual_c if gpu.critical_c is None else gpu.critical_c
            if gpu.temperature_c >= limit_c:
                return f"gpu temperature {gpu.temperature_c:.0f} C >= critical {limit_c:.0f} C"
        return ""

    def _time_marks(self, high: bool, low: bool, now_ns: int) -> None:
        self._high_since_ns = (self._high_since_ns if self._high_since_ns is not None else now_ns) if high else None
        self._low_since_ns = (self._low_since_ns if self._low_since_ns is not None else now_ns) if low else None

    @staticmethod
    def _waited(since_ns: int | None, seconds: float, now_ns: int) -> bool:
        return since_ns is not None and now_ns - since_ns >= seconds * _NS_PER_S

    def _move(self, by: int, now_ns: int, reasons: tuple[str, ...]) -> Decision:
        if by > 0:
            window_ns = 2 * self._config.step_up_after_s * _NS_PER_S
            if self._up_ns is not None and now_ns - self._up_ns < window_ns:
                self._patience = min(self._patience * 2, MAX_PATIENCE)
            self._up_ns = None
        else:
            self._up_ns = now_ns
        self._step += by
        self._moved_ns = now_ns
        # The next step needs its own full wait under the new conditions.
        self._high_since_ns = now_ns if self._high_since_ns is not None else None
        self._low_since_ns = now_ns if self._low_since_ns is not None else None
        return Decision(self._step, changed=True, reasons=reasons)
