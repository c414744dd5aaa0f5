"""Strips of mistakes: which moments, whom the agent followed then, what it showed, and how little of it is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.replay import walkers

from agent.config.schema import RulesConfig, ServiceConfig
from agent.drift.card import CardMeter
from agent.evaluate.matching import Alarm, Incident, Matching
from agent.evaluate.runs.mistakes import Mistake, kept_every, mistakes_of, save_strips, worst
from agent.evaluate.runs.playback import SceneWatcher
from agent.evaluate.scenarios import SceneRun
from agent.evaluate.strips import FRAMES, WIDTH_PX
from agent.simulation.values import Shot, Truth
from agent.types import ActionScores, Frame, FrameStamp, People, Tracks

RUN = SceneRun(scenario="fight", seed=3, people=2, seconds=60)
SERVICES = {"fight": ServiceConfig(model=Path("/none"), rules=RulesConfig(alert_threshold=0.75))}
T0 = datetime(2026, 1, 1, tzinfo=UTC)
SIZE = (480, 640)


def watched(seconds: float, fps: float, *, every: int | None = None) -> SceneWatcher:
    """A scene of two people, #1 and #2, who stand still; every 0.5 s a verdict whose probability is its second / 100."""
    watcher = SceneWatcher(lambda: None, CardMeter(), keep_every=kept_every(fps) if every is None else every)
    image = np.zeros((*SIZE, 3), np.uint8)
    (people,) = walkers(2, 1, size=SIZE)
    for number in range(round(seconds * fps)):
        t_s = number / fps
        stamp = FrameStamp("scene", number, round(t_s * 1e9), T0 + timedelta(seconds=t_s), SIZE[1], SIZE[0])
        watcher.on_tracks(
            Frame(stamp, image), people, Tracks(stamp, people, np.array([1, 2]), np.ones(2, np.int64)), 0.0
        )
    for half in range(round(seconds * 2)):
        end_ns = half * 500_000_000
        watcher.on_scores(
            ActionScores("scene", "fight", half / 200, {"fight": half / 200}, end_ns - 10**9, end_ns, T0, (1,), 0.0)
        )
    return watcher


def matching(*, missed: tuple[float, ...] = (), false_alarms: tuple[float, ...] = ()) -> dict[str, Matching]:
    incidents = tuple(Incident("fight", start_s, start_s + 3) for start_s in missed)
    alarms = tuple(Alarm("fight", at_s, at_s - 1, None, at_s / 100) for at_s in false_alarms)
    return {"fight": Matching((), incidents, (), (), alarms)}


def times_s(mistake: Mistake) -> list[float]:
    return [moment.tracks.stamp.t_mono_ns / 1e9 for moment in mistake.moments]


@pytest.mark.parametrize("fps", [5, 12.5, 15, 25, 29.97, 30])
def test_strips_span_six_seconds_around_the_mistake_at_any_frame_rate(fps: float) -> None:
    watcher = watched(40, fps)
    alarm, missed = mistakes_of(RUN, matching(missed=(20.0,), false_alarms=(30.1,)), watcher, SERVICES, fps)
    for mistake, first, last in ((alarm, 24.1, 30.1), (missed, 19.5, 25.5)):
        shown = times_s(mistake)
        assert len(shown) == FRAMES
        assert (shown[0], shown[-1]) == pytest.approx((first, last), abs=0.7)
        np.testing.assert_allclose(np.diff(shown), (shown[-1] - shown[0]) / (FRAMES - 1), atol=1e-6)
    assert times_s(alarm)[-1] >= 30.1, "the event is in the picture"
    assert times_s(missed)[0] <= 19.5


def test_strips_do_not_leave_the_scene() -> None:
    watcher = watched(10, 15)
    early, late = mistakes_of(RUN, matching(missed=(0.2, 9.0)), watcher, SERVICES, 15)
    assert times_s(early) == pytest.approx([0, 1.2, 2.4, 3.6, 4.8, 6.0])
    assert times_s(late) == pytest.approx([3.6, 4.8, 6.0, 7.2, 8.4, 9.6])
    (short,) = mistakes_of(RUN, matching(missed=(0.2,)), watched(2, 15), SERVICES, 15)
    assert times_s(short) == pytest.approx([0, 1.2])


def test_a_moment_shows_what_the_service_said_then() -> None:
    (missed,) = mistakes_of(RUN, matching(missed=(20.5,)), watched(40, 15), SERVICES, 15)
    said = [[(bar.label, bar.probability, bar.threshold) for bar in moment.actions] for moment in missed.moments]
    newest = [t_s // 0.5 / 200 for t_s in times_s(missed)]
    assert said == [[("fight", pytest.approx(probability), 0.75)] for probability in newest]


def test_the_surest_false_alarms_are_the_worst_and_no_more_are_kept_than_shown() -> None:
    found = matching(missed=(5.0, 9.0), false_alarms=(10.0, 30.0, 20.0))
    mistakes = list(mistakes_of(RUN, found, watched(40, 5), SERVICES, 5))
    assert [one.title for one in worst(mistakes, 4)] == [
        "False alarm: fight at 30.0 s (fight, seed 3), confidence 0.30",
        "False alarm: fight at 20.0 s (fight, seed 3), confidence 0.20",
        "False alarm: fight at 10.0 s (fight, seed 3), confidence 0.10",
        "Missed: fight from 5.0 s (fight, seed 3)",
    ]
    assert worst(mistakes, 0) == []


@pytest.mark.parametrize(("every", "kept"), [(6, 100), (0, 0)])
def test_only_the_tracks_that_strips_need_are_kept(every: int, kept: int) -> None:
    watcher = watched(40, 15, every=every)
    assert [tracks.stamp.seq for tracks in watcher.kept] == list(range(0, 600, every or 600))[:kept]


class GreyScene:
    """A Scene of nothing."""

    width, height = SIZE[1], SIZE[0]

    def shot(self, t_s: float) -> Shot:
        nobody = People.empty()
        none = np.zeros(0, np.int64)
        truth = Truth(
            t_s, none, nobody.boxes, nobody.boxes, nobody.keypoints, np.zeros((0, 17), np.int64), nobody.scores, ()
        )
        return Shot(np.full((*SIZE, 3), 90, np.uint8), truth)


def test_the_people_that_the_agent_followed_are_drawn(tmp_path: Path) -> None:
    mistakes = list(mistakes_of(RUN, matching(missed=(10.0,)), watched(20, 15), SERVICES, 15))
    asked: list[SceneRun] = []

    def scene_of(run: SceneRun) -> GreyScene:
        asked.append(run)
        return GreyScene()

    files = save_strips(mistakes, scene_of, tmp_path / "strips")
    assert files == {"Missed: fight from 10.0 s (fight, seed 3)": tmp_path / "strips" / "mistake-1.jpg"}
    assert asked == [RUN]
    strip = cv2.imread(str(tmp_path / "strips" / "mistake-1.jpg")).astype(int)
    assert strip.shape == (180, FRAMES * WIDTH_PX + (FRAMES - 1) * 3, 3)
    for number, moment in enumerate(mistakes[0].moments):
        panel = strip[:, number * (WIDTH_PX + 3) :][:, :WIDTH_PX]
        for left, top, _, bottom in moment.tracks.people.boxes * WIDTH_PX / SIZE[1]:
            edge = panel[round((top + bottom) / 2), round(left) - 1 : round(left) + 2]
            assert np.abs(edge - 90).max() > 40, (number, left)
        assert np.abs(panel[100:120, 100:140] - 90).max() < 20, "nobody is there"
