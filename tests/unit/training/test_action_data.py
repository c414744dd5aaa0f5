"""Labels, folds, calibration and simulated windows of the action models. No PyTorch needed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import drawn
import numpy as np
import pytest
import simulated
from clipset import FOLDS, folds_by_source, folds_by_subject
from dataset import fall_label
from metrics import MadeMargins, calibrate, calibrate_both, cross_fitted, expected_calibration_error, sigmoid
from recipes import RECIPES
from simulated import ANNOTATED, HEIGHT, LOOSE, WIDTH, Noise, Watcher, draw_noise, label_of, scene_windows

from agent.config.load import load_config
from agent.recognition import create_estimator
from agent.simulation.camera import hang_camera
from agent.simulation.values import Interval
from agent.types import Window

SILENT = Noise(jitter=0, lasting=0, tau_s=0.4, joints=np.ones(17), jumps=0, misses=0, swaps=0, score=0.8, spread=0)
UPRIGHT = np.array(
    [(0, 1.6), (0.03, 1.63), (-0.03, 1.63), (0.07, 1.6), (-0.07, 1.6), (0.2, 1.4), (-0.2, 1.4), (0.25, 1.1), (-0.25, 1.1),
     (0.25, 0.85), (-0.25, 0.85), (0.12, 0.9), (-0.12, 0.9), (0.12, 0.5), (-0.12, 0.5), (0.12, 0.1), (-0.12, 0.1)]
)  # fmt: skip


def body(x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """(17, 3) m: somebody who stands at (x, y)."""
    return np.stack((UPRIGHT[:, 0] + x, np.full(17, y), UPRIGHT[:, 1]), axis=1)


def window(service: str, end_s: float, tracks: tuple[int, ...] = (1,)) -> Window:
    return Window(
        camera_id="c", service=service, tensor=np.zeros((4, 100, 17, 3), np.float32), t_start_ns=0,
        t_end_ns=round(end_s * 1e9), t_end_utc=datetime(2026, 1, 1, tzinfo=UTC), track_ids=tracks,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_no_source_is_in_two_folds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.choice([f"source{k}" for k in range(14)], 160)
    label, use = rng.integers(0, 2, 160), rng.random(160) < 0.8
    fold = folds_by_source(group, label, use)
    assert (fold[~use] == -1).all()
    assert set(fold[use].tolist()) == set(range(FOLDS))
    for name in np.unique(group[use]):
        assert len(set(fold[use & (group == name)].tolist())) == 1


def test_no_subject_and_no_street_source_is_in_two_folds() -> None:
    group = np.array(["fall:subject2", "fall:subject3", "fight:a", "fight:b", "fight:a", "fall:subject2"])
    fold = folds_by_subject(group)
    assert fold[0] == fold[5] != fold[1]
    assert fold[2] == fold[4] != fold[3]


@pytest.mark.parametrize(
    ("start_s", "end_s", "label"),
    [(0.0, 3.0, 0), (2.0, 6.0, 1), (2.0, 4.5, -1), (5.0, 8.0, -1), (6.0, 9.0, 0)],
)
def test_a_fall_is_the_movement_not_the_lying(start_s: float, end_s: float, label: int) -> None:
    assert fall_label(start_s, end_s, 4.0) == label
    assert fall_label(start_s, end_s, None) == 0


def test_no_clip_calibrates_itself() -> None:
    rng = np.random.default_rng(0)
    label, fold = rng.integers(0, 2, 60), np.arange(60) % 5
    margin = 3.0 * label - 1 + rng.normal(0, 2, 60)
    before = cross_fitted(margin, label, fold)
    changed = label.copy()
    changed[fold == 2] = 1 - changed[fold == 2]
    after = cross_fitted(margin, changed, fold)
    assert np.allclose(before[fold == 2], after[fold == 2])
    assert not np.allclose(before[fold != 2], after[fold != 2])


def test_calibration_brings_overconfident_margins_back() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 1.5, 4000)
    label = (rng.random(4000) < sigmoid(truth)).astype(int)
    temperature, shift = calibrate(4 * truth + 2, label)
    assert temperature == pytest.approx(4, rel=0.15)
    assert shift == pytest.approx(-2, abs=0.4)
    good = expected_calibration_error(sigmoid((4 * truth + 2 + shift) / temperature), label)
    assert good < 0.03 < expected_calibration_error(sigmoid(4 * truth + 2), label)


def watcher(noise: Noise, people: int = 2) -> Watcher:
    rng = np.random.default_rng(3)
    places = np.array([body().mean(axis=0), body(1.0).mean(axis=0)], np.float32)
    return Watcher(hang_camera(places, rng, width=WIDTH, height=HEIGHT), noise, people, 15.0, rng)


def test_without_noise_the_estimator_says_what_the_camera_sees() -> None:
    view = watcher(SILENT)
    joints = np.stack((body(-0.8), body(1.2)))
    people, rows = view.look(joints)
    exact, _ = view._camera.project(joints.astype(np.float32))
    assert sorted(rows) == [0, 1]
    assert np.allclose(people.keypoints, exact[rows], atol=1e-2)


def test_key_points_outside_the_picture_are_put_inside_where_the_estimator_does_so() -> None:
    joints = np.stack((body(-0.8), body(1.2)))
    outside = 0
    for aside_m in np.linspace(0, 8, 33):
        moved = joints + np.array([aside_m, 0, 0])
        (free, rows), (kept, same) = watcher(SILENT).look(moved), watcher(replace(SILENT, inside=True)).look(moved)
        assert sorted(rows) == sorted(same)
        free_points, kept_points = free.keypoints[np.argsort(rows)], kept.keypoints[np.argsort(same)]
        there = ((free_points >= 0) & (free_points <= (WIDTH - 1, HEIGHT - 1))).all(axis=-1)
        np.testing.assert_array_equal(free_points[there], kept_points[there])
        assert ((kept_points >= 0) & (kept_points <= (WIDTH - 1, HEIGHT - 1))).all()
        outside += int((~there).sum())
    assert outside > 20


def test_key_points_that_score_little_are_hidden_where_the_estimator_does_so() -> None:
    noise = replace(SILENT, score=0.5, spread=0.2)
    joints = np.stack((body(-0.8), body(1.2)))
    all_scores = watcher(noise).look(joints)[0].keypoint_scores
    kept = watcher(replace(noise, least_score=0.4)).look(joints)[0].keypoint_scores
    np.testing.assert_array_equal(kept, np.where(all_scores < 0.4, 0, all_scores))
    assert 0 < (kept == 0).sum() < kept.size


def test_nobody_off_stage_is_reported() -> None:
    joints = np.stack((body(), np.full((17, 3), np.nan)))
    _, rows = watcher(SILENT).look(joints)
    assert rows == [0]
    people, rows = watcher(SILENT).look(np.full((2, 17, 3), np.nan))
    assert rows == []
    assert len(people) == 0


def test_missed_people_are_missed_for_a_while() -> None:
    view = watcher(replace(SILENT, misses=0.4), people=1)
    seen = np.array([len(view.look(body()[None])[1]) for _ in range(300)])
    assert 0.2 < seen.mean() < 0.9
    assert (seen[1:] == seen[:-1]).mean() > 0.6


def test_drawn_noise_stays_within_what_was_measured() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_noise(rng) for _ in range(200)]
    assert 0.003 < np.median([noise.jitter for noise in drawn]) < 0.013
    assert {tuple(noise.joints) for noise in drawn} == {tuple(LOOSE), tuple(ANNOTATED)}
    # A hip of COCO's kind is up to 1.6 sigmas off: 0.107 of a scale that is 0.46 body sizes.
    spread = [np.hypot(noise.jitter, noise.lasting) * noise.joints[11] for noise in drawn if noise.joints is ANNOTATED]
    assert min(spread) * 1.01 > 0.4 * 0.107 * 0.46
    assert max(spread) < 1.61 * 0.107 * 0.46
    assert max(noise.misses for noise in drawn) <= 0.5
    assert all(0.3 < noise.score < 1 for noise in drawn)
    assert 0.6 < np.mean([noise.inside for noise in drawn]) < 0.8
    assert 0.25 < np.mean([noise.least_score > 0 for noise in drawn]) < 0.42


@pytest.mark.parametrize("tau_s", [0.1, 0.5])
def test_lasting_errors_last_as_long_as_they_should(tau_s: float) -> None:
    view = watcher(replace(SILENT, lasting=0.01, tau_s=tau_s), people=1)
    points = np.stack([view.look(body()[None])[0].keypoints[0] for _ in range(1500)])
    error = points - points.mean(axis=0)
    next_frame = float((error[1:] * error[:-1]).mean() / error.var())
    assert next_frame == pytest.approx(np.exp(-1 / (15 * tau_s)), abs=0.06)


@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_calibration_ends_at_the_best_line_however_large_the_margins(scale: float) -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 120)
    margin = scale * (2 * label - 1) + rng.normal(0, 1, 120)
    temperature, shift = calibrate(margin, label)
    slope, offset = 1 / temperature, shift / temperature
    error = sigmoid(slope * margin + offset) - label
    if slope > 0.05:
        assert float(error @ margin) + slope - 1 == pytest.approx(0, abs=1e-5)
        assert float(error.sum()) + offset == pytest.approx(0, abs=1e-5)
    assert 0.01 < temperature < 20


def test_a_weight_of_two_is_the_row_twice() -> None:
    rng = np.random.default_rng(4)
    label = rng.integers(0, 2, 40)
    margin = 2.0 * label - 1 + rng.normal(0, 1, 40)
    twice = np.arange(40) < 10
    repeated = np.concatenate((margin, margin[twice])), np.concatenate((label, label[twice]))
    assert calibrate(margin, label, 1.0 + twice) == pytest.approx(calibrate(*repeated))


def test_the_recipes_windows_are_those_of_the_shipped_configuration(repo_dir: Path) -> None:
    shipped = load_config([repo_dir / "configs" / "default.yaml"], env={}).services
    for name, recipe in RECIPES.items():
        # Networks learn of those who walk out, too.
        careful = {"min_joints": 6, "forget_left_s": 1.2} if name == "fall" else {}
        expected = recipe.window.model_copy(update={"stride": 15, **careful})
        assert expected == shipped[name].window
        assert recipe.selection == shipped[name].selection


def test_what_ships_was_made_by_the_recipe_that_is_here(repo_dir: Path) -> None:
    for name, recipe in RECIPES.items():
        manifest = json.loads((repo_dir / "models" / f"{name}-stgcn" / "manifest.json").read_text())
        assert recipe.digest == manifest["figures"]["recipe"]
        assert replace(recipe, steps=recipe.steps + 1).digest != recipe.digest
        other = recipe.window.model_copy(update={"people": 5})
        assert replace(recipe, window=other).digest != recipe.digest


def test_made_windows_have_their_share_in_the_calibration() -> None:
    rng = np.random.default_rng(2)
    label, made_label = rng.integers(0, 2, 100), rng.integers(0, 2, 1000)
    shy, sure = 0.5 * (2 * label - 1) + rng.normal(0, 1, 100), 9.0 * (2 * made_label - 1)
    alone = calibrate(shy, label)[0]
    low, high = (calibrate_both(shy, label, MadeMargins(sure, made_label, share))[0] for share in (0.1, 0.9))
    assert alone == pytest.approx(calibrate_both(shy, label, None)[0])
    assert high < low < alone + 1e-6


def test_a_fight_counts_where_a_fighter_is_seen_for_a_second() -> None:
    fight = (Interval("fight", 10.0, 14.0, (1, 2)),)
    actors = {1: {1}, 2: {7}}
    assert label_of(window("fight", 12.0, (1,)), fight, actors) == 1
    assert label_of(window("fight", 12.0, (2,)), fight, actors) == -1  # only a passer-by was seen
    assert label_of(window("fight", 10.5, (1,)), fight, actors) == -1
    assert label_of(window("fight", 9.0, (1,)), fight, actors) == 0
    assert label_of(window("fall", 12.0, (1,)), fight, actors) == 0


def test_simulated_windows_come_again_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "SECONDS", 5.0)
    first, again = scene_windows(2), scene_windows(2)
    assert {service for service, _, _ in first} == {"fight", "fall"}
    assert all(np.array_equal(one[1].tensor, two[1].tensor) for one, two in zip(first, again, strict=True))
    assert [row[2] for row in first] == [row[2] for row in again]


def test_a_scene_that_begins_late_has_the_labels_of_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seed 2 a fight goes from 4 s of the script to 19."""
    monkeypatch.setattr(simulated, "SECONDS", 8.0)
    monkeypatch.setattr(simulated, "beginning", lambda _: 5.0)
    labels = [label for service, _, label in scene_windows(2) if service == "fight"]
    assert labels
    assert set(labels) == {1}
    monkeypatch.setattr(simulated, "beginning", lambda _: 22.0)
    assert {label for service, _, label in scene_windows(2) if service == "fight"} == {0}


@pytest.mark.slow
def test_windows_of_drawn_scenes_show_who_acts_in_them(monkeypatch: pytest.MonkeyPatch, repo_dir: Path) -> None:
    monkeypatch.setattr(drawn, "RATES_HZ", (8.0,))
    config = load_config([repo_dir / "configs" / "pose-nano.yaml"], env={})
    seed = next(n for n in range(100, 200) if drawn.SCENARIOS[n % len(drawn.SCENARIOS)] == "fight")
    found = drawn.scene_windows(seed, config, create_estimator(config), seconds=12.0)
    assert {service for service, _, _ in found} == {"fight", "fall"}
    assert {label for service, _, label in found if service == "fight"} >= {1}
    assert {label for service, _, label in found if service == "fall"} == {0}
    assert max(window.tensor[..., 2].max() for _, window, _ in found) > 0.3
