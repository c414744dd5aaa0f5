"""Sliding windows over a camera's tracks: from `Tracks` per frame to a classifier's tensor. Pure NumPy, no clock.

One `TrackBuffer` per camera holds the key points once (two, where only some services have a `rate_hz`); each service plans its own
windows over it (length, stride, rate, who is in). The steps of one window: quality filter, choice of M people by the service's score, optional resampling to a
fixed rate, normalisation to -1..1 of the picture, zeros for what was not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from agent.action.change import RESTLESS, PictureChange
from agent.action.history import BoolArray, TrackBuffer, TrackHistory
from agent.action.selection import Candidates
from agent.config.schema import ServiceConfig, WindowConfig
from agent.types import NUM_KEYPOINTS, FloatArray, ImageArray, IntArray, People, Tracks, Window

MAX_FPS = 64.0
"""Frames a second that the buffer has room for: 60, and what clocks differ by. Of a faster camera services with a `rate_hz` do not see
all."""
BURST = 30
"""Frames that may come at once without any being left out: what was late comes together."""
MAX_HOLE_S = 0.4
"""Resampling bridges holes in a track up to this; the person is absent in longer ones. A camera that sees less often than that has
no holes between its frames, see `bridged_ns`."""
SLOWEST_HZ = 1.0
"""Of a camera that sees less often, nobody can say how people moved from one frame to the next."""
EDGE_SHARE = 0.05
"""Of the picture's width and height: whose joint is so near to its border is at the edge,"""
HALF_OUT = NUM_KEYPOINTS // 2
"""... and of whom so many joints or fewer are seen there is about to leave; who falls at the edge mostly shows more."""
WITHOUT_CHANGE = 3
"""Channels of a window that says nothing of the picture: x, y, score."""
RESTART_AFTER_S = 3.0
"""After so long without a frame the past is dropped: what came before and after a reconnect is not one movement."""


class ActionWindows:
    """The windows of one camera for all its services.

    Deterministic: the same frames give the same windows, whatever the order of people within a frame. A window in which
    nobody passes the quality filter is not emitted; there is nothing to classify.
    """

    def __init__(self, camera_id: str, services: Mapping[str, ServiceConfig], *, max_tracks: int = 256) -> None:
        self._plans = {name: _Plan(name, service) for name, service in services.items()}
        self._order = {name: number for number, name in enumerate(self._plans)}
        rated = [plan for plan in self._plans.values() if plan.window.rate_hz]
        others = [plan for plan in self._plans.values() if not plan.window.rate_hz]
        self._pasts = [_Past(camera_id, plans, max_tracks) for plans in (rated, others) if plans]

    @property
    def refused_tracks(self) -> int:
        """Tracks left out so far because more than `max_tracks` were in a buffer at once."""
        return max((past.buffer.refused for past in self._pasts), default=0)

    def push(self, tracks: Tracks, image: ImageArray | None = None, people: People | None = None) -> list[Window]:
        """Take one frame's tracks; returns the windows that are due with it, in the order of the services.

        image, people: the frame itself and all that were reported in it, for services that look at its change; without them
        nothing changes.

        A frame whose time does not advance is ignored, and so is for services with a `rate_hz` what comes faster than `MAX_FPS`. A
        step back in time, a hole of `RESTART_AFTER_S` or another frame size starts anew.
        """
        return self._sorted(window for past in self._pasts for window in past.push(tracks, image, people))

    def flush(self) -> list[Window]:
        """At the end of a file: the windows over what came since the last ones, where the service asks for them.

        A service gets one when half a stride or more has come since its last window, or when it had none yet; it is
        `partial` when the source was shorter than the window. The buffer is empty afterwards.
        """
        return self._sorted(window for past in self._pasts for window in past.flush())

    def reset(self) -> None:
        """Forget all frames; the next window needs a full length again."""
        for past in self._pasts:
            past.reset()

    def set_stride(self, service: str, stride: int) -> None:
        """Time steps between two windows of `service`, from now on. Raises KeyError for an unknown service."""
        if stride < 1:
            raise ValueError(f"expected a stride of 1 or more, got {stride}")
        self._plans[service].stride = stride

    def _sorted(self, windows: Iterable[Window]) -> list[Window]:
        return sorted(windows, key=lambda window: (window.partial, self._order[window.service]))


