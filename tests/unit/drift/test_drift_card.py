"""The means of a card: what a report measures is what the watch of a device learns from the same frames and verdicts."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from agent.config.schema import DriftConfig
from agent.drift.card import SIGNALS, CardMeter
from agent.drift.watch import DriftWatch, Key, Model
from agent.events.ids import Uuid7
from agent.types import NUM_KEYPOINTS, ActionScores, People

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
QUICK = DriftConfig(block_s=1, min_samples=1, min_windows=1)


def people(count: int, rng: np.random.Generator) -> People:
    return People(
        np.zeros((count, 4), np.float32),
        np.zeros((count, NUM_KEYPOINTS, 2), np.float32),
        rng.uniform(0, 1, (count, NUM_KEYPOINTS)).astype(np.float32),
        rng.uniform(0, 1, count).astype(np.float32),
    )


def verdict(probability: float, service: str = "fight") -> ActionScores:
    probs = {service: probability, "other": 1 - probability}
    return ActionScores("yard", service, probability, probs, 0, 1, NOON, (1,), 0.01)


def test_means_are_the_levels_that_a_watch_learns_from_the_same() -> None:
    rng, meter, watch = np.random.default_rng(1), CardMeter(), DriftWatch(QUICK, Uuid7())
    slots = {"pose": "pose", "action/fight": "action", "action/fall": "action"}
    for slot in slots:
        watch.set_model(slot, Model("any 1.0"))
    for step in range(20):
        seen = people(step % 4, rng)  # now and then nobody
        watch.observe_people("yard", seen)
        meter.observe_people(seen)
        for scores in (verdict(rng.uniform()), verdict(rng.uniform(), "fall"), verdict(math.nan)):
            watch.observe_scores(scores)
            meter.observe_scores(scores)
    watch.step(1.0, NOON)
    watch.step(1.0, NOON)  # ends the block that the first step opened
    learned = {
        Key(*key): state["learned"][0]["0"]
        for *key, state in watch.state()["signals"]
        if key[0] in SIGNALS[slots[key[1]]]
    }
    means = meter.means()
    assert {(slot, signal) for slot, task in slots.items() for signal in SIGNALS[task]} == {
        (key.slot, key.signal) for key in learned
    }
    for key, (number, total) in learned.items():
        assert means[key.slot][key.signal] == pytest.approx(total / number)
        assert number == (15 if key.slot == "pose" else 20)


def test_each_frame_counts_once_however_many_are_in_it() -> None:
    meter, rng = CardMeter(), np.random.default_rng(2)
    crowd, one = people(9, rng), people(1, rng)
    meter.observe_people(crowd)
    meter.observe_people(one)
    assert meter.means()["pose"] == pytest.approx({
        "person_confidence": (crowd.scores.mean() + one.scores.mean()) / 2,
        "keypoint_visibility": (crowd.keypoint_scores.mean() + one.keypoint_scores.mean()) / 2,
    })  # fmt: skip


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_frame_whose_scores_are_no_numbers_says_nothing(score: float) -> None:
    meter, rng = CardMeter(), np.random.default_rng(3)
    good, joint, person = people(2, rng), people(2, rng), people(2, rng)
    joint = replace(joint, keypoint_scores=np.where(np.eye(2, NUM_KEYPOINTS), score, joint.keypoint_scores))
    person = replace(person, scores=np.array([0.9, score], np.float32))
    for seen in (joint, good, person):
        meter.observe_people(seen)
    assert meter.means()["pose"] == pytest.approx(
        {"person_confidence": good.scores.mean(), "keypoint_visibility": good.keypoint_scores.mean()}
    )


def test_a_window_counts_by_its_surest_class() -> None:
    meter = CardMeter()
    for probability in (0.9, 0.2):
        meter.observe_scores(verdict(probability))
    assert meter.means() == {"action/fight": {"window_confidence": pytest.approx(0.85)}}


def test_nothing_seen_is_nothing_promised() -> None:
    meter = CardMeter()
    meter.observe_people(People.empty())
    meter.observe_scores(verdict(math.nan))
    assert meter.means() == {}
