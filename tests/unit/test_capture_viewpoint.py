"""Moved cameras, told on places of the simulation: by day and by night, with people in front, turned and put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agent.capture.viewpoint import (
    ACCEPTED_AFTER_S,
    BACK,
    EDGES_SHAPE,
    JUDGED_EVERY,
    OTHER,
    SAMPLES,
    SETTLED_AFTER_S,
    Learned,
    Viewpoint,
    edges,
    likeness,
    thumbnail,
)
from agent.simulation.background import PLACES, choose_place
from agent.simulation.camera import hang_camera
from agent.types import ImageArray

NS_PER_S = 1_000_000_000
PERIOD_S = 2.0
AFTER_S = 60.0


@lru_cache(maxsize=64)
def place(
    name: str, *, seed: int = 1, night: bool = False, turned_deg: float = 0.0, tilted_deg: float = 0.0
) -> ImageArray:
    """(120, 160, 3): a place without people."""
    points = np.random.default_rng(5).uniform((-2, -2, 0), (2, 2, 1.8), (200, 3)).astype(np.float32)
    camera = hang_camera(points, np.random.default_rng((seed, 1)), width=160, height=120)
    yaw, pitch = np.radians(turned_deg), np.radians(tilted_deg)
    turn = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    seen = replace(camera, rotation=(tilt @ turn @ camera.rotation).astype(np.float32))
    # The place is built where the camera hung at first; it is only looked at from the other one.
    return choose_place(seen, points, np.random.default_rng((seed, 2)), name=name, night=night).backdrop.image


def knowing(image: ImageArray, other_s: float = 0.0) -> Viewpoint:
    """It has seen this for long enough."""
    return Viewpoint(AFTER_S, Learned(kept(image), SETTLED_AFTER_S, other_s))


def kept(image: ImageArray) -> NDArray[np.int8]:
    """Its edges, as they are kept."""
    parts = edges(thumbnail(image).astype(np.float32))
    return np.round(np.stack([parts.real, parts.imag], axis=-1) * 127).astype(np.int8)


class Filmed:
    """A viewpoint that is shown pictures every other second."""

    def __init__(self, viewpoint: Viewpoint | None = None, *, noise: float = 3.0) -> None:
        self.viewpoint = viewpoint or Viewpoint(AFTER_S)
        self.noise = np.random.default_rng(3).normal(0, noise, (19, 120, 160, 3)).astype(np.int16)
        self.now_s = 0.0

    def show(self, image: ImageArray | Callable[[float], ImageArray], seconds: float) -> list[float]:
        """Times since it was first shown at which the camera counted as moved."""
        began_s, moved = self.now_s, []
        while self.now_s < began_s + seconds:
            picture = image(self.now_s - began_s) if callable(image) else image
            noise = self.noise[round(self.now_s / PERIOD_S) % len(self.noise)]
            noisy = np.clip(picture + noise, 0, 255).astype(np.uint8)
            now_ns = round(self.now_s * NS_PER_S)
            assert self.viewpoint.due(now_ns)
            if self.viewpoint.update(thumbnail(noisy), now_ns):
                moved.append(self.now_s - began_s)
            self.now_s += PERIOD_S
        return moved


def with_box(image: ImageArray, x: float, y: float, width: float, height: float, level: int = 40) -> ImageArray:
    """Something in front; shares of the picture."""
    rows, columns = image.shape[:2]
    changed = image.copy()
    corner, size = (round(x * columns), round(y * rows)), (round(width * columns), round(height * rows))
    cv2.rectangle(changed, (*corner, *size), (level, level, level), -1)
    return changed


def as_seen(image: ImageArray, change: str) -> ImageArray:
    """The same view in another light."""
    light = image.astype(np.float32) / 255
    if change == "dusk":
        light = light**1.8 * 0.5
    elif change == "glare":
        light = np.clip(light**0.5 * 1.15, 0, 1)
    elif change == "fog":
        light = 0.3 * light + 0.6
    elif change == "sun patches":
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
        light = light * np.where((columns + rows) % 50 < 25, 1.0, 0.45)[..., None]
    elif change == "infrared":  # plants and cloth turn bright, what was bright dark
        light = 1 - 0.7 * light
    return (light * 255).astype(np.uint8)


@pytest.mark.parametrize("name", PLACES)
def test_a_view_that_stays_is_not_moved_whatever_walks_through_it(name: str) -> None:
    empty = place(name)

    def busy(t_s: float) -> ImageArray:
        return with_box(with_box(empty, 0.07 * t_s % 1.0, 0.3, 0.12, 0.6), 0.9 - 0.05 * t_s % 1.0, 0.2, 0.1, 0.7, 200)

    assert Filmed().show(busy, 300) == []


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("change", ["dusk", "glare", "fog", "sun patches", "infrared"])
def test_another_light_is_no_other_view(name: str, change: str) -> None:
    filmed = Filmed(knowing(place(name)))
    assert filmed.show(as_seen(place(name), change), 120) == []


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("infrared", [False, True])
def test_night_is_no_other_view_when_it_comes_nor_as_the_reference_follows_it(
    name: str, monkeypatch: pytest.MonkeyPatch, *, infrared: bool
) -> None:
    """infrared: all that was dark is bright; day and night with it are the opposite of each other."""
    monkeypatch.setattr("agent.capture.viewpoint.FOLLOW_S", 60.0)
    filmed = Filmed(knowing(place(name)))
    night = as_seen(place(name), "infrared") if infrared else place(name, night=True)
    for picture in (night, place(name), night):
        assert filmed.show(picture, 240) == []


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("turn", [{"turned_deg": 15.0}, {"turned_deg": -25.0}, {"tilted_deg": 15.0}])
def test_a_turned_camera_is_moved_after_the_time_and_back_when_it_is_turned_back(
    name: str, turn: dict[str, float]
) -> None:
    filmed = Filmed(knowing(place(name)))
    moved = filmed.show(place(name, **turn), 120)
    assert AFTER_S - 2 * SAMPLES * PERIOD_S / 3 <= moved[0] <= AFTER_S + SAMPLES * PERIOD_S
    assert moved[-1] == 120 - PERIOD_S
    assert filmed.show(place(name), 100)[-1] <= SAMPLES * PERIOD_S


def test_another_place_is_another_view_and_the_same_one_is_not() -> None:
    views = {
        name: edges(thumbnail(place(name, seed=seed)).astype(np.float32)) for seed, name in enumerate(PLACES, start=1)
    }
    for name in PLACES:
        for other in PLACES:
            alike = likeness(views[name], views[other])
            assert alike > 0.99 if name == other else alike < OTHER


@pytest.mark.parametrize("mask", ["circle", "privacy", "bars"])
def test_borders_of_what_is_black_in_every_picture_are_no_view(mask: str) -> None:
    def masked(image: ImageArray) -> ImageArray:
        shown = np.zeros(image.shape[:2], np.uint8)
        if mask == "circle":
            cv2.circle(shown, (80, 60), 56, 1, -1)
        else:
            shown[:, 20:140] = 1
            if mask == "privacy":
                shown[:50, :65] = shown[25:65, 105:150] = 0
        return image * shown[..., None]

    views = [edges(thumbnail(masked(place(name, seed=n))).astype(np.float32)) for n, name in enumerate(PLACES, start=1)]
    for one, view in enumerate(views):
        for other in views[:one]:
            assert likeness(view, other) < OTHER
    filmed = Filmed(knowing(masked(place("street"))))
    assert filmed.show(masked(place("street")), 120) == []
    assert filmed.show(masked(place("street", turned_deg=25.0)), 120)


def test_a_picture_without_edges_is_like_nothing() -> None:
    flat = edges(np.full((48, 64), 90, np.float32))
    assert likeness(flat, flat) == 0.0
    assert likeness(flat, edges(thumbnail(place("street")).astype(np.float32))) == 0.0


def test_a_lorry_that_stops_in_front_is_no_other_view() -> None:
    filmed = Filmed(knowing(place("parking")))
    assert filmed.show(with_box(place("parking"), 0.0, 0.25, 0.45, 0.75), 300) == []


def test_a_mast_in_the_wind_is_no_other_view() -> None:
    filmed = Filmed()
    swaying = place("parking")
    assert filmed.show(lambda t_s: np.roll(swaying, round(2 * np.sin(t_s)), axis=1), 200) == []


def test_a_moment_before_the_lens_is_no_other_view() -> None:
    filmed = Filmed(knowing(place("street")))
    assert filmed.show(place("shop"), 20) == []
    assert filmed.show(place("street"), 200) == []


def test_nothing_is_concluded_from_a_camera_on_tour() -> None:
    filmed = Filmed(knowing(place("street")))
    assert filmed.show(lambda t_s: place("street", turned_deg=5.0 * (round(t_s / PERIOD_S) % 13)), 400) == []


def test_slow_change_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is small, the sum is another view."""
    monkeypatch.setattr("agent.capture.viewpoint.FOLLOW_S", 60.0)
    empty, other = place("parking"), place("room", seed=4)
    filmed = Filmed(knowing(empty))

    def changing(t_s: float) -> ImageArray:
        share = min(1.0, t_s / (900))
        edge = round(share * empty.shape[1])
        return np.concatenate([other[:, :edge], empty[:, edge:]], axis=1)

    assert filmed.show(changing, 1000) == []
    alike = likeness(edges(thumbnail(empty).astype(np.float32)), edges(thumbnail(other).astype(np.float32)))
    assert alike < OTHER