class _Past:
    """The frames that services look back on together: all of those with a rate, or all of those without.

    Apart, since what comes too fast for the buffer is left out for the former, and is a time step of its own for the latter.
    """

    def __init__(self, camera_id: str, plans: Sequence[_Plan], max_tracks: int) -> None:
        self._camera_id = camera_id
        self._plans = plans
        looks = any(plan.window.channels > WITHOUT_CHANGE for plan in plans)
        self._change = PictureChange() if looks else None
        self._thinning = _Thinning() if plans[0].window.rate_hz else None
        self._newest_utc: datetime | None = None
        self.buffer = TrackBuffer(max(plan.capacity for plan in plans), max_tracks, change=looks)

    def push(self, tracks: Tracks, image: ImageArray | None, people: People | None) -> list[Window]:
        """As `ActionWindows`."""
        stamp = tracks.stamp
        if len(self.buffer):
            advance_ns = stamp.t_mono_ns - self.buffer.newest_ns
            if advance_ns == 0:
                return []
            changed = (stamp.width, stamp.height) != self.buffer.frame_size
            if advance_ns < 0 or advance_ns > RESTART_AFTER_S * 1e9 or changed:
                self.reset()
        if self._thinning is not None and not self._thinning.takes(stamp.t_mono_ns):
            return []
        change = None
        if self._change is not None and image is not None and people is not None:
            change = self._change.push(stamp.t_mono_ns, image, people.keypoints)
        self.buffer.push(tracks, change)
        self._newest_utc = stamp.t_utc
        due = [plan for plan in self._plans if plan.advance(stamp.t_mono_ns)]
        return self._make(due, partial=False)

    def flush(self) -> list[Window]:
        """As `ActionWindows`."""
        due = [plan for plan in self._plans if plan.wants_rest()]
        full = [plan for plan in due if plan.full]
        windows = self._make(full, partial=False) + self._make([plan for plan in due if not plan.full], partial=True)
        self.reset()
        return windows

    def reset(self) -> None:
        """As `ActionWindows`."""
        self.buffer.reset()
        if self._change is not None:
            self._change.reset()
        if self._thinning is not None:
            self._thinning.reset()
        for plan in self._plans:
            plan.reset()

    def _make(self, due: list[_Plan], *, partial: bool) -> list[Window]:
        if not due or self._newest_utc is None:
            return []
        made = []
        shared: dict[_Span, Candidates] = {}
        for plan in due:
            if plan.span not in shared:
                shared[plan.span] = plan.span.candidates(self.buffer)
            candidates = shared[plan.span]
            if len(candidates) == 0:
                continue
            chosen = plan.choose(candidates)
            made.append(
                Window(
                    camera_id=self._camera_id,
                    service=plan.service,
                    tensor=window_tensor(chosen, plan.window),
                    t_start_ns=int(chosen.t_ns[0]),
                    t_end_ns=self.buffer.newest_ns,
                    t_end_utc=self._newest_utc,
                    track_ids=tuple(chosen.track_ids.tolist()),
                    partial=partial,
                )
            )
        return made


