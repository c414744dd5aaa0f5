"""Pictures with their truth: silhouettes, visibility, who counts, and that nothing depends on the order of calls."""

from __future__ import annotations

import numpy as np
import pytest
from fakes.mannequins import Mannequins, mannequin

from agent.simulation.background import PLACES, Setting
from agent.simulation.camera import Camera, look_at
from agent.simulation.render import Light
from agent.simulation.scene import SimulatedScene, build_scene
from agent.simulation.sensor import CLEAN, Sensor
from agent.simulation.stage import Backdrop
from agent.simulation.values import Script, Truth
from agent.types import FloatArray

WIDTH, HEIGHT = 320, 240
GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
FACING = -np.pi / 2
"""Turn of a mannequin that looks at `camera()`."""


def camera() -> Camera:
    """At y = -4 m, 1.2 m up, level; somebody at the origin is 100 px/m * ... = about 140 px tall."""
    return look_at(np.array([0.0, -4, 1.0]), np.array([0.0, 0, 1.0]), focal_px=320, width=WIDTH, height=HEIGHT)


def clean_scene(script: Script, **more: object) -> SimulatedScene:
    """People on plain grey through a perfect camera."""
    options: dict[str, object] = {"seed": 1, "camera": camera(), "background": GREY, "sensor": CLEAN, **more}
    return build_scene(script, **options)  # type: ignore[arg-type]


def truth_of(*places: tuple[float, float, float]) -> Truth:
    return clean_scene(Mannequins(places=places)).shot(0.0).truth


def with_wall(script: Script, depth_m: float, columns: slice) -> SimulatedScene:
    """A scene with something `depth_m` away in front of some columns."""
    depth = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    depth[:, columns] = depth_m
    ones = np.ones(3, np.float32)
    light = Light(np.array([0, 0, 1], np.float32), 0.5 * ones, 0.5 * ones, 0.2 * ones)
    floor = np.zeros((HEIGHT, WIDTH), np.float32)
    setting = Setting("test", Backdrop(GREY, depth, floor), light, night=False)
    return SimulatedScene(script, camera(), setting, CLEAN, seed=1)


def painted(scene: SimulatedScene) -> FloatArray:
    """Rows and columns of pixels that differ from the empty grey; no shadows."""
    image = scene.shot(0.0).image
    return np.argwhere(np.any(image != GREY, axis=2)).astype(np.float32)


def test_key_points_are_the_projected_joints() -> None:
    truth = truth_of((0.3, 0.2, FACING))
    pixels, _ = camera().project(mannequin(0.3, 0.2, turn=FACING))
    assert truth.keypoints[0] == pytest.approx(pixels, abs=1e-3)
    assert truth.actor_ids.tolist() == [1]
    assert truth.actions == ("stand",)


@pytest.mark.parametrize("turn", [FACING, 0.0, 1.0, 2.5])
def test_the_box_holds_the_silhouette_exactly(turn: float) -> None:
    scene = with_wall(Mannequins(places=((0.0, 0.0, turn),)), 99.0, slice(0, 1))
    rows, columns = painted(scene).T
    left, top, right, bottom = scene.shot(0.0).truth.boxes[0]
    assert (columns.min(), rows.min()) == (left, top)
    assert (columns.max() + 1, rows.max() + 1) == (right, bottom)


def test_the_full_box_of_somebody_free_is_the_box_within_a_pixel_or_so() -> None:
    truth = truth_of((0.0, 0.0, FACING))
    assert truth.full_boxes == pytest.approx(truth.boxes, abs=2.5)
    assert truth.visible_share[0] == 1.0


def test_the_box_holds_the_joints_and_is_as_tall_as_the_person() -> None:
    truth = truth_of((0.0, 0.0, FACING))
    left, top, right, bottom = truth.boxes[0]
    x, y = truth.keypoints[0].T
    assert np.all((x > left) & (x < right) & (y > top) & (y < bottom))
    assert (bottom - top) / 80 == pytest.approx(1.75, abs=0.1)  # 80 px/m at 4 m


