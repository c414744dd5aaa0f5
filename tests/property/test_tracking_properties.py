"""Whatever detections come: identities stay unique, results repeat, order does not matter."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.schema import TrackingConfig
from agent.tracking import PALACE, ByteTracker, Matched

Frame = tuple[np.ndarray, np.ndarray]

coordinate = st.floats(-50, 700) | st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, 1e30, -1e-30])
size = st.floats(-5, 200) | st.sampled_from([float("nan"), float("inf"), 0.0, 1e-30])
score = st.floats(0, 1) | st.sampled_from([float("nan"), float("inf"), 0.1, 0.6, 0.7, 1.0])
wild_row = st.tuples(coordinate, coordinate, size, size, score)
config = st.sampled_from(
    [
        TrackingConfig(),
        PALACE,
        TrackingConfig(buffer_frames=1, min_box_area_px=0, keep_wide=True),
        TrackingConfig(keypoint_weight=0.3),
    ]
)


def frame_of(rows: list[tuple[float, float, float, float, float]]) -> Frame:
    table = np.array(rows, np.float64).reshape(-1, 5)
    with np.errstate(invalid="ignore"):
        boxes = np.concatenate((table[:, :2], table[:, :2] + table[:, 2:4]), axis=1)
    return boxes.astype(np.float32), table[:, 4].astype(np.float32)


wild_video = st.lists(st.lists(wild_row, max_size=8).map(frame_of), max_size=12)


@st.composite
def walks(draw: st.DrawFn) -> list[Frame]:
    """People who walk, vanish and come back; boxes and scores drawn without ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    people, frames = draw(st.integers(1, 8)), draw(st.integers(2, 25))
    place, speed = rng.uniform(0, 500, (people, 2)), rng.normal(0, 6, (people, 2))
    extent = np.stack((rng.uniform(20, 60, people), rng.uniform(60, 150, people)), axis=1)
    video = []
    for step in range(frames):
        corner = place + speed * step + rng.normal(0, 1.5, place.shape)
        shown = rng.random(people) < 0.85
        boxes = np.concatenate((corner, corner + extent), axis=1)[shown]
        video.append((boxes, rng.uniform(0.05, 1.0, people)[shown]))
    return video


def play(tracker: ByteTracker, video: list[Frame]) -> list[Matched]:
    return [tracker.track(boxes, scores) for boxes, scores in video]


def same(a: list[Matched], b: list[Matched]) -> bool:
    return all(np.array_equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


@given(wild_video, config)
@settings(deadline=None, max_examples=60)
def test_no_input_breaks_the_tracker_or_its_invariants(video: list[Frame], parameters: TrackingConfig) -> None:
    tracker = ByteTracker(parameters)
    gone: set[int] = set()
    for boxes, scores in video:
        found = tracker.track(boxes, scores)
        ids = found.track_ids.tolist()
        assert len(set(ids)) == len(ids)
        assert len(set(found.detections.tolist())) == len(ids), "at most one identity per detection"
        assert np.isfinite(found.boxes).all()
        assert np.isfinite(boxes[found.detections]).all()
        gone |= set(tracker.removed)
        assert not gone & set(ids), "an identity that was given up never comes back"
        assert not set(tracker.lost_ids) & set(ids)
    usable = sum(int(np.isfinite(boxes).all(axis=1).sum()) for boxes, _ in video)
    assert tracker.dropped_inputs >= sum(len(boxes) for boxes, _ in video) - usable


@given(walks(), config)
@settings(deadline=None, max_examples=50)
def test_every_identity_is_held_or_was_given_up_exactly_once(video: list[Frame], parameters: TrackingConfig) -> None:
    tracker = ByteTracker(parameters)
    seen: set[int] = set()
    removed: list[int] = []
    for boxes, scores in video:
        seen |= set(tracker.track(boxes, scores).track_ids.tolist())
        removed += tracker.removed
    tracker.reset()
    removed += tracker.removed
    assert len(set(removed)) == len(removed)
    assert seen <= set(removed)
    assert sorted(removed) == list(range(1, len(removed) + 1))


@given(walks(), config)
@settings(deadline=None, max_examples=50)
def test_same_input_gives_the_same_output(video: list[Frame], parameters: TrackingConfig) -> None:
    assert same(play(ByteTracker(parameters), video), play(ByteTracker(parameters), video))


@given(walks(), walks())
@settings(deadline=None, max_examples=50)
def test_reset_leaves_nothing_but_the_count_of_identities(before: list[Frame], video: list[Frame]) -> None:
    used = ByteTracker(TrackingConfig())
    play(used, before)
    used.reset()
    again, fresh = play(used, video), play(ByteTracker(TrackingConfig()), video)
    offset = {
        int(a - b) for x, y in zip(again, fresh, strict=True) for a, b in zip(x.track_ids, y.track_ids, strict=True)
    }
    assert len(offset) <= 1
    for x, y in zip(again, fresh, strict=True):
        np.testing.assert_array_equal(x.detections, y.detections)
        np.testing.assert_array_equal(x.boxes, y.boxes)


@given(walks(), st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_order_of_the_detections_does_not_matter(video: list[Frame], seed: int) -> None:
    """Drawn overlaps are distinct, so the assignment has one optimum; only the numbers of new identities follow the order."""
    order = np.random.default_rng(seed)
    shuffles = [order.permutation(len(scores)) for _, scores in video]
    shuffled = [(boxes[p], scores[p]) for (boxes, scores), p in zip(video, shuffles, strict=True)]
    name: dict[int, int] = {}
    plain = play(ByteTracker(TrackingConfig()), video)
    mixed = play(ByteTracker(TrackingConfig()), shuffled)
    for one, other, p in zip(plain, mixed, shuffles, strict=True):
        ids = dict(zip(one.detections.tolist(), one.track_ids.tolist(), strict=True))
        other_ids = dict(zip(p[other.detections].tolist(), other.track_ids.tolist(), strict=True))
        assert ids.keys() == other_ids.keys()
        assert all(name.setdefault(ids[row], other_ids[row]) == other_ids[row] for row in ids)


@given(walks())
@settings(deadline=None, max_examples=30)
def test_key_point_term_without_key_points_changes_nothing(video: list[Frame]) -> None:
    assert same(
        play(ByteTracker(TrackingConfig()), video), play(ByteTracker(TrackingConfig(keypoint_weight=0.5)), video)
    )
