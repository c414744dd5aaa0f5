"""Solids on the picture: tapered capsules and ellipsoids, rasterised exactly per pixel with a depth buffer.

Every solid is a unit sphere (ellipsoid) or a swept disc with round ends (capsule) under a linear map. Around a solid the
perspective is linearised (affine camera), so that its outline is an ellipse or a tapered strip and each pixel inside gets
its point on the surface in closed form. All pixels of all solids are worked on at once: the arrays are long, the number
of NumPy calls does not depend on the number of people.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.simulation.camera import Array, Camera
from agent.types import FloatArray, IntArray

_NEAREST_M = 0.35
"""Solids nearer to the lens are left out: the linearised perspective would tear them."""
_MIN_HALF_WIDTH_PX = 0.35
PHASES = 3
"""Moments within the exposure; neighbouring rows see different ones, and a mean over 3 x 3 px makes motion blur of them."""
MOVING_PX = 0.5
"""Less drift than this during the exposure is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Solids:
    """K solids in the world. All arrays float32, m.

    start, end: (K, 3) ends of a capsule's axis; equal for ellipsoids (their centre).
    axes: (K, 3, 3) unit rows left, front, up; a capsule's `up` runs along its axis.
    radii: (K, 3) half widths at `start` along these axes; a capsule's third is the length of its round ends.
    taper: (K,) width at `end` as a share of that at `start`.
    drift_start, drift_end: (K, 3) how far the ends move during the exposure.
    owner: (K,) int64, row of the actor a solid belongs to, rising.
    """

    start: FloatArray
    end: FloatArray
    axes: FloatArray
    radii: FloatArray
    taper: FloatArray
    drift_start: FloatArray
    drift_end: FloatArray
    owner: IntArray

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def join(cls, parts: list[Solids]) -> Solids:
        """All of them in one, in order; at least one."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """K solids as the camera sees them.

    A pixel p has the coordinates across = inverse[0] @ (p - origin), along = inverse[1] @ (p - origin); along is clipped
    to [0, length] for t in 0-1, what is left over belongs to the round ends. boxes: (K, 4) xyxy px, exact, unclipped.
    basis: (K, 3, 3) rows: the surface point's unit coordinates (left, front, up) per s (across), e (end), c (towards
    the camera). depth_terms: (K, 3) m of depth per s, e, c. drift_px: (K, 2, 2) motion of start and end, px.
    """

    origin: FloatArray
    inverse: FloatArray
    length: FloatArray
    half_width: FloatArray
    half_width_slope: FloatArray
    end_ratio: FloatArray
    depth: FloatArray
    depth_slope: FloatArray
    depth_terms: FloatArray
    basis: FloatArray
    boxes: FloatArray
    drift_px: FloatArray
    seen: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """N points on solids' surfaces, one per solid and pixel, those outside the picture included.

    columns, rows: (N,) px; solid: (N,) index of the solid; s, e, c, t: (N,) float32 as in `Outlines`; depth: (N,) m.
    """

    columns: IntArray
    rows: IntArray
    solid: IntArray
    s: FloatArray
    e: FloatArray
    c: FloatArray
    t: FloatArray
    depth: FloatArray

    def take(self, index: IntArray) -> Fragments:
        """Those at `index`."""
        return Fragments(*(getattr(self, name).take(index) for name in self.__slots__))


def outline(solids: Solids, camera: Camera) -> Outlines:
    """Where `solids` appear to `camera`."""
    start, end = camera.to_camera(solids.start), camera.to_camera(solids.end)
    middle = (start + end) / 2
    jacobian = camera.jacobian(middle)
    ray = middle / np.maximum(np.linalg.norm(middle, axis=1, keepdims=True), 1e-6)
    axes = solids.axes @ camera.rotation.T
    capsule = np.any(solids.start != solids.end, axis=1)
    basis = _basis(axes, ray, solids.radii, capsule)
    vectors = basis @ (axes * solids.radii[:, :, None])  # (K, 3, 3): s, e, c -> camera frame
    on_screen = np.einsum("kij,knj->kni", jacobian, vectors)
    start_px, end_px = camera.project_local(start)[0], camera.project_local(end)[0]
    length, strip = _strip(end_px - start_px, on_screen[:, 0])
    lateral = np.einsum("ki,ki->k", on_screen[:, 0], strip[:, 0])
    flip = np.where(capsule & (lateral < 0), -1.0, 1.0).astype(np.float32)  # `across` points along the strip's normal
    basis[:, 0] *= flip[:, None]
    vectors[:, 0] *= flip[:, None]

    width = np.maximum(np.abs(lateral), _MIN_HALF_WIDTH_PX)
    middle_depth = np.maximum(middle[:, 2], 1e-3)
    width_start = np.where(capsule, width * middle_depth / np.maximum(start[:, 2], 1e-3), 1.0)
    width_end = np.where(capsule, width * solids.taper * middle_depth / np.maximum(end[:, 2], 1e-3), 1.0)
    scale = np.linalg.norm(jacobian[:, :, :2], axis=(1, 2)) / np.sqrt(2)
    end_ratio = np.where(capsule, np.maximum(solids.radii[:, 2] * scale / width, 0.05), 1.0)
    ellipse, ellipse_half = _ellipse(on_screen[:, :2])
    reach = np.stack([width_start, width_end], axis=1)[:, :, None] * np.sqrt(
        strip[:, None, 0] ** 2 + (end_ratio[:, None, None] * strip[:, None, 1]) ** 2
    )
    reach = np.where(capsule[:, None, None], reach, ellipse_half[:, None])
    low = np.minimum(start_px - reach[:, 0], end_px - reach[:, 1])
    high = np.maximum(start_px + reach[:, 0], end_px + reach[:, 1])
    drifts = (solids.drift_start @ camera.rotation.T, solids.drift_end @ camera.rotation.T)
    drift_px = np.stack([np.einsum("kij,kj->ki", jacobian, drift) for drift in drifts], axis=1)
    return Outlines(
        origin=start_px,
        inverse=np.where(capsule[:, None, None], strip, ellipse).astype(np.float32),
        length=np.where(capsule, length, 0.0).astype(np.float32),
        half_width=width_start.astype(np.float32),
        half_width_slope=(width_end - width_start).astype(np.float32),
        end_ratio=end_ratio.astype(np.float32),
        depth=start[:, 2],
        depth_slope=(end - start)[:, 2],
        depth_terms=_depth_terms(vectors, axes, ray, capsule),
        basis=basis,
        boxes=np.concatenate([low, high], axis=1).astype(np.float32),
        drift_px=np.clip(drift_px, -40, 40).astype(np.float32),
        seen=(np.minimum(start[:, 2], end[:, 2]) > _NEAREST_M) & np.all(np.isfinite(low) & np.isfinite(high), axis=1),
    )


def _basis(axes: Array, ray: Array, radii: Array, capsule: NDArray[np.bool_]) -> FloatArray:
    """(K, 3, 3) rows across, along and towards the camera in unit coordinates (left, front, up)."""
    toward = -np.einsum("kij,kj->ki", axes, ray) / radii
    toward[:, 2] = np.where(capsule, 0.0, toward[:, 2])
    toward[:, 1] += np.where(capsule, np.float32(1e-4), 0)  # keeps a direction where the axis runs along the ray
    toward = unit_rows(toward)
    helper = np.where((capsule | (np.abs(toward[:, 2]) < 0.9))[:, None], (0.0, 0.0, 1.0), (0.0, 1.0, 0.0))
    across = unit_rows(cross(toward, helper))
    along = np.where(capsule[:, None], (0.0, 0.0, 1.0), cross(toward, across)).astype(np.float32)
    basis: FloatArray = np.stack([across, along, toward], axis=1).astype(np.float32)
    return basis


def _strip(axis_px: Array, across_px: Array) -> tuple[Array, Array]:
    """(K,) length of capsules' axes on the picture and (K, 2, 2) unit rows across and along them."""
    length = np.linalg.norm(axis_px, axis=1)
    sideways = unit_rows(across_px)  # stands in for the axis of a limb that points at the lens
    turned = np.stack([sideways[:, 1], -sideways[:, 0]], axis=1)
    unit = np.where((length > 0.3)[:, None], axis_px / np.maximum(length, 1e-3)[:, None], turned)
    normal = np.stack([-unit[:, 1], unit[:, 0]], axis=1)
    return length, np.stack([normal, unit], axis=1)


