"""Spheres and capsules on the picture against geometry done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from agent.simulation.camera import Camera, look_at
from agent.simulation.raster import Fragments, Solids, cross, fragments, outline, unit_rows
from agent.types import FloatArray

WIDTH, HEIGHT, FOCAL = 201, 151, 300.0


def camera() -> Camera:
    """At the origin, looking along x; pixel (100, 75) is the axis; left is positive y."""
    return look_at(np.zeros(3), np.array([1.0, 0, 0]), focal_px=FOCAL, width=WIDTH, height=HEIGHT)


def solid(
    start: tuple[float, ...],
    end: tuple[float, ...] | None = None,
    radii: tuple[float, ...] = (0.1, 0.1, 0.1),
    *,
    taper: float = 1.0,
    drift: tuple[float, ...] = (0, 0, 0),
) -> Solids:
    """One solid; a capsule's axis must be upright."""
    move = np.array([drift], np.float32)
    axes = np.array([[(0, 1, 0), (-1, 0, 0), (0, 0, 1)]], np.float32)
    ends = (np.array([point], np.float32) for point in (start, end or start))
    return Solids(
        *ends, axes, np.array([radii], np.float32), np.array([taper], np.float32), move, move, np.zeros(1, np.int64)
    )


def drawn(solids: Solids) -> Fragments:
    return fragments(outline(solids, camera()), width=WIDTH, height=HEIGHT)


def mask(found: Fragments) -> FloatArray:
    picture = np.zeros((HEIGHT, WIDTH), np.float32)
    picture[found.rows, found.columns] = 1
    return picture


def test_a_sphere_is_a_disc_of_the_right_size_and_depth() -> None:
    found = drawn(solid((3, 0, 0)))
    assert len(found.s) == pytest.approx(np.pi * 10**2, rel=0.04)  # 0.1 m at 3 m with 300 px: 10 px
    assert (found.columns.min(), found.columns.max()) == pytest.approx((91, 109), abs=1)
    assert (found.rows.min(), found.rows.max()) == pytest.approx((66, 84), abs=1)
    middle = (found.columns == 100) & (found.rows == 75)
    assert found.depth[middle] == pytest.approx(2.9, abs=1e-3)
    assert found.depth.max() < 3.01


def test_an_ellipsoid_has_its_own_width_height_and_depth() -> None:
    found = drawn(solid((3, 0, 0), radii=(0.2, 0.05, 0.1)))  # left, front, up
    assert np.ptp(found.columns) + 1 == pytest.approx(40, abs=2)
    assert np.ptp(found.rows) + 1 == pytest.approx(20, abs=2)
    assert found.depth.min() == pytest.approx(2.95, abs=5e-3)


def test_a_capsule_is_a_strip_with_round_ends() -> None:
    found = drawn(solid((3, 0, -0.3), (3, 0, 0.3)))
    assert np.ptp(found.columns) + 1 == pytest.approx(20, abs=1)
    assert np.ptp(found.rows) + 1 == pytest.approx(60 + 20, abs=1)
    assert len(found.s) == pytest.approx(60 * 20 + np.pi * 100, rel=0.06)
    axis = found.columns == 100
    assert found.depth[axis & (found.rows == 75)] == pytest.approx(2.9, abs=1e-3)
    assert found.t[axis & (found.rows == 75)] == pytest.approx(0.5, abs=0.02)
    assert found.t[found.rows > 106].max() == 0.0  # the round end below the start


def test_a_taper_narrows_the_far_end() -> None:
    picture = mask(drawn(solid((3, 0, -0.3), (3, 0, 0.3), taper=0.5)))
    assert picture[104].sum() == pytest.approx(20, abs=1.1)
    assert picture[46].sum() == pytest.approx(10, abs=1.1)


def test_the_outline_box_is_that_of_the_pixels() -> None:
    for shape in (solid((3, 0.2, 0.1)), solid((2.5, -0.1, -0.2), (2.8, -0.1, 0.3), taper=0.7)):
        found = drawn(shape)
        left, top, right, bottom = outline(shape, camera()).boxes[0]
        assert abs(found.columns.min() - left) < 1.5
        assert abs(found.columns.max() - right) < 1.5
        assert abs(found.rows.min() - top) < 1.5
        assert abs(found.rows.max() - bottom) < 1.5


def test_pixels_beyond_the_edge_are_kept_up_to_half_a_picture() -> None:
    found = drawn(solid((3, 1.0, 0)))  # 100 px to the left: half of it outside
    assert found.columns.min() < 0 < found.columns.max()
    assert not len(drawn(solid((3, 9.0, 0))).s)


@pytest.mark.parametrize("at", [(-3.0, 0, 0), (0.1, 0, 0)])
def test_what_is_behind_or_at_the_lens_is_left_out(at: tuple[float, ...]) -> None:
    assert not len(drawn(solid(at)).s)


def test_a_limb_that_points_at_the_lens_is_a_disc() -> None:
    axes = np.array([[(0, 1, 0), (0, 0, 1), (1, 0, 0)]], np.float32)
    toward = solid((3.0, 0, 0), (3.4, 0, 0))
    toward = Solids(toward.start, toward.end, axes, *(getattr(toward, name) for name in Solids.__slots__[3:]))
    found = drawn(toward)
    assert len(found.s) == pytest.approx(np.pi * 10**2, rel=0.15)
    assert found.depth.min() == pytest.approx(2.9, abs=0.02)


def test_drift_shows_neighbouring_rows_at_different_moments() -> None:
    still, moving = (mask(drawn(solid((3, 0, -0.3), (3, 0, 0.3), drift=(0, d, 0)))) for d in (0.0, 0.09))
    left_edges = [int(np.argmax(moving[row])) for row in range(70, 82)]
    assert set(np.diff(left_edges)) == {3, -6} or set(np.diff(left_edges)) == {-3, 6}  # 9 px in three moments
    assert len({int(np.argmax(still[row])) for row in range(70, 82)}) == 1


def test_cross_and_unit_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 9, 3))
    assert cross(one, other) == pytest.approx(np.cross(one, other))
    assert np.linalg.norm(unit_rows(one), axis=1) == pytest.approx(np.ones(9))
    assert unit_rows(np.zeros((1, 3))).tolist() == [[0, 0, 0]]