def test_a_view_is_right_when_somebody_says_so() -> None:
    filmed = Filmed(knowing(place("street")))
    assert filmed.show(place("shop"), 200)
    filmed.viewpoint.accept()
    assert max(filmed.show(place("shop"), 200), default=0.0) < JUDGED_EVERY * PERIOD_S
    filmed.show(place("shop"), SETTLED_AFTER_S)
    assert filmed.show(place("street"), 200)


def test_a_camera_is_aimed_while_it_is_put_up() -> None:
    filmed = Filmed()
    assert filmed.show(place("street"), 120) == []
    assert filmed.show(place("street", turned_deg=20.0), 120) == []
    assert filmed.show(place("street", turned_deg=40.0), SETTLED_AFTER_S + 120) == []
    assert filmed.show(place("street"), 200)


def test_a_view_is_right_after_a_day_of_telling() -> None:
    filmed = Filmed(knowing(place("street"), ACCEPTED_AFTER_S + AFTER_S - 120))
    assert filmed.viewpoint.moved
    moved = filmed.show(place("shop"), 400)
    assert 100 <= moved[-1] <= 160


def test_a_camera_that_is_unplugged_turned_and_plugged_in_is_moved() -> None:
    filmed = Filmed(knowing(place("street")))
    filmed.viewpoint.interrupt()
    filmed.now_s += 3600
    assert filmed.show(place("street", turned_deg=20.0), 100)


