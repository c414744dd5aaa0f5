"""When an episode is made: what comes next while this one is played, and not when a scene is laid out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agent.simulation import directors
from agent.simulation.episodes import EPISODE_S
from agent.simulation.scene import build_scene
from agent.simulation.scripts import build_script


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Numbers of the episodes whose making began, and that are ready."""
    numbers: dict[str, list[int]] = {"begun": [], "ready": []}
    make = directors.make

    def watched(*given: Any, number: int, **more: Any) -> Iterator[Any]:
        numbers["begun"].append(number)
        for step in make(*given, number=number, **more):
            if step is not None:
                numbers["ready"].append(number)
            yield step

    monkeypatch.setattr(directors, "make", watched)
    return numbers


def test_laying_out_a_scene_makes_no_episode_but_the_first(made: dict[str, list[int]]) -> None:
    build_scene(build_script("mixed", seed=3, people=4), seed=3)
    assert made == {"begun": [0], "ready": [0]}


@pytest.mark.parametrize("fps", [1, 3])
def test_the_next_episode_is_ready_before_it_is_wanted(made: dict[str, list[int]], fps: int) -> None:
    """Pictures of people in motion ask twice: for now, and for a moment before."""
    scene = build_scene(build_script("mixed", seed=3, people=4), seed=3)
    for number in range(int(EPISODE_S * fps)):
        for t_s in (number / fps, max(0.0, number / fps - 0.02)):
            scene.script.actors(t_s)
    assert made == {"begun": [0, 1], "ready": [0, 1]}