class _Thinning:
    """Says which frames to take, so that there are at most `BURST` more of them in any stretch of time than `MAX_FPS` allows."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._left = float(BURST)
        self._t_ns: int | None = None

    def takes(self, t_ns: int) -> bool:
        """Of frames in ascending order."""
        if self._t_ns is not None:
            self._left = min(float(BURST), self._left + (t_ns - self._t_ns) * 1e-9 * MAX_FPS)
        self._t_ns = t_ns
        taken = self._left >= 1.0
        if taken:
            self._left -= 1.0
        return taken


@dataclass(frozen=True, slots=True)
class _Span:
    """What decides which tracks a window looks at; services that agree in it share the work."""

    length: int
    rate_hz: float
    min_track_frames: int
    min_mean_score: float
    min_joints: int
    forget_left_s: float

    def candidates(self, buffer: TrackBuffer) -> Candidates:
        """The tracks of the window that ends with the newest frame, without those unfit to judge by."""
        if self.rate_hz:
            history = buffer.history(buffer.newest_ns - round((self.length - 1) * 1e9 / self.rate_hz))
        else:
            history = buffer.last(self.length)
        if self.min_joints:
            history = history.without_scraps(self.min_joints)
        return Candidates(history.take(self._fit(history)))

    def _fit(self, history: TrackHistory) -> BoolArray:
        """(N,) bool: seen for `min_track_frames` time steps, with `min_mean_score` over joints and own frames, and not left."""
        frames = history.seen.sum(axis=1)
        steps_a_frame = 1.0
        if self.rate_hz and len(history.t_ns) > 1:
            seconds = float(history.t_ns[-1] - history.t_ns[0]) * 1e-9
            steps_a_frame = seconds / (len(history.t_ns) - 1) * self.rate_hz
        mean_score = history.keypoints[..., 2].sum(axis=(1, 2)) / np.maximum(frames * NUM_KEYPOINTS, 1)
        fit: BoolArray = (np.round(frames * steps_a_frame) >= self.min_track_frames) & (
            mean_score >= self.min_mean_score
        )
        return fit & ~_left(history, self.forget_left_s) if self.forget_left_s else fit


class _Plan:
    """When one service's next window is due, and what is in it."""

    def __init__(self, service: str, config: ServiceConfig) -> None:
        self.service = service
        self.stride = config.window.stride
        self.window = config.window
        self.span = _Span(
            config.window.length,
            config.window.rate_hz,
            config.window.min_track_frames,
            config.window.min_mean_score,
            config.window.min_joints,
            config.window.forget_left_s,
        )
        self._weights = config.selection
        self._step_ns = 1e9 / config.window.rate_hz if config.window.rate_hz else 0.0
        self.reset()

    @property
    def capacity(self) -> int:
        """Frames of the past a window needs."""
        if not self._step_ns:
            return self.window.length
        return math.ceil(self.window.length * self._step_ns * 1e-9 * MAX_FPS) + BURST + 2

    @property
    def full(self) -> bool:
        """Whether a whole window has been seen since the last reset."""
        return self._elapsed(self._first) >= self.window.length - 1.5

    def reset(self) -> None:
        self._frames = 0
        self._now_ns = 0
        self._first: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None

    def advance(self, t_ns: int) -> bool:
        """Count a frame; whether a window is due with it."""
        self._frames += 1
        self._now_ns = t_ns
        if self._first is None:
            self._first = (self._frames, t_ns)
        # Half a step of tolerance: frame times jitter, and a window late by a frame every time would drift.
        due = self.full and (self._last is None or self._elapsed(self._last) >= self.stride - 0.5)
        if due:
            self._last = (self._frames, t_ns)
        return due

    def wants_rest(self) -> bool:
        """Whether a file that ends now is owed another window."""
        if not self.window.partial_at_end or self._first is None:
            return False
        return self._last is None or self._elapsed(self._last) >= self.stride / 2

    def choose(self, candidates: Candidates) -> TrackHistory:
        """The people of the window, best first."""
        return candidates.history.take(candidates.select(self._weights, self.window.people))

    def _elapsed(self, since: tuple[int, int] | None) -> float:
        """Time steps since a frame: frames, or time over the step when there is a rate."""
        if since is None:
            return 0.0
        frames, t_ns = since
        return (self._now_ns - t_ns) / self._step_ns if self._step_ns else self._frames - frames


def _left(history: TrackHistory, after_s: float) -> BoolArray:
    """(N,) bool: last seen half out of the picture, `after_s` before the newest frame or earlier."""
    last = history.seen.shape[1] - 1 - history.seen[:, ::-1].argmax(axis=1)
    gone = history.t_ns[-1] - history.t_ns[last] >= after_s * 1e9
    joints = history.keypoints[np.arange(len(history)), last]
    place = joints[..., :2] / np.array([history.width, history.height], np.float32)
    shown = joints[..., 2] > 0
    at_edge = ((np.abs(place - 0.5) >= 0.5 - EDGE_SHARE).any(axis=2) & shown).any(axis=1)
    left: BoolArray = gone & at_edge & (shown.sum(axis=1) <= HALF_OUT)
    return left