@pytest.mark.parametrize("other_s", [0.0, 500.0])
def test_what_was_kept_goes_on(other_s: float) -> None:
    filmed = Filmed(knowing(place("street")))
    filmed.show(place("street"), 60)
    learned = filmed.viewpoint.learned
    assert learned is not None
    assert learned.reference.shape == EDGES_SHAPE
    assert learned.known_s == SETTLED_AFTER_S
    again = Filmed(Viewpoint(AFTER_S, replace(learned, other_s=other_s)))
    assert again.viewpoint.moved == (other_s > 0)
    assert bool(again.show(place("street"), 200)) == (other_s > 0)
    assert again.viewpoint.learned is not None
    assert again.viewpoint.learned.other_s == 0.0
    assert again.show(place("shop"), 200)


def test_zero_switches_it_off() -> None:
    viewpoint = Viewpoint(0.0, Learned(kept(place("street")), SETTLED_AFTER_S, 10_000.0))
    assert not viewpoint.due(0)
    assert not viewpoint.moved


def test_thresholds_leave_room() -> None:
    """Day and night of one place are more alike than two places, by far."""
    pairs = [
        (
            likeness(
                edges(thumbnail(place(name, seed=seed)).astype(np.float32)),
                edges(thumbnail(place(name, seed=seed, night=True)).astype(np.float32)),
            )
        )
        for name in PLACES
        for seed in (1, 2)
    ]
    assert min(pairs) > OTHER
    assert np.median(pairs) > BACK
