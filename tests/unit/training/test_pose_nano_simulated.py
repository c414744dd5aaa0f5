"""Simulated training pictures: staged people are people, truth becomes labels, hold-out seeds are refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pose_nano.prepare_simulated import HOLDOUT_SEEDS, Material, annotations_of, main, scene_pictures
from pose_nano.staged import CAST_S, StagedScript, near_camera
from pose_nano.store import Sample

from agent.simulation.values import Truth

T_POSE = np.array(
    [(0.1, 0, 1.65), (0.1, 0.03, 1.68), (0.1, -0.03, 1.68), (0, 0.08, 1.66), (0, -0.08, 1.66), (0, 0.2, 1.45), (0, -0.2, 1.45),
     (0, 0.45, 1.45), (0, -0.45, 1.45), (0, 0.7, 1.45), (0, -0.7, 1.45), (0, 0.1, 0.95), (0, -0.1, 0.95), (0, 0.1, 0.5),
     (0, -0.1, 0.5), (0, 0.1, 0.07), (0, -0.1, 0.07)], np.float32)  # fmt: skip
MOTION = np.stack([T_POSE + np.float32([0.02 * step, 0, 0]) for step in range(150)]).astype(np.float32)


def lengths(joints: np.ndarray) -> np.ndarray:
    return np.array([np.linalg.norm(joints[a] - joints[b]) for a, b in ((5, 7), (7, 9), (11, 13), (13, 15), (5, 6))])


@pytest.mark.parametrize("seed", range(6))
def test_limbs_keep_their_proportions_however_they_are_turned(seed: int) -> None:
    for actor in StagedScript([MOTION], seed=seed, people=4, casts=2).actors(1.0):
        size = lengths(actor.joints) / lengths(T_POSE)
        np.testing.assert_allclose(size, size[0], rtol=1e-3)
        assert actor.joints[:, 2].min() > 0


def test_every_cast_has_other_people() -> None:
    script = StagedScript([MOTION], seed=1, people=3, casts=2)
    first, second = ({actor.actor_id for actor in script.actors(t_s)} for t_s in (0.5, CAST_S + 0.5))
    assert len(first | second) == 6
    assert script.intervals(0, 10) == ()


def test_the_same_seed_stages_the_same_people() -> None:
    one, other = (StagedScript([MOTION], seed=3, people=2, casts=1).actors(1.0) for _ in range(2))
    np.testing.assert_array_equal(one[0].joints, other[0].joints)


@pytest.mark.parametrize("seed", range(8))
def test_a_near_camera_has_somebody_before_it(seed: int) -> None:
    script = StagedScript([MOTION], seed=seed, people=1, casts=1)
    camera = near_camera(script, np.random.default_rng(seed), width=320, height=240)
    _, depth = camera.project(script.actors(1.0)[0].joints)
    assert depth.max() > 0.5


def test_truth_becomes_labels_and_who_hardly_shows_becomes_unknown() -> None:
    truth = Truth(
        t_s=0.0,
        actor_ids=np.array([1, 2, 3]),
        boxes=np.array([[10, 10, 50, 90], [60, 10, 70, 90], [60, 10, 70, 90]], np.float32),
        full_boxes=np.zeros((3, 4), np.float32),
        keypoints=np.full((3, 17, 2), 30, np.float32),
        visibility=np.stack([np.array([0, 1] + [2] * 15), np.full(17, 2), np.array([2] + [1] * 16)]),
        visible_share=np.array([1.0, 0.04, 0.3], np.float32),
        actions=("walk", "walk", "walk"),
    )
    people = annotations_of(truth)
    assert people.labelled.tolist() == [
        True,
        False,
        False,
    ]  # of the second too little is seen, of the third one key point
    assert people.weights[0, 0] == 0 < people.weights[0, 1] < people.weights[0, 2] == 1
    assert people.seen[0, :3].tolist() == [0, -1, 1]  # outside, hidden: not asked for, seen
    gone = replace(truth, boxes=np.full((3, 4), np.nan, np.float32))
    assert len(annotations_of(gone)) == 0


def test_a_scene_gives_pictures_with_people_on_them() -> None:
    samples: list[Sample] = list(scene_pictures(5, 2, Material([MOTION], None, scripted=0.0)))
    assert [sample.image.shape for sample in samples] == [(480, 640, 3)] * 2
    assert sum(len(sample.people) for sample in samples) > 0


@pytest.mark.parametrize("shots", [1, 4, 5])
def test_a_scripted_play_gives_as_many_pictures_in_two_places(shots: int) -> None:
    samples: list[Sample] = list(scene_pictures(6, shots, Material([MOTION], None, scripted=1.0)))
    assert len(samples) == shots
    if shots > 1:
        first, last = samples[0].image.astype(int), samples[-1].image.astype(int)
        assert np.abs(first[:60, :60].mean(axis=(0, 1)) - last[:60, :60].mean(axis=(0, 1))).max() > 2


@pytest.mark.slow
def test_pictures_of_the_fallen_show_somebody_who_falls_or_lies() -> None:
    wide = {}
    for fallen in (0.0, 1.0):
        material = Material([MOTION], None, scripted=1.0, fallen=fallen)
        people = [sample.people for seed in (21, 22, 23) for sample in scene_pictures(seed, 8, material)]
        sides = np.concatenate([each.boxes[:, 2:] - each.boxes[:, :2] for each in people])
        wide[fallen] = float((sides[:, 0] > sides[:, 1]).mean())
    assert wide[1.0] > 3 * wide[0.0]
    assert wide[1.0] > 0.05


def test_seeds_of_hold_out_scenes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["--mocap", "x", "--scenes", "1", "--first-seed", str(HOLDOUT_SEEDS), "--out", str(tmp_path / "s")]
    monkeypatch.setattr(sys, "argv", ["prepare_simulated", *arguments])
    with pytest.raises(SystemExit):
        main()
