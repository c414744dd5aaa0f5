"""The self-test of `doctor`: what the shipped models reach on it, and what an estimator may get wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from agent.commands.self_test import drawn_shots, self_test, try_estimator
from agent.config.load import load_config
from agent.config.schema import TrackingConfig
from agent.errors import DataError, ModelError, RecognizerError
from agent.simulation.values import Shot
from agent.types import ImageArray, People


def test_the_shipped_models_pass(repo_dir: Path, tmp_path: Path) -> None:
    config = load_config([repo_dir / "configs" / "pose-nano.yaml"], env={"STATE_DIRECTORY": str(tmp_path)})
    found = {finding.check: finding for finding in self_test(config)}
    assert found.keys() == {f"self-test: {name}" for name in ("fight", "fall", "pose model", "speed")}
    for name in ("fight", "fall"):
        assert found[f"self-test: {name}"].state == "good", found
        assert found[f"self-test: {name}"].text == "1 of 1 found, 0 false alarms, on true poses"
    pose = found["self-test: pose model"]
    assert pose.state == "good"
    seen, there = (int(number) for number in pose.text.split(" people")[0].split(" of "))
    assert 0.8 * there < seen <= there
    assert int(pose.text.split(" found, ")[1].split()[0]) > 0.8 * seen
    assert found["self-test: speed"].state != "bad"  # good where nothing else computes


@pytest.mark.parametrize(
    ("track_threshold", "state"), [(0.6, "warn"), (1.0, "bad")], ids=["as for other estimators", "of nobody"]
)
def test_people_whom_tracking_does_not_keep_are_not_seen(
    repo_dir: Path, tmp_path: Path, track_threshold: float, state: str
) -> None:
    file = tmp_path / "agent.yaml"
    off = {"enabled": False}
    file.write_text(
        json.dumps({"tracking": {"track_threshold": track_threshold}, "services": {"fight": off, "fall": off}})
    )
    config = load_config([repo_dir / "configs" / "pose-nano.yaml", file], env={"STATE_DIRECTORY": str(tmp_path)})
    pose = next(finding for finding in self_test(config) if finding.check == "self-test: pose model")
    assert pose.state == state, pose
    assert "lower them" in pose.text


@dataclass
class Answering:
    """A PoseEstimator that gives one answer, or raises it."""

    answer: object
    name: str = "answering"
    max_batch: int = 1

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]  # plug-ins are not all type-checked

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture(scope="module")
def shots() -> list[Shot]:
    return list(islice(drawn_shots(), 3))


def people(*boxes: Sequence[float]) -> People:
    count = len(boxes)
    return People(
        np.array(boxes, np.float32), np.ones((count, 17, 2), np.float32), np.ones((count, 17), np.float32),
        np.ones(count, np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (DataError("unreadable"), DataError, "unreadable"),
        (ZeroDivisionError("a bug"), ModelError, "ZeroDivisionError: a bug"),
        (None, ModelError, "NoneType"),
        ([], ModelError, "0 results for 1 inputs"),
        ([[(1, 2, 3, 4)]], ModelError, "returned a list, expected People"),
        ([people((10, 20, 30, np.nan))], ModelError, "boxes that are not finite"),
    ],
    ids=["raises", "bug", "nothing", "too few", "another type", "nan"],
)
async def test_an_estimator_that_fails_or_answers_malformed_is_an_error(
    answer: object, error: type[RecognizerError], words: str, shots: list[Shot]
) -> None:
    with pytest.raises(error, match=words):
        await try_estimator(Answering(answer), shots, TrackingConfig())


async def test_a_person_counts_where_one_is_and_only_once(shots: list[Shot]) -> None:
    nobody = await try_estimator(Answering([people((10, 20, 30, 40))]), shots, TrackingConfig())
    shown = sum(int((shot.truth.visible_share >= 0.5).sum()) for shot in shots)
    assert (nobody.found, nobody.tracked, nobody.shown) == (0, 0, shown)
    shot = next(shot for shot in shots if (shot.truth.visible_share >= 0.5).any())
    box = shot.truth.boxes[shot.truth.visible_share >= 0.5][0]
    somebody = await try_estimator(Answering([people(box, box)]), [shot], TrackingConfig(keep_wide=True))
    assert (somebody.found, somebody.tracked) == (1, 1)
