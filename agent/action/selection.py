"""Who is in the window: a score per track from weighted components, each 0-1. Pure NumPy.

Lengths are in body sizes, never in px, so near and far people compare. A body size is 3.5 times the root mean square
distance of a person's seen joints from their mean, median over the window: about the height of somebody standing, and the
same for somebody lying. A component that cannot be judged, because the joints it needs were not seen, is 0.

| component     | 1 means |
|---------------|---------|
| movement      | joints move at 1.5 body sizes a second or more, on average over seen joints and frames |
| interaction   | in touch with one other person all the time: 1 - distance / 1.5 body sizes, mean over the own frames |
| position      | in the middle of the picture; 0 in a corner |
| persistence   | seen in every frame of the window |
| height_change | the body sank by half a body size or more below its highest point so far |
| posture_angle | the trunk (hips to shoulders) lies flat for a quarter of the time or more; 0 upright |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from agent.action.history import MISSING_SCORE, BoolArray, TrackHistory
from agent.config.schema import Component
from agent.types import FloatArray

BODY_SPREADS = 3.5
FULL_SPEED = 1.5  # body sizes a second
TOUCH_RANGE = 1.5  # body sizes
FULL_DROP = 0.5  # body sizes
_MAX_PAIR_FRAMES = 25  # distances change slowly: pairs are looked at in at most this many frames of the window
_SHOULDERS, _HIPS = [5, 6], [11, 12]


class Candidates:
    """Tracks that may be in a window, with what their components share; each component is computed once, when asked for.

    Services with the same window share one object, so the second service costs only the sums.
    """

    def __init__(self, history: TrackHistory) -> None:
        self.history = history
        self._components: dict[Component, FloatArray] = {}
        self.xy = history.keypoints[..., :2]
        self.valid: BoolArray = np.greater(history.keypoints[..., 2], MISSING_SCORE)
        self.t_s = (history.t_ns - history.t_ns[:1]).astype(np.float64) * 1e-9
        joints = self.valid.sum(axis=2)
        self.posed: BoolArray = np.greater(joints, 0)
        self.centre = self.xy.sum(axis=2) / np.maximum(joints, 1)[..., None].astype(np.float32)  # unseen joints are 0
        away = (self.xy - self.centre[:, :, None]) * self.valid[..., None]
        spread = np.sqrt(np.einsum("nfjc,nfjc->nf", away, away) / np.maximum(joints, 1))
        self.size = np.maximum(BODY_SPREADS * _masked_quantile(spread, self.posed, 0.5), 1.0)

    def __len__(self) -> int:
        return len(self.history)

    def component(self, name: Component) -> FloatArray:
        """(N,) float32 0-1."""
        if name not in self._components:
            self._components[name] = COMPONENTS[name](self)
        return self._components[name]

    def score(self, weights: Mapping[Component, float]) -> FloatArray:
        """(N,) float32 0-1: the weighted mean of the components, rounded to 1e-4 so that noise in the sums breaks no ties."""
        total = sum(weights.values())
        if not total > 0:
            raise ValueError("at least one selection weight must be above 0")
        score = np.zeros(len(self), np.float64)
        if len(self):
            for name, weight in weights.items():
                if weight > 0:
                    score += weight / total * self.component(name)
        return np.round(score, 4).astype(np.float32)

    def select(self, weights: Mapping[Component, float], count: int) -> NDArray[np.intp]:
        """Rows of the at most `count` tracks with the highest scores, best first; equal scores: lower track id first."""
        return np.lexsort((self.history.track_ids, -self.score(weights)))[:count]

    def middle_of(self, joints: list[int]) -> tuple[FloatArray, BoolArray]:
        """(N, F, 2) mean of the seen ones of `joints`, and (N, F) whether there is one."""
        count = self.valid[:, :, joints].sum(axis=2)
        total = self.xy[:, :, joints].sum(axis=2)
        return total / np.maximum(count, 1)[..., None].astype(np.float32), np.greater(count, 0)


def movement(body: Candidates) -> FloatArray:
    """Mean joint speed between neighbouring frames that both show the joint."""
    if len(body.t_s) < 2:
        return np.zeros(len(body.history), np.float32)
    both = body.valid[:, 1:] & body.valid[:, :-1]
    step = body.xy[:, 1:] - body.xy[:, :-1]
    length = np.sqrt(np.einsum("nfjc,nfjc->nfj", step, step))
    travelled = np.einsum("nfj,nfj,f->n", length, both, (1 / np.diff(body.t_s)).astype(np.float32))
    mean = travelled / np.maximum(both.sum(axis=(1, 2)), 1) / body.size
    return _unit(mean / FULL_SPEED)


def interaction(body: Candidates) -> FloatArray:
    """Nearness to the one person who is nearest over the window; 0 when alone."""
    people = len(body.history)
    if people < 2:
        return np.zeros(people, np.float32)
    every = -(-len(body.t_s) // _MAX_PAIR_FRAMES)
    centre, posed = body.centre[:, ::every], body.posed[:, ::every]
    gap = centre[:, None] - centre[None, :]
    distance = np.sqrt(np.einsum("ijfc,ijfc->ijf", gap, gap))
    scale = (body.size[:, None] + body.size[None, :])[..., None] / 2
    near = np.clip(1 - distance / scale / TOUCH_RANGE, 0, 1) * (posed[:, None] & posed[None, :])
    mean = near.sum(axis=2) / np.maximum(posed.sum(axis=1), 1)[:, None]
    np.fill_diagonal(mean, 0)
    return _unit(mean.max(axis=1))


def position(body: Candidates) -> FloatArray:
    """Nearness of the mean centre to the middle of the picture."""
    count = body.posed.sum(axis=1)
    mean = (body.centre * body.posed[..., None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    half = np.array([body.history.width, body.history.height]) / 2
    away = np.hypot(*((mean - half) / half).T) / np.sqrt(2)
    return _unit(np.where(count > 0, 1 - away, 0))


def persistence(body: Candidates) -> FloatArray:
    """Share of the window's frames that show the track."""
    return _unit(body.history.seen.mean(axis=1))