def window_tensor(chosen: TrackHistory, window: WindowConfig) -> FloatArray:
    """(M, T, V, C) float32 of the tracks in `chosen`, in their order; at most M of them, zeros for people not there.

    The last time step is the newest frame; a history shorter than the window leaves zeros in front, as an empty scene
    would. Without a rate each frame is one step; with one, step i is at `newest - (T - 1 - i) / rate_hz`.
    x, y: -1..1 over the picture (PreNormalize2D of PYSKL: (x - w / 2) / (w / 2)), score as third channel; joints with a
    score of 0.01 or less are zeros, set after normalising, so (0, 0) with score 0 is "not seen" and not the middle.
    The fourth channel is of the frame and not of the tracks: row m is the m-th most restless of all people in it, 0 to 1 a joint.
    """
    channels = max(WITHOUT_CHANGE, window.channels)
    tensor = np.zeros((window.people, window.length, NUM_KEYPOINTS, channels), np.float32)
    skeletons, change = tensor[..., :3], chosen.change if window.channels > WITHOUT_CHANGE else None
    if not window.rate_hz:
        frames = min(len(chosen.t_ns), window.length)
        skeletons[: len(chosen), window.length - frames :] = chosen.keypoints[: window.people, -frames:]
        if change is not None:
            tensor[..., 3][:RESTLESS, window.length - frames :] = _by_row(change[-frames:], window)
    else:
        hole_ns = bridged_ns(chosen.t_ns)
        grid = chosen.t_ns[-1] - np.round(np.arange(window.length - 1, -1, -1) * 1e9 / window.rate_hz).astype(np.int64)
        for row in range(min(len(chosen), window.people)):
            skeletons[row] = resample(chosen.t_ns, chosen.keypoints[row], chosen.seen[row], grid, hole_ns)
        if change is not None:
            nearest, near = nearest_frames(chosen.t_ns, grid, hole_ns)
            tensor[..., 3][:RESTLESS, near] = _by_row(change[nearest[near]], window)
    half = np.array([chosen.width / 2, chosen.height / 2], np.float32)
    missing = skeletons[..., 2] <= 0
    skeletons[..., :2] = (skeletons[..., :2] - half) / half
    skeletons[missing] = 0.0
    return np.ascontiguousarray(tensor[..., : window.channels])


def _by_row(change: FloatArray, window: WindowConfig) -> FloatArray:
    """(F, RESTLESS, 17) -> (RESTLESS or M, F, 17), whichever is less."""
    return change.transpose(1, 0, 2)[: window.people]


def nearest_frames(t_ns: IntArray, grid_ns: IntArray, hole_ns: float) -> tuple[IntArray, BoolArray]:
    """(T,) index of the frame nearest to each time, and whether it speaks for it: in no hole, and not before the first."""
    after = np.clip(np.searchsorted(t_ns, grid_ns), 1, max(len(t_ns) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(t_ns) - 1)
    nearest = np.where(grid_ns - t_ns[before] <= t_ns[after] - grid_ns, before, after)
    half_step = (grid_ns[-1] - grid_ns[0]) / max(len(grid_ns) - 1, 1) / 2
    return nearest, (np.abs(grid_ns - t_ns[nearest]) <= hole_ns / 2) & (grid_ns >= t_ns[0] - half_step)


def bridged_ns(t_ns: IntArray) -> float:
    """The longest hole that is bridged between frames at `t_ns` (F,): `MAX_HOLE_S`, or one and a half of the usual distance of
    frames where they are farther apart, down to `SLOWEST_HZ`."""
    usual_ns = float(np.median(np.diff(t_ns))) if len(t_ns) > 1 else 0.0
    return max(MAX_HOLE_S * 1e9, 1.5 * min(usual_ns, 1e9 / SLOWEST_HZ))


def resample(
    t_ns: IntArray, keypoints: FloatArray, seen: BoolArray, grid_ns: IntArray, hole_ns: float = MAX_HOLE_S * 1e9
) -> FloatArray:
    """One track's key points at other times: (F, 17, 3) at `t_ns` (F,) -> (T, 17, 3) at `grid_ns` (T,), both ascending.

    Linear between neighbouring frames that show the person, over holes up to `hole_ns`; outside, and in longer holes,
    the nearest frame within half a grid step, else zeros. A joint seen in only one of the two frames keeps its place and
    fades with its weight in the score.
    """
    index = np.flatnonzero(seen)
    if not len(index):
        return np.zeros((len(grid_ns), *keypoints.shape[1:]), np.float32)
    times, joints = t_ns[index], keypoints[index]
    after = np.searchsorted(times, grid_ns, side="left")
    right = np.minimum(after, len(times) - 1)
    left = np.maximum(after - 1, 0)
    span = times[right] - times[left]
    inside = (after > 0) & (after < len(times)) & (span <= hole_ns)
    to_left = np.abs(grid_ns - times[left])
    to_right = np.abs(times[right] - grid_ns)
    weight = np.where(inside, to_left / np.maximum(span, 1), to_right < to_left).astype(np.float32)[:, None]
    half_step = (grid_ns[-1] - grid_ns[0]) / max(len(grid_ns) - 1, 1) / 2
    present = inside | (np.minimum(to_left, to_right) <= half_step)
    one, other = joints[left], joints[right]
    share = (1 - weight) * (one[..., 2] > 0)
    other_share = weight * (other[..., 2] > 0)
    total = share + other_share
    out: FloatArray = one * share[..., None] + other * other_share[..., None]
    out[..., :2] /= np.maximum(total, 1e-6)[..., None]
    out[~(present[:, None] & (total > 0))] = 0.0
    return out
