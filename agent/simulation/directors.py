"""Directors: one function a scenario, which fills an episode with people and what they do.

Protagonists come first and take what room they need; passers-by find their ways between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from agent.simulation.area import inside
from agent.simulation.episodes import EPISODE_S, Episode, Set, finished
from agent.simulation.meetings import MEETINGS
from agent.simulation.motion import RATE_HZ, MotionModel
from agent.simulation.plays import (
    ALONE,
    alone,
    anything_harmless,
    one_falls,
    onlookers,
    passers_by,
    people_fight,
    together,
)

Director = Callable[[Set], Iterator[None]]


def make(
    name: str, rng: np.random.Generator, model: MotionModel, *, number: int, people: int
) -> Iterator[Episode | None]:
    """Steps of the work (None), then the episode."""
    stage = Set(rng, model, people, opening=number == 0)
    for _ in DIRECTORS[name](stage):
        yield None
    yield from finished(stage, number)


def crowd(stage: Set) -> Iterator[None]:
    """People walk through, stop, look around, go on."""
    yield from passers_by(stage, stage.people)


def empty(stage: Set) -> Iterator[None]:
    """Nobody."""
    del stage
    yield


def fall(stage: Set) -> Iterator[None]:
    """Somebody falls and lies for long."""
    first = 0 if stage.opening else int(stage.rng.uniform(0, 6) * RATE_HZ)
    at = inside(stage.rng, 1.0) if stage.opening else None
    yield from one_falls(stage, first, lying_s=stage.rng.uniform(9, 16), at=at)
    yield from passers_by(stage, stage.people - 1)


def fall_rise(stage: Set) -> Iterator[None]:
    """Two falls, each soon got up from."""
    for half in range(2):
        first = 0 if stage.opening and half == 0 else int((half * 18 + stage.rng.uniform(0, 4)) * RATE_HZ)
        yield from one_falls(stage, first, lying_s=stage.rng.uniform(1.0, 3.5))
    yield from passers_by(stage, stage.people - 1)


def fights(stage: Set) -> Iterator[None]:
    """A fight of two to four, people around it, and a quieter stretch."""
    rng = stage.rng
    count = 2 if stage.people < 3 else int(rng.choice((2, 3, 4), p=(0.7, 0.2, 0.1)))
    count = max(2, min(count, stage.people))
    first = 0 if stage.opening else int(rng.uniform(0, 5) * RATE_HZ)
    yield from people_fight(
        stage, first, count, rng.uniform(8, 16), near=stage.opening, knock_down=bool(rng.random() < 0.35)
    )
    watching = min(int(rng.integers(0, 3)), max(0, stage.people - count))
    yield from onlookers(stage, watching, np.zeros(2), first + 3 * RATE_HZ, 10)
    yield from passers_by(stage, max(0, stage.people - count - watching))


def _of(what: str) -> Director:
    """Director of a scenario in which people do one thing alone."""

    def direct(stage: Set) -> Iterator[None]:
        count = max(1, min(stage.people, 3))
        for k in range(count + 1):
            here = stage.opening and k == 0
            first = 0 if here else int((k + stage.rng.uniform(0, 0.8)) * EPISODE_S / (count + 1) * RATE_HZ)
            yield from alone(stage, first, what, here=here)
        yield from passers_by(stage, max(0, stage.people - 2))

    return direct


def hugs(stage: Set) -> Iterator[None]:
    """People meet: hugs, handshakes, clapping hands, dances."""
    for k in range(2):
        first = 0 if stage.opening and k == 0 else int((k * 18 + stage.rng.uniform(0, 4)) * RATE_HZ)
        yield from together(
            stage, first, ("hug", "hug", "handshake", "high_five", "pat", "dance"), near=stage.opening and k == 0
        )
    yield from passers_by(stage, max(0, stage.people - 2))


def near_misses(stage: Set) -> Iterator[None]:
    """All harmless things, mixed."""
    count = 3 + stage.people // 2
    if stage.opening:
        yield from alone(stage, 0, str(stage.rng.choice(tuple(ALONE))), here=True)
    for k in range(count):
        yield from anything_harmless(stage, int((k + stage.rng.uniform(0, 0.8)) * EPISODE_S / count * RATE_HZ))
    yield from passers_by(stage, max(0, stage.people - 3))


def mixed(stage: Set) -> Iterator[None]:
    """The demo: first a fight within 15 s and a fall by 40 s with the person lying for 6 s and more; later any order."""
    rng = stage.rng
    if stage.opening:
        yield from people_fight(stage, 0, 2, rng.uniform(9.8, 11), near=True, knock_down=False)
        yield from one_falls(
            stage, int(17 * RATE_HZ), lying_s=rng.uniform(9, 13), kind=str(rng.choice(("trip", "side", "faint")))
        )
    else:
        plays = [people_fight, one_falls, together, together]
        for k, play in enumerate(rng.permutation(len(plays))[: 2 + (stage.people > 2)]):
            first = int((k * 14 + rng.uniform(0, 5)) * RATE_HZ)
            yield from _play(stage, int(play), first)
    yield from alone(stage, int(rng.uniform(14, 30) * RATE_HZ), str(rng.choice(("sit", "bend", "exercise"))))
    yield from passers_by(stage, max(0, stage.people - 3))


def _play(stage: Set, number: int, first: int) -> Iterator[None]:
    rng = stage.rng
    if number == 0:
        count = min(max(2, stage.people), int(rng.choice((2, 3), p=(0.75, 0.25))))
        yield from people_fight(
            stage, first, count, rng.uniform(8, 14), near=False, knock_down=bool(rng.random() < 0.4)
        )
    elif number == 1:
        yield from one_falls(stage, first, lying_s=rng.uniform(2, 14))
    elif number == 2:
        yield from together(stage, first, MEETINGS)
    else:
        yield from anything_harmless(stage, first)


DIRECTORS: dict[str, Director] = {
    "crowd": crowd,
    "fight": fights,
    "fall": fall,
    "fall-rise": fall_rise,
    "hug": hugs,
    "sit": _of("sit"),
    "bend": _of("bend"),
    "exercise": _of("exercise"),
    "near-misses": near_misses,
    "mixed": mixed,
    "empty": empty,
}
"""Scenario name -> director."""
