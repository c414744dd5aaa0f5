"""Bodies: directions to joints and back, two-bone limbs, limits."""

from __future__ import annotations

import numpy as np
import pytest

from agent.simulation import skeleton as sk
from agent.types import NUM_KEYPOINTS


def random_poses(rng: np.random.Generator, count: int) -> sk.Array:
    return sk.unit(rng.normal(0, 1, (count, sk.NUM_BONES, 3)))


def test_joints_keep_the_lengths_of_the_body_in_any_pose() -> None:
    rng = np.random.default_rng(1)
    body = sk.random_body(rng)
    joints = sk.joints_of(sk.Lengths([body]).table[0][None], rng.normal(0, 1, (200, 3)), random_poses(rng, 200))
    assert joints.shape == (200, NUM_KEYPOINTS, 3)
    for first, second, length in (
        (sk.SHOULDER_L, sk.ELBOW_L, body.upper_arm),
        (sk.ELBOW_R, sk.WRIST_R, body.forearm),
        (sk.HIP_L, sk.KNEE_L, body.thigh),
        (sk.KNEE_R, sk.ANKLE_R, body.shank),
        (sk.HIP_L, sk.HIP_R, body.hip_width),
        (sk.SHOULDER_L, sk.SHOULDER_R, body.shoulder_width),
    ):
        assert np.linalg.norm(joints[:, first] - joints[:, second], axis=1) == pytest.approx(length)


def test_directions_read_from_joints_make_the_same_joints() -> None:
    rng = np.random.default_rng(2)
    table = sk.Lengths([sk.average_body()]).table[0][None]
    bones = random_poses(rng, 50)
    joints = sk.joints_of(table, np.zeros((50, 3)), bones)
    root, read = sk.bones_of(joints)
    assert np.allclose(root, 0, atol=1e-9)
    kept = [k for k in range(sk.NUM_BONES) if k != sk.FACE]  # the face is made perpendicular to the head
    assert np.allclose(read[:, kept], bones[:, kept], atol=1e-6)
    again = sk.joints_of(table, root, read)
    assert np.allclose(again, joints, atol=2e-3)


def test_mirroring_twice_gives_the_pose_back() -> None:
    bones = random_poses(np.random.default_rng(3), 4)
    assert np.allclose(sk.mirrored(sk.mirrored(bones)), bones)
    assert not np.allclose(sk.mirrored(bones), bones)


def test_two_bones_meet_a_target_within_reach_and_bend_towards_the_pole() -> None:
    rng = np.random.default_rng(4)
    start = rng.normal(0, 1, (100, 3))
    target = start + sk.unit(rng.normal(0, 1, (100, 3))) * rng.uniform(0.15, 0.68, (100, 1))
    pole = np.broadcast_to(np.array([1.0, 0.2, 0.1]), (100, 3))
    upper, lower = sk.two_bone(start, target, pole, 0.4, 0.3)
    assert np.allclose(start + upper * 0.4 + lower * 0.3, target, atol=1e-6)
    middle = start + upper * 0.4 - (start + target) / 2
    axis = sk.unit(target - start)
    sideways = pole - axis * (pole * axis).sum(axis=1, keepdims=True)
    assert ((middle * sideways).sum(axis=1) > 0).all()


def test_two_bones_point_at_a_target_out_of_reach() -> None:
    start, target = np.zeros((1, 3)), np.array([[2.0, 0.0, 0.0]])
    upper, lower = sk.two_bone(start, target, np.array([[0.0, 0.0, 1.0]]), 0.4, 0.3)
    assert np.allclose(upper, [1, 0, 0], atol=0.06)
    assert np.allclose(lower, [1, 0, 0], atol=0.06)


def test_a_flip_is_spread_over_frames_and_slow_motion_is_left_alone() -> None:
    angles = np.concatenate([np.zeros(5), np.full(40, np.pi)])
    track = np.stack([np.cos(angles), np.sin(angles), np.zeros(45)], axis=1)[:, None]
    calm = sk.unhurried(track, 0.25)
    steps = np.arccos(np.clip((calm[1:] * calm[:-1]).sum(axis=-1), -1, 1))
    assert steps.max() <= 0.25 + 1e-6
    assert np.allclose(calm[-1], track[-1])
    slow = np.stack([np.cos(angles * 0), np.sin(angles * 0), angles * 0], axis=1)[:, None]
    assert sk.unhurried(slow, 0.25) is slow


def test_children_are_small_and_adults_are_not() -> None:
    rng = np.random.default_rng(5)
    children = [sk.random_body(rng, child=True) for _ in range(50)]
    adults = [sk.random_body(rng) for _ in range(50)]
    assert max(body.height for body in children) < min(body.height for body in adults)
    assert all(0.40 < body.leg / body.height < 0.56 for body in children + adults)


def test_the_face_looks_where_the_head_is_turned() -> None:
    bones = np.broadcast_to(np.array([0.0, 0.0, 1.0]), (1, sk.NUM_BONES, 3)).copy()
    bones[0, [sk.HIP_AXIS, sk.SHOULDER_AXIS]] = (0, 1, 0)
    bones[0, sk.FACE] = (1, 0, 0)
    joints = sk.joints_of(sk.Lengths([sk.average_body()]).table[0][None], np.zeros((1, 3)), bones)[0]
    ears = joints[[sk.EAR_L, sk.EAR_R]].mean(axis=0)
    assert (joints[sk.NOSE] - ears)[0] > 0.08
    assert joints[sk.EAR_L][1] > joints[sk.EYE_L][1] > 0 > joints[sk.EYE_R][1] > joints[sk.EAR_R][1]
    assert joints[sk.EYE_L][2] > joints[sk.NOSE][2]