def _depth_terms(vectors: Array, axes: Array, ray: Array, capsule: NDArray[np.bool_]) -> FloatArray:
    """(K, 3) m of depth per s, e and c."""
    terms = vectors[:, :, 2].astype(np.float32)
    cosine = np.sqrt(np.maximum(1 - np.einsum("ki,ki->k", axes[:, 2], ray) ** 2, 0.04))
    facing = np.einsum("ki,ki->k", vectors[:, 2], ray) / cosine * ray[:, 2]
    terms[:, 2] = np.where(capsule, facing, terms[:, 2])
    return terms


def fragments(outlines: Outlines, *, width: int, height: int) -> Fragments:
    """Every pixel of every solid, up to half a picture beyond the edges."""
    rows = _spans(outlines, width, height)
    count = rows.count
    per_solid = np.bincount(rows.solid, weights=count, minlength=len(outlines.length)).astype(np.int64)

    def spread(values: FloatArray) -> FloatArray:
        return np.repeat(values, per_solid)

    before = np.cumsum(count) - count
    columns = np.arange(int(count.sum())) - np.repeat(before - rows.first, count)
    x = columns.astype(np.float32)
    across = x * spread(outlines.inverse[:, 0, 0]) + np.repeat(rows.across, count)
    along = x * spread(outlines.inverse[:, 1, 0]) + np.repeat(rows.along, count)
    length = outlines.length
    per_length = np.where(length > 1e-3, 1 / np.maximum(length, 1e-3), 0).astype(np.float32)
    t = np.clip(along * spread(per_length), 0, 1)
    if rows.twist is not None:
        across += np.repeat(rows.twist, count) * t
    wide = spread(outlines.half_width) + spread(outlines.half_width_slope) * t
    s = across / wide
    e = (along - spread(length) * t) / (wide * spread(outlines.end_ratio))
    rest = 1 - s * s - e * e
    inside = np.flatnonzero(rest > 0)
    solid = np.repeat(np.arange(len(length)), per_solid).take(inside)
    s, e, t, c = s.take(inside), e.take(inside), t.take(inside), np.sqrt(rest.take(inside))
    depth = outlines.depth.take(solid) + outlines.depth_slope.take(solid) * t
    for term, value in zip(outlines.depth_terms.T.copy(), (s, e, c), strict=True):
        depth += term.take(solid) * value
    return Fragments(columns.take(inside), np.repeat(rows.row, count).take(inside), solid, s, e, c, t, depth)