def test_everything_in_front_is_seen_and_the_far_side_of_the_face_is_not() -> None:
    facing, away, left_side = truth_of((0, 0, FACING)), truth_of((0, 0, -FACING)), truth_of((0, 0, np.pi))
    assert facing.visibility[0].tolist() == [2] * 17
    assert away.visibility[0, :3].tolist() == [1, 1, 1]  # nose and eyes, seen from behind
    assert away.visibility[0, 5:].tolist() == [2] * 12
    assert left_side.visibility[0, 3] != left_side.visibility[0, 4]  # in profile one ear is hidden
    assert left_side.visibility[0, 0] == 2


def test_what_stands_behind_an_occluder_is_hidden_and_what_stands_before_it_is_not() -> None:
    script = Mannequins(places=((0.0, 0.0, FACING),))
    left_half = slice(0, WIDTH // 2)
    behind, before = with_wall(script, 3.0, left_half).shot(0.0), with_wall(script, 5.0, left_half).shot(0.0)
    hidden = behind.truth.keypoints[0, :, 0] < WIDTH / 2 - 1
    assert hidden.sum() == 8  # everything on one side, but not the nose in the middle
    assert np.all(behind.truth.visibility[0][hidden] == 1)
    assert np.all(behind.truth.visibility[0, 5:][~hidden[5:]] == 2)
    assert behind.truth.visible_share[0] == pytest.approx(0.5, abs=0.06)
    assert behind.truth.boxes[0, 0] == WIDTH / 2
    assert np.array_equal(behind.image[:, left_half], GREY[:, left_half])
    assert np.all(before.truth.visibility[0] == 2)
    assert before.truth.visible_share[0] == 1.0
    assert behind.truth.full_boxes == pytest.approx(before.truth.full_boxes)


def test_a_person_in_front_hides_the_one_behind() -> None:
    truth = truth_of((0.0, 0.0, FACING), (0.0, 1.0, FACING), (1.5, 0.0, FACING))
    assert np.all(truth.visibility[0] == 2)
    assert np.count_nonzero(truth.visibility[1] == 1) >= 12
    assert truth.visible_share[1] < 0.5 < truth.visible_share[0]
    assert truth.visible_share[2] == 1.0


def test_somebody_wholly_hidden_is_still_told_of() -> None:
    truth = with_wall(Mannequins(), 2.0, slice(0, WIDTH)).shot(0.0).truth
    assert truth.visible_share.tolist() == [0.0]
    assert np.all(truth.visibility == 1)
    assert truth.boxes == pytest.approx(truth.full_boxes)


def test_who_is_out_of_the_picture_is_left_out() -> None:
    truth = truth_of((0.0, 0.0, FACING), (30.0, 0.0, 0.0), (0.0, -9.0, 0.0))
    assert truth.actor_ids.tolist() == [1]
    assert truth.boxes.shape == truth.full_boxes.shape == (1, 4)
    assert truth.keypoints.shape == (1, 17, 2)


def test_who_stands_half_outside_has_a_clipped_box_and_half_a_share() -> None:
    truth = truth_of((-2.0, 0.0, FACING))
    assert truth.boxes[0, 0] == 0
    assert truth.full_boxes[0, 0] < -10
    assert truth.full_boxes[0, 2] == pytest.approx(truth.boxes[0, 2], abs=2.5)
    assert set(truth.visibility[0].tolist()) == {0, 2}
    outside = truth.keypoints[0, :, 0] < 0
    assert np.array_equal(truth.visibility[0] == 0, outside)
    assert truth.visible_share[0] == pytest.approx(0.5, abs=0.12)


def test_an_empty_scene_is_just_the_background() -> None:
    shot = clean_scene(Mannequins(places=())).shot(1.0)
    assert np.array_equal(shot.image, GREY)
    assert len(shot.truth.actor_ids) == 0
    assert shot.truth.boxes.shape == (0, 4)
    assert shot.truth.keypoints.shape == (0, 17, 2)
    assert shot.truth.visibility.shape == (0, 17)


def test_people_cast_shadows_on_the_floor() -> None:
    scene = clean_scene(Mannequins())
    box = scene.shot(0.0).truth.full_boxes[0]
    rows, columns = painted(scene).T
    outside = (columns < box[0]) | (columns >= box[2]) | (rows < box[1]) | (rows >= box[3])
    assert outside.sum() > 100


def test_moving_limbs_are_blurred_by_a_long_exposure_and_standing_people_are_not() -> None:
    def sharpness(script: Script, exposure_s: float) -> float:
        scene = clean_scene(script, sensor=Sensor(0, 0, 0, 0, exposure_s=exposure_s))
        x0, y0, x1, y1 = scene.shot(0.35).truth.boxes[0].astype(int)
        rows = scene.shot(0.35).image[y0:y1, x0:x1].astype(np.float64)
        return float(np.abs(np.diff(rows, axis=1)).mean())

    aside = ((0.0, 0.0, 0.0),)  # limbs swing across the picture
    moving, still = Mannequins(aside, pace=9.0), Mannequins(aside)
    assert sharpness(moving, 1 / 20) < 0.9 * sharpness(moving, 0.0)
    assert sharpness(still, 1 / 20) == sharpness(still, 0.0)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_can_be_built_and_shows_its_people(place: str) -> None:
    script = Mannequins(places=((0.0, 0.0, 0.0), (1.0, 0.5, 2.0)))
    scene = build_scene(script, seed=4, place=place, width=WIDTH, height=HEIGHT)
    shot = scene.shot(0.0)
    assert scene.setting.name == place
    assert shot.image.shape == (HEIGHT, WIDTH, 3)
    assert len(shot.truth.actor_ids) == 2
    assert scene.setting.backdrop.image.std() > 8  # there is something to see


def test_a_night_is_grey_and_a_day_is_not() -> None:
    script = Mannequins()
    night, day = (
        build_scene(script, seed=4, night=dark, width=WIDTH, height=HEIGHT).shot(0).image for dark in (True, False)
    )
    spread = [int(np.ptp(image.astype(np.int64), axis=2).max()) for image in (night, day)]
    assert spread[0] <= 2  # a grey picture stays grey through JPEG
    assert spread[1] > 20


def test_the_same_seed_and_time_give_the_same_bytes_in_any_order() -> None:
    script = Mannequins(places=((0.0, 0.0, 0.0), (1.0, 0.5, 2.0)), pace=6.0)
    one, other = (build_scene(script, seed=7, width=WIDTH, height=HEIGHT) for _ in range(2))
    forwards = {t_s: one.shot(t_s) for t_s in (0.0, 0.04, 0.52, 1.7)}
    for t_s in (1.7, 0.04, 0.0, 0.52, 0.52):
        again = other.shot(t_s)
        assert np.array_equal(again.image, forwards[t_s].image)
        assert np.array_equal(again.truth.keypoints, forwards[t_s].truth.keypoints)
        assert np.array_equal(again.truth.visibility, forwards[t_s].truth.visibility)
        assert np.array_equal(again.truth.boxes, forwards[t_s].truth.boxes)


def test_another_seed_gives_another_place_and_other_clothes() -> None:
    script = Mannequins()
    scenes = [build_scene(script, seed=seed, width=WIDTH, height=HEIGHT) for seed in (1, 2)]
    assert not np.array_equal(scenes[0].setting.backdrop.image, scenes[1].setting.backdrop.image)
    dressed = [clean_scene(script, seed=seed).shot(0.0).image for seed in (1, 2)]
    assert not np.array_equal(*dressed)


def test_people_keep_their_looks_when_others_come_and_go() -> None:
    alone = clean_scene(Mannequins(places=((0.0, 0.0, FACING),))).shot(0.0).image
    company = clean_scene(Mannequins(places=((0.0, 0.0, FACING), (1.6, 0.0, FACING)))).shot(0.0).image
    assert np.array_equal(alone[:100, 130:190], company[:100, 130:190])


def test_a_background_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(240, 320, 3\), got uint8 \(5, 5, 3\)"):
        build_scene(Mannequins(), seed=1, camera=camera(), background=np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="unknown place 'moon'"):
        build_scene(Mannequins(), seed=1, place="moon")


def test_a_background_picture_is_not_changed_by_what_is_drawn_on_it() -> None:
    mine = GREY.copy()
    scene = clean_scene(Mannequins(), background=mine)
    scene.shot(0.0)
    assert np.array_equal(mine, GREY)
