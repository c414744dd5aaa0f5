"""Life of a track: birth, loss, return, end; bad input; variants."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime

import numpy as np
import pytest

import agent.tracking.bytetrack
from agent.config.schema import TrackingConfig
from agent.tracking import PALACE, ByteTracker
from agent.types import FrameStamp, People, TrackState

WALKER = (100.0, 100.0, 140.0, 200.0)
FAR = (400.0, 100.0, 440.0, 200.0)
NOBODY = np.zeros((0, 4)), np.zeros(0)


def see(tracker: ByteTracker, *people: tuple[tuple[float, float, float, float], float]) -> list[int]:
    boxes = np.array([box for box, _ in people]).reshape(-1, 4)
    return tracker.track(boxes, np.array([score for _, score in people])).track_ids.tolist()


def person(box: tuple[float, float, float, float], score: float = 0.9) -> People:
    left, top, right, bottom = np.nan_to_num(np.array(box, np.float32), posinf=1e3, neginf=-1e3)
    keypoints = np.stack((np.linspace(left, right, 17), np.linspace(top, bottom, 17)), axis=1).astype(np.float32)
    return People(
        np.array([box], np.float32), keypoints[None], np.full((1, 17), 0.8, np.float32), np.array([score], np.float32)
    )


def together(*people: People) -> People:
    return People(
        np.concatenate([p.boxes for p in people]),
        np.concatenate([p.keypoints for p in people]),
        np.concatenate([p.keypoint_scores for p in people]),
        np.concatenate([p.scores for p in people]),
    )


def stamp(seq: int) -> FrameStamp:
    return FrameStamp("cam", seq, seq * 33_000_000, datetime(2026, 1, 1, tzinfo=UTC), 640, 480)


def test_example_of_the_documentation_holds() -> None:
    assert doctest.testmod(agent.tracking.bytetrack).failed == 0


def test_first_frame_confirms_at_once_and_later_ones_at_the_second_hit() -> None:
    tracker = ByteTracker(TrackingConfig())
    assert see(tracker, (WALKER, 0.9)) == [1]
    assert see(tracker, (WALKER, 0.9), (FAR, 0.9)) == [1]
    assert see(tracker, (WALKER, 0.9), (FAR, 0.9)) == [1, 2]


def test_single_hit_after_the_first_frame_is_given_up() -> None:
    tracker = ByteTracker(TrackingConfig())
    tracker.track(*NOBODY)
    assert see(tracker, (WALKER, 0.9)) == []
    tracker.track(*NOBODY)
    assert tracker.removed == (1,)
    see(tracker, (WALKER, 0.9))
    assert see(tracker, (WALKER, 0.9)) == [2]


def test_new_track_needs_the_margin_above_the_threshold() -> None:
    tracker = ByteTracker(TrackingConfig())
    assert see(tracker, (WALKER, 0.65), (FAR, 0.7)) == [1]


def test_doubtful_detection_carries_a_known_track_but_starts_none() -> None:
    tracker = ByteTracker(TrackingConfig())
    see(tracker, (WALKER, 0.9))
    assert see(tracker, (WALKER, 0.2), (FAR, 0.5)) == [1]
    assert see(tracker, (WALKER, 0.05)) == []
    assert tracker.lost_ids == (1,)


def test_doubtful_detection_does_not_bring_back_a_lost_track() -> None:
    tracker = ByteTracker(TrackingConfig())
    see(tracker, (WALKER, 0.9))
    tracker.track(*NOBODY)
    assert see(tracker, (WALKER, 0.5)) == []
    assert see(tracker, (WALKER, 0.9)) == [1]
    assert tracker.lost_ids == ()


@pytest.mark.parametrize(("fps", "buffer_frames"), [(30.0, 30), (15.0, 15), (60.0, 60)])
def test_lost_track_comes_back_within_the_buffer_of_the_frame_rate(fps: float, buffer_frames: int) -> None:
    tracker = ByteTracker(TrackingConfig(), fps=fps)
    see(tracker, (WALKER, 0.9))
    for _ in range(buffer_frames):
        tracker.track(*NOBODY)
    assert see(tracker, (WALKER, 0.9)) == [1]


@pytest.mark.parametrize(("before", "now", "buffer_frames"), [(5.0, 30.0, 30), (30.0, 5.0, 5)])
def test_lost_track_is_kept_as_long_as_the_frame_rate_of_now_says(
    before: float, now: float, buffer_frames: int
) -> None:
    tracker = ByteTracker(TrackingConfig(), fps=before)
    see(tracker, (WALKER, 0.9))
    tracker.set_fps(now)
    for _ in range(buffer_frames):
        tracker.track(*NOBODY)
    assert see(tracker, (WALKER, 0.9)) == [1]
    for _ in range(buffer_frames + 3):
        tracker.track(*NOBODY)
    assert tracker.lost_ids == ()


def test_lost_track_is_removed_after_the_buffer_and_reported_once() -> None:
    tracker = ByteTracker(TrackingConfig(buffer_frames=5))
    see(tracker, (WALKER, 0.9))
    removed = []
    for _ in range(12):
        tracker.track(*NOBODY)
        removed.append(tracker.removed)
    assert [ids for ids in removed if ids] == [(1,)]
    assert tracker.lost_ids == ()
    see(tracker, (WALKER, 0.9))
    assert see(tracker, (WALKER, 0.9)) == [2]


def test_two_people_who_cross_keep_their_identities() -> None:
    tracker = ByteTracker(TrackingConfig())
    for step in range(40):
        a = (100.0 + 8 * step, 100.0, 140.0 + 8 * step, 220.0)
        b = (420.0 - 8 * step, 130.0, 460.0 - 8 * step, 250.0)
        ids = see(tracker, (a, 0.9), (b, 0.85))
    assert ids == [1, 2]


def test_double_of_a_lost_track_is_dropped_in_favour_of_the_older_one() -> None:
    tracker = ByteTracker(TrackingConfig(match_threshold=0.0))  # nothing matches: every detection starts a track
    see(tracker, (WALKER, 0.9))
    see(tracker, (WALKER, 0.9))  # equally old: the tracked one goes
    assert tracker.removed == (2,)
    assert tracker.lost_ids == (1,)


def test_wide_and_tiny_boxes_are_tracked_but_not_shown() -> None:
    lying, tiny = (10.0, 10.0, 110.0, 50.0), (300.0, 300.0, 308.0, 310.0)
    assert see(ByteTracker(TrackingConfig()), (lying, 0.9), (tiny, 0.9)) == []
    assert see(ByteTracker(TrackingConfig(keep_wide=True)), (lying, 0.9), (tiny, 0.9)) == [1]
    assert see(ByteTracker(TrackingConfig(min_box_area_px=0)), (lying, 0.9), (tiny, 0.9)) == [2]


def test_update_returns_filtered_boxes_with_key_points_of_the_matched_person() -> None:
    tracker = ByteTracker(TrackingConfig())
    tracker.update(stamp(0), together(person(FAR), person(WALKER)))
    moved = (110.0, 100.0, 150.0, 200.0)
    tracks = tracker.update(stamp(1), together(person(moved, 0.8), person(FAR)))
    assert tracks.stamp.seq == 1
    assert tracks.track_ids.tolist() == [1, 2]
    assert tracks.states.tolist() == [TrackState.TRACKED] * 2
    np.testing.assert_allclose(tracks.people.scores, [0.9, 0.8])
    np.testing.assert_array_equal(tracks.people.keypoints[1], person(moved).keypoints[0])
    assert WALKER[0] < tracks.people.boxes[1, 0] < moved[0]  # between prediction and detection
    assert tracks.people.boxes.dtype == np.float32


def test_update_with_nobody_is_empty() -> None:
    tracks = ByteTracker(TrackingConfig()).update(stamp(0), People.empty())
    assert len(tracks.people) == len(tracks.track_ids) == 0


@pytest.mark.parametrize(
    ("box", "score"),
    [
        ((float("nan"), 0, 10, 10), 0.9),
        ((0, 0, float("inf"), 10), 0.9),
        ((-float("inf"), 0, float("inf"), 10), 0.9),
        ((0, 0, 10, 10), float("nan")),
        ((0, 0, 10, 10), float("inf")),
        ((0, 0, 3e38, 3e38), 0.9),
        ((5, 5, 5, 50), 0.9),
        ((50, 50, 5, 5), 0.9),
    ],
)
def test_unusable_row_is_dropped_and_counted(box: tuple[float, float, float, float], score: float) -> None:
    tracker = ByteTracker(TrackingConfig(keypoint_weight=0.3))
    tracks = tracker.update(stamp(0), together(person(box, score), person(WALKER)))
    assert tracks.track_ids.tolist() == [1]
    np.testing.assert_array_equal(tracks.people.boxes, [WALKER])
    assert tracker.dropped_inputs == 1


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"boxes: expected shape \(1, 4\), got \(2, 4\)"):
        ByteTracker(TrackingConfig()).track(np.zeros((2, 4)), np.zeros(1))


@pytest.mark.parametrize("fps", [0.0, -5.0, float("nan"), float("inf")])
def test_frame_rate_must_be_a_positive_number(fps: float) -> None:
    with pytest.raises(ValueError, match="fps"):
        ByteTracker(TrackingConfig(), fps=fps)
    with pytest.raises(ValueError, match="fps"):
        ByteTracker(TrackingConfig()).set_fps(fps)


def test_two_hundred_people_in_one_heap_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    tracker = ByteTracker(TrackingConfig(keypoint_weight=0.3))
    heap = together(*[person((100 + x, 100 + y, 160 + x, 250 + y)) for x, y in rng.uniform(0, 30, (200, 2))])
    for seq in range(3):
        tracks = tracker.update(stamp(seq), heap)
    assert len(set(tracks.track_ids.tolist())) == len(tracks.track_ids) > 150


def test_reset_forgets_everybody_and_gives_no_identity_twice() -> None:
    tracker = ByteTracker(TrackingConfig())
    see(tracker, (WALKER, 0.9), (FAR, 0.9))
    see(tracker, (WALKER, 0.9))
    tracker.reset()
    assert tracker.removed == (1, 2)
    assert tracker.lost_ids == ()
    assert see(tracker, (WALKER, 0.9)) == [3]


def test_instances_count_for_themselves() -> None:
    see(ByteTracker(TrackingConfig()), (WALKER, 0.9))
    assert see(ByteTracker(TrackingConfig()), (WALKER, 0.9)) == [1]


def test_key_points_decide_between_people_whose_boxes_say_nothing() -> None:
    """Two people swap places within one box: the poses tell who is who, the boxes cannot."""
    upright, bent = person(WALKER), person(WALKER)
    keypoints = bent.keypoints.copy()
    keypoints[..., 0] = keypoints[:, ::-1, 0]
    bent = People(bent.boxes + np.float32(0.5), keypoints, bent.keypoint_scores.copy(), bent.scores.copy())
    with_poses = ByteTracker(TrackingConfig(keypoint_weight=0.5))
    with_poses.update(stamp(0), together(upright, bent))
    upright_later = People(
        upright.boxes + np.float32(0.5), upright.keypoints.copy(), upright.keypoint_scores.copy(), upright.scores.copy()
    )
    bent_later = People(
        bent.boxes - np.float32(0.5), bent.keypoints.copy(), bent.keypoint_scores.copy(), bent.scores.copy()
    )
    tracks = with_poses.update(stamp(1), together(bent_later, upright_later))
    by_id = dict(zip(tracks.track_ids.tolist(), tracks.people.keypoints, strict=True))
    np.testing.assert_array_equal(by_id[1], upright.keypoints[0])
    np.testing.assert_array_equal(by_id[2], bent.keypoints[0])


def test_people_without_usable_key_points_are_matched_by_their_boxes() -> None:
    tracker = ByteTracker(TrackingConfig(keypoint_weight=1.0))
    blind = person(WALKER)
    blind = People(blind.boxes, np.full_like(blind.keypoints, np.nan), blind.keypoint_scores, blind.scores)
    tracker.update(stamp(0), blind)
    assert tracker.update(stamp(1), person(WALKER)).track_ids.tolist() == [1]


def test_palace_variant_compares_with_the_last_update_instead_of_the_prediction() -> None:
    """A runner stops showing for a while: the prediction runs on, the last box stays."""
    runs = [((100.0 + 15 * i, 100.0, 160.0 + 15 * i, 250.0), 0.9) for i in range(10)]
    ahead = (100.0 + 15 * 13, 100.0, 160.0 + 15 * 13, 250.0)
    behind = runs[-1][0]
    found = {}
    for name, config in (("upstream", TrackingConfig()), ("palace", PALACE)):
        for place, box in (("ahead", ahead), ("behind", behind)):
            tracker = ByteTracker(config)
            for one in runs:
                see(tracker, one)
            for _ in range(3):
                tracker.track(*NOBODY)
            found[name, place] = see(tracker, (box, 0.7))
    assert found["upstream", "ahead"] == [1]
    assert found["palace", "behind"] == [1]
    assert found["palace", "ahead"] == []