def height_change(body: Candidates) -> FloatArray:
    """Greatest sinking of the trunk (hips and shoulders) below its highest point so far in the window."""
    middle, some = body.middle_of(_SHOULDERS + _HIPS)
    y = np.where(some, middle[..., 1], np.inf)
    highest = np.minimum.accumulate(y, axis=1)
    drop = np.where(some, np.where(some, y, 0) - np.where(np.isfinite(highest), highest, 0), 0)
    return _unit(drop.max(axis=1) / body.size / FULL_DROP)


def posture_angle(body: Candidates) -> FloatArray:
    """Trunk against the vertical, 90 degrees = 1; the upper quartile over frames that show shoulders and hips."""
    shoulders, have_shoulders = body.middle_of(_SHOULDERS)
    hips, have_hips = body.middle_of(_HIPS)
    trunk = shoulders - hips
    angle = np.arctan2(np.abs(trunk[..., 0]), np.maximum(-trunk[..., 1], 0)) / (np.pi / 2)
    whole = have_shoulders & have_hips & (np.abs(trunk).sum(axis=-1) > 0)
    return _masked_quantile(angle, whole, 0.75)


COMPONENTS: Mapping[Component, Callable[[Candidates], FloatArray]] = {
    "movement": movement,
    "interaction": interaction,
    "position": position,
    "persistence": persistence,
    "height_change": height_change,
    "posture_angle": posture_angle,
}


def _unit(values: NDArray[np.floating]) -> FloatArray:
    inside: FloatArray = np.clip(values, 0, 1).astype(np.float32)
    return inside


def _masked_quantile(values: FloatArray, mask: BoolArray, q: float) -> FloatArray:
    """(N, F) -> (N,): the lower `q`-quantile of the masked values in each row, 0 for an empty row.

    np.nanquantile does the same at 30 times the cost and warns about empty rows.
    """
    count = mask.sum(axis=1)
    ordered = np.sort(np.where(mask, values, np.inf), axis=1)
    index = np.maximum(((count - 1) * q).astype(int), 0)
    picked = ordered[np.arange(len(values)), index]
    return np.where(count > 0, picked, 0).astype(np.float32)
