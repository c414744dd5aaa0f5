"""Directors: one function a scenario, which fills an episode with people and what they do.

Protagonists come first and take what room they need; passers-by find their ways between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from agent.simulation.area import inside, towards
from agent.simulation.episodes import EPISODE_S, Episode, Set, finished
from agent.simulation.falling import fall_down, get_up, lie, random_fall
from agent.simulation.fighting import Blow, fight, random_temper
from agent.simulation.motion import RATE_HZ, MotionModel
from agent.simulation.performer import Performer
from agent.simulation.skeleton import Array

Director = Callable[[Set], Iterator[None]]
GESTURES = ("gesture_point", "gesture_come", "gesture_wide", "gesture_low", "gesture_high", "wipe")
STAY_S = 12.0  # a passer-by is on stage about this long


def make(name: str, rng: np.random.Generator, model: MotionModel, *, number: int, people: int) -> Iterator[Episode | None]:
    """Steps of the work (None), then the episode."""
    stage = Set(rng, model, people, opening=number == 0)
    for _ in DIRECTORS[name](stage):
        yield None
    yield finished(stage, number)


def _speed(rng: np.random.Generator) -> float:
    """Free walking speed, m/s: Bohannon 1997 has 1.2-1.5 for adults, strollers are slower."""
    return float(np.clip(rng.normal(1.25, 0.2), 0.75, 1.8))


def _gestures(rng: np.random.Generator, count: int = 2) -> tuple[str, ...]:
    return tuple(str(name) for name in rng.choice(GESTURES, count))


def passer_by(stage: Set, first: int, *, here: bool = False, stays: float = 0.5) -> None:
    """Comes in (or is there already), perhaps stays somewhere for a while, and leaves."""
    rng = stage.rng
    speed = _speed(rng)
    person = stage.enter(first=first, at=stage.spot(first, 4 * RATE_HZ) if here else None)
    if here:
        person.stand(rng.uniform(0.5, 4.0), gestures=_gestures(rng, 1) if rng.random() < 0.5 else ())
    elif rng.random() < stays:
        staying = rng.uniform(2, 7)
        place = stage.spot(first + 3 * RATE_HZ, int((staying + 6) * RATE_HZ))
        person.go(stage.way(person, place, speed), speed)
        gestures = _gestures(rng) if rng.random() < 0.5 else ()
        person.stand(staying, facing=rng.uniform(-np.pi, np.pi), gestures=gestures)
    stage.leave(person, speed)


def passers_by(stage: Set, people: int) -> Iterator[None]:
    """About `people` of them at any time of the episode."""
    count = max(0, round(people * EPISODE_S / STAY_S))
    for k in range(count):
        here = stage.opening and k < people
        first = 0 if here else int((k + stage.rng.uniform(0, 0.9)) * EPISODE_S / max(count, 1) * RATE_HZ)
        passer_by(stage, first, here=here)
        yield


def crowd(stage: Set) -> Iterator[None]:
    """People walk through, stop, look around, go on."""
    yield from passers_by(stage, stage.people)


def empty(stage: Set) -> Iterator[None]:
    """Nobody."""
    del stage
    yield


def _centre(rng: np.random.Generator) -> Array:
    """A place near the middle of the area."""
    return np.array([rng.uniform(-1.6, 1.6), rng.uniform(-1.0, 1.2)])


def one_falls(stage: Set, first: int, *, lying_s: float, at: Array | None = None, wait_s: float = 0.0) -> Iterator[None]:
    """Somebody comes, falls, lies, gets up and leaves."""
    rng = stage.rng
    person = stage.enter(first=first, at=at)
    fall = random_fall(rng)
    speed = _speed(rng)
    goal = _centre(rng)
    if fall.kind in {"trip", "slip"}:
        person.go([*stage.way(person, goal, speed)], speed, end_speed=speed)
    else:
        if at is None or rng.random() < 0.5:
            person.go(stage.way(person, goal, speed), speed)
        person.stand(rng.uniform(0.6, 2.5) + wait_s, gestures=_gestures(rng, 1) if rng.random() < 0.3 else ())
    onset = person.now
    for _ in fall_down(person, fall):
        yield
    stage.event("fall", onset, person.now, person)
    lie(person, lying_s)
    get_up(person, speed=rng.uniform(0.6, 1.0))
    person.stand(rng.uniform(0.8, 2.0))
    stage.leave(person, rng.uniform(0.7, 1.1))
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


def _meet(stage: Set, count: int, centre: Array, first: int, apart: float, *, near: bool) -> list[Performer]:
    """`count` people around `centre`, facing it, all standing there from the same frame on."""
    rng = stage.rng
    turn = rng.uniform(0, 2 * np.pi)
    persons = []
    for k in range(count):
        angle = turn + 2 * np.pi * k / count + rng.normal(0, 0.1)
        place = centre + apart / 2 * np.array([np.cos(angle), np.sin(angle)])
        start = centre + rng.uniform(1.6, 2.4) * np.array([np.cos(angle), np.sin(angle)]) if near else None
        person = stage.enter(first=first, at=start)
        speed = _speed(rng) * 1.1
        person.go(stage.way(person, place, speed), speed)
        person.stand(0.4, facing=towards(person.xy, centre))
        persons.append(person)
    ready = max(person.now for person in persons) + 1
    for person in persons:
        waiting = (ready - person.now) / RATE_HZ
        if waiting > 0:
            person.stand(waiting, facing=towards(person.xy, centre), gestures=_gestures(rng, 1) if waiting > 2 else ())
    last = max(person.now for person in persons)
    for person in persons:
        if person.now < last:
            person.hold(last - person.now)
    return persons


def people_fight(stage: Set, first: int, count: int, seconds: float, *, near: bool, knock_down: bool) -> Iterator[None]:
    """`count` (2-4) people meet and fight; perhaps one goes down."""
    rng = stage.rng
    centre = _centre(rng)
    fighters = _meet(stage, count, centre, first, 1.5, near=near)
    begun = fighters[0].now
    foes = [1, 0, 0, 1][:count]
    blows: list[Blow] = []
    for result in fight(rng, fighters, foes, random_temper(rng), seconds):
        if result is not None:
            blows = result
        yield
    start = begun + min(blow.at for blow in blows)
    end = begun + max(max(blow.until, blow.at) for blow in blows)
    stage.event("fight", start, end, *fighters)
    for k, person in enumerate(fighters):
        if knock_down and k == blows[-1].victim:
            yield from _go_down(stage, person, fighters[blows[-1].attacker])
        else:
            away = rng.random()
            person.stand(rng.uniform(0.4, 3.0))
            stage.leave(person, _speed(rng) if away < 0.6 else rng.uniform(2.4, 3.2))
        yield


def _go_down(stage: Set, person: Performer, other: Performer) -> Iterator[None]:
    """The last blow was one too many."""
    rng = stage.rng
    push = person.xy - other.xy
    push = push / max(float(np.hypot(*push)), 0.1) * rng.uniform(0.8, 1.3)
    c, s = np.cos(person.pose.heading), np.sin(person.pose.heading)
    local = (float(c * push[0] + s * push[1]), float(c * push[1] - s * push[0]))
    onset = person.now
    for _ in fall_down(person, random_fall(rng, "back", push_mps=local)):
        yield
    stage.event("fall", onset, person.now, person)
    lie(person, rng.uniform(2.0, 6.0))
    get_up(person, speed=rng.uniform(0.7, 1.1))
    stage.leave(person, rng.uniform(0.9, 1.6))


def onlookers(stage: Set, count: int, centre: Array, first: int, seconds: float) -> Iterator[None]:
    """People who stop to watch what happens at `centre`."""
    rng = stage.rng
    for _ in range(count):
        person = stage.enter(first=first + int(rng.uniform(0, 3) * RATE_HZ))
        angle = rng.uniform(0, 2 * np.pi)
        place = centre + rng.uniform(2.2, 3.0) * np.array([np.cos(angle), np.sin(angle)])
        speed = _speed(rng)
        person.go(stage.way(person, place, speed), speed)
        person.stand(seconds * rng.uniform(0.5, 1.0), facing=towards(person.xy, centre), gestures=_gestures(rng))
        stage.leave(person, speed)
        yield


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


DIRECTORS: dict[str, Director] = {
    "crowd": crowd,
    "fight": fights,
    "fall": fall,
    "fall-rise": fall_rise,
    "empty": empty,
}