@dataclass(frozen=True, slots=True, eq=False)
class _Spans:
    """R stretches of picture rows: `count` pixels from column `first`; across, along: coordinates at column 0.

    twist: what `across` gains up to t = 1 because the ends move differently; None where nothing moves.
    """

    solid: IntArray
    row: IntArray
    first: IntArray
    count: IntArray
    across: FloatArray
    along: FloatArray
    twist: FloatArray | None


def _spans(outlines: Outlines, width: int, height: int) -> _Spans:
    """Rows cut to the oriented box around each outline, which spares most pixels that lie outside a slanted limb."""
    inverse = outlines.inverse
    margin = np.abs(outlines.drift_px).max(axis=1) * np.float32(0.4) + np.float32(0.5)
    low = np.floor(outlines.boxes[:, :2] - margin)
    high = np.ceil(outlines.boxes[:, 2:] + margin)
    top = np.clip(low[:, 1], -height // 2, 1.5 * height).astype(np.int64)
    bottom = np.clip(high[:, 1], -height // 2 - 1, 1.5 * height).astype(np.int64)
    heights = np.where(outlines.seen, np.maximum(bottom - top + 1, 0), 0)
    solid = np.repeat(np.arange(len(heights)), heights)
    row = np.arange(len(solid)) - np.repeat(np.cumsum(heights) - heights - top, heights)
    constant = -np.einsum("kij,kj->ki", inverse, outlines.origin)
    across = row * inverse[:, 0, 1].take(solid) + constant[:, 0].take(solid)
    along = row * inverse[:, 1, 1].take(solid) + constant[:, 1].take(solid)
    twist = None
    if (np.abs(outlines.drift_px) > MOVING_PX).any():
        phase = ((row % PHASES) - 1) / np.float32(PHASES)  # neighbouring rows see different moments
        drift = np.einsum("kij,kpj->kpi", inverse, outlines.drift_px)
        across = across - phase * drift[:, 0, 0].take(solid)
        along = along - phase * drift[:, :, 1].mean(axis=1).take(solid)
        twist = (phase * (drift[:, 0, 0] - drift[:, 1, 0]).take(solid)).astype(np.float32)
    first, last = _cut(outlines, margin, solid, across, along)
    first = np.clip(np.maximum(first, low[:, 0].take(solid)), -width // 2, 1.5 * width).astype(np.int64)
    last = np.clip(np.minimum(last, high[:, 0].take(solid)), -width // 2 - 1, 1.5 * width).astype(np.int64)
    count = np.maximum(last - first + 1, 0)
    return _Spans(solid, row, first, count, across.astype(np.float32), along.astype(np.float32), twist)


def _cut(outlines: Outlines, margin: FloatArray, solid: IntArray, across: Array, along: Array) -> tuple[Array, Array]:
    """First and last column of each row inside the oriented box around its solid."""
    inverse = outlines.inverse
    # An ellipsoid's coordinates are not px, and its rows shift as a whole: only a capsule's twist needs slack.
    slack = np.where(outlines.length > 0, margin.max(axis=1), 0)
    wide = outlines.half_width + np.maximum(outlines.half_width_slope, 0)
    rounded = wide * outlines.end_ratio
    first: Array = np.full(len(solid), -np.inf)
    last: Array = np.full(len(solid), np.inf)
    for value, slope, least, most in (
        (across, inverse[:, 0, 0], -(wide + slack), wide + slack),
        (along, inverse[:, 1, 0], -rounded - slack, outlines.length + rounded + slack),
    ):
        steep = (np.abs(slope) > 1e-6).take(solid)
        per_column = 1 / np.where(np.abs(slope) > 1e-6, slope, 1.0).take(solid)
        one, other = (least.take(solid) - value) * per_column, (most.take(solid) - value) * per_column
        first = np.where(steep, np.maximum(first, np.minimum(one, other)), first)
        last = np.where(steep, np.minimum(last, np.maximum(one, other)), last)
    return np.floor(first), np.ceil(last)


def _ellipse(columns: Array) -> tuple[Array, Array]:
    """(K, 2 vectors, 2) half axes on the picture -> (K, 2, 2) inverse map and (K, 2) half extents, px."""
    a, c = columns[:, 0, 0], columns[:, 0, 1]
    b, d = columns[:, 1, 0], columns[:, 1, 1]
    determinant = a * d - b * c
    determinant = np.where(np.abs(determinant) < 1e-3, np.copysign(1e-3, determinant), determinant)
    inverse = np.stack([np.stack([d, -b], axis=1), np.stack([-c, a], axis=1)], axis=1) / determinant[:, None, None]
    return inverse, np.sqrt(np.sum(columns * columns, axis=1))


def cross(a: Array, b: Array) -> Array:
    """Of rows (..., 3); in a third of the time of np.cross."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def unit_rows(vectors: Array) -> FloatArray:
    """(..., 3) made 1 long; zero stays zero."""
    length = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    unit: FloatArray = (vectors / np.maximum(length, 1e-9)[..., None]).astype(np.float32)
    return unit
