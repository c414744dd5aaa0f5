"""Two models compared: who is the same person, on which side of the threshold a window is, and when that is too little."""

from __future__ import annotations

import numpy as np
import pytest
from fakes.replay import walkers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.types import People
from agent.update.agreement import (
    MIN_POSITIVES,
    PoseTally,
    VerdictTally,
    likeness,
    match_people,
    rank_correlation,
    wilson_upper,
)

SIZE = (240, 320)


def some(count: int, frame: int = 0) -> People:
    return walkers(count, frame + 1, size=SIZE)[frame]


def first(count: int) -> People:
    """That many of `some(3)`."""
    return some(3).take(np.arange(count))


def moved(people: People, x_px: float) -> People:
    shift = np.array([x_px, 0], np.float32)
    return People(
        people.boxes + np.tile(shift, 2), people.keypoints + shift, people.keypoint_scores.copy(), people.scores.copy()
    )


def scored(people: People, *scores: float) -> People:
    return People(
        people.boxes.copy(), people.keypoints.copy(), people.keypoint_scores.copy(), np.array(scores, np.float32)
    )


def without_joints(people: People) -> People:
    return People(people.boxes.copy(), people.keypoints.copy(), people.keypoint_scores * 0, people.scores.copy())


def test_same_answers_agree_entirely() -> None:
    tally = PoseTally(0.3)
    for frame in range(5):
        tally.add(some(3, frame), some(3, frame))
    assert tally.agreement == 1.0
    assert tally.figures() == {
        "frames": 5, "people_running": 15, "people_candidate": 15, "agreement": 1.0, "keypoint_distance_px": 0.0,
    }  # fmt: skip


def test_person_of_one_model_alone_counts_against_both_ways() -> None:
    for running, candidate in ((some(3), first(2)), (first(2), some(3))):
        tally = PoseTally(0.3)
        tally.add(running, candidate)
        assert tally.agreement == pytest.approx(4 / 5)


def test_somebody_elsewhere_is_somebody_else() -> None:
    people = some(1)
    width = float(people.boxes[0, 2] - people.boxes[0, 0])
    near, far = PoseTally(0.3), PoseTally(0.3)
    near.add(people, moved(people, width * 0.03))
    far.add(people, moved(people, width * 2))
    assert near.agreement == 1.0
    assert near.figures()["keypoint_distance_px"] == pytest.approx(width * 0.03, abs=0.02)
    assert far.agreement == 0.0
    assert "keypoint_distance_px" not in far.figures()


def test_order_does_not_matter_and_nobody_is_matched_twice() -> None:
    a = some(4)
    b = a.take(np.array([2, 0, 3, 1]))
    rows, columns = match_people(a, b)
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 1, 1: 3, 2: 0, 3: 2}
    twice = a.take(np.array([0, 0]))
    assert len(match_people(a.take(np.array([0])), twice)[0]) == 1


def test_likeness_is_that_of_joints_and_of_boxes_where_joints_are_few() -> None:
    people = some(1)
    extent = people.boxes[0, 2:] - people.boxes[0, :2]
    beside = moved(people, float(extent[0]) / 2)
    iou = likeness(without_joints(people), without_joints(beside))[0, 0]
    assert iou == pytest.approx(1 / 3, abs=0.01), "half of the width in common"
    # COCO's similarity by hand: exp(-d^2 / (2 area (2 sigma)^2)), all joints as sure as each other.
    sigmas = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
    distance = float(extent[0]) / 2
    by_hand = np.exp(-(distance**2) / (2 * float(extent.prod()) * (2 * sigmas) ** 2)).mean()
    equal = People(
        people.boxes.copy(), people.keypoints.copy(), np.full((1, 17), 0.9, np.float32), people.scores.copy()
    )
    assert likeness(equal, moved(equal, distance))[0, 0] == pytest.approx(by_hand, rel=1e-4)


def test_flickering_about_the_threshold_is_no_disagreement() -> None:
    tally = PoseTally(0.5)
    tally.add(scored(some(2), 0.9, 0.52), scored(some(2), 0.9, 0.48))
    assert (tally.people, tally.matched) == (3, 3)
    tally.add(scored(some(2), 0.9, 0.2), some(2).take(np.array([0])))
    assert tally.agreement == 1.0, "who is unsure need not be seen by the other"


def test_nobody_in_view_is_no_verdict() -> None:
    tally = PoseTally(0.3)
    for _ in range(50):
        tally.add(People.empty(), People.empty())
    opinion = tally.opinion(0.9, 100)
    assert opinion.good
    assert not opinion.enough
    assert not opinion.proven
    assert "nothing to compare" in opinion.text
    assert "agreement" not in tally.figures()


def test_few_people_refuse_only_what_is_clear() -> None:
    doubtful, clear = PoseTally(0.3), PoseTally(0.3)
    doubtful.add(some(3), first(2))  # 4 of 5
    clear.add(some(3), moved(some(3), 1000))
    assert clear.opinion(0.9, 100).good, "six people are too few for anything"
    clear.add(some(3), moved(some(3), 1000))
    assert not clear.opinion(0.9, 100).good, "none of twelve"
    doubtful.add(some(3), first(1))
    doubtful.add(some(1), moved(some(1), 1000))
    assert doubtful.opinion(0.9, 100).good, "more than half of eleven"
    for _ in range(2):
        clear.add(some(3), moved(some(3), 1000))
    assert doubtful.opinion(0.9, 100).good
    assert not clear.opinion(0.9, 100).good
    assert not clear.opinion(0.9, 100).enough
    for _ in range(30):
        doubtful.add(some(3), first(2))
    opinion = doubtful.opinion(0.9, 100)
    assert not opinion.good
    assert opinion.enough
    assert "78.3% of 161 people" in opinion.text


def test_few_people_prove_nothing_and_some_do() -> None:
    tally = PoseTally(0.3)
    for frame in range(3):
        tally.add(some(3, frame), some(3, frame))
    assert not tally.opinion(0.9, 100).proven, "eighteen"
    tally.add(some(1), some(1))
    opinion = tally.opinion(0.9, 100)
    assert (opinion.good, opinion.enough, opinion.proven) == (True, False, True)


# --- verdicts -----------------------------------------------------------------------------------------------------------


def verdicts(*pairs: tuple[float, float], floor: float = 0.0) -> VerdictTally:
    tally = VerdictTally(0.6, positive_floor=floor)
    for pair in pairs:
        tally.add(*pair)
    return tally


def test_same_side_of_the_threshold_agrees() -> None:
    tally = verdicts((0.9, 0.7), (0.1, 0.5), (0.59, 0.61), (0.6, 0.6))
    assert tally.agreement == 3 / 4
    assert tally.positives == 2.5
    assert tally.positive_agreement == pytest.approx(2 / 2.5)
    assert tally.figures() == {
        "windows": 4, "agreement": 0.75, "probability_difference": pytest.approx((0.2 + 0.4 + 0.02) / 4, abs=1e-4),
        "positives_running": 2, "positives_candidate": 3, "positive_agreement": 0.8, "rank_correlation": 0.8,
    }  # fmt: skip


def test_candidate_that_never_sees_anything_is_found_out_by_what_is_positive() -> None:
    quiet = [(0.1, 0.1)] * 400
    blind = verdicts(*quiet, *[(0.9, 0.1)] * int(2 * MIN_POSITIVES), floor=0.3)
    assert blind.agreement > 0.95
    opinion = blind.opinion(0.8, 30)
    assert not opinion.good
    assert "positive verdicts" in opinion.text
    assert verdicts(*quiet, *[(0.9, 0.1)] * 4, floor=0.3).opinion(0.8, 30).good, "too few to tell"


def test_enough_windows_are_judged_by_the_share() -> None:
    tally = verdicts(*[(0.9, 0.9)] * 20, *[(0.9, 0.1)] * 20)
    opinion = tally.opinion(0.8, 30)
    assert (opinion.good, opinion.enough) == (False, True)
    assert "50.0% of 40 windows" in opinion.text
    assert tally.opinion(0.5, 30).good


def test_no_window_is_no_verdict() -> None:
    opinion = verdicts().opinion(0.8, 30)
    assert (opinion.good, opinion.enough) == (True, False)
    assert verdicts().figures() == {"windows": 0}


@given(
    arrays(np.float64, st.tuples(st.integers(3, 40), st.just(2)), elements=st.floats(0, 1).map(lambda v: round(v, 1)))
)
def test_rank_correlation_is_that_of_scipy(pairs: np.ndarray) -> None:
    stats = pytest.importorskip("scipy.stats")
    ours = rank_correlation(pairs)
    if len(set(pairs[:, 0])) == 1 or len(set(pairs[:, 1])) == 1:
        assert ours is None
    else:
        assert ours == pytest.approx(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic, abs=1e-9)


def test_rank_correlation_of_known_ranks() -> None:
    rising = np.stack([np.arange(10.0), np.arange(10.0) ** 3], axis=1)
    assert rank_correlation(rising) == pytest.approx(1.0)
    assert rank_correlation(rising * [1, -1]) == pytest.approx(-1.0)
    assert rank_correlation(rising[:2]) is None


@pytest.mark.parametrize(("hits", "total", "upper"), [(0, 10, 0.2775), (5, 10, 0.7634), (10, 10, 1.0), (0, 0, 1.0)])
def test_wilson_interval(hits: int, total: int, upper: float) -> None:
    """Figures from the tables of Newcombe 1998."""
    assert wilson_upper(hits, total) == pytest.approx(upper, abs=5e-4)
