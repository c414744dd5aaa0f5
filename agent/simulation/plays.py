"""Plays: what directors put together. Each brings people on stage, lets something happen, and lets them leave.

All are steps of work: what they make depends on the set they are given, not on when they are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from agent.simulation.activities import EXERCISES, REACH, STOOP, exercise, kneel, lie_down, mimic, sit, tie_shoe
from agent.simulation.area import inside, towards
from agent.simulation.blows import Blow, random_temper
from agent.simulation.episodes import EPISODE_S, Set
from agent.simulation.falling import fall_down, get_up, lie, random_fall
from agent.simulation.fighting import fight
from agent.simulation.meetings import MEETINGS, meet, talk
from agent.simulation.motion import RATE_HZ
from agent.simulation.performer import Performer
from agent.simulation.skeleton import Array

GESTURES = ("gesture_point", "gesture_come", "gesture_wide", "gesture_low", "gesture_high", "wipe")
STAY_S = 8.5  # a passer-by is on stage about this long


def walking_speed(rng: np.random.Generator) -> float:
    """Free walking speed, m/s: Bohannon 1997 has 1.2-1.5 for adults, strollers are slower."""
    return float(np.clip(rng.normal(1.25, 0.2), 0.75, 1.8))


def some_gestures(rng: np.random.Generator, count: int = 2) -> tuple[str, ...]:
    return tuple(str(name) for name in rng.choice(GESTURES, count))


def passer_by(stage: Set, first: int, *, here: bool = False, stays: float = 0.5) -> Iterator[None]:
    """Comes in (or is there already), perhaps stays somewhere for a while, and leaves."""
    rng = stage.rng
    speed = walking_speed(rng)
    person = stage.enter(first=first, at=stage.spot(first, 4 * RATE_HZ) if here else None)
    if here:
        person.stand(rng.uniform(0.5, 4.0), gestures=some_gestures(rng, 1) if rng.random() < 0.5 else ())
    elif rng.random() < stays:
        staying = rng.uniform(2, 7)
        place = stage.spot(first + 3 * RATE_HZ, int((staying + 6) * RATE_HZ))
        yield
        person.go(stage.way(person, place, speed), speed)
        yield
        gestures = some_gestures(rng) if rng.random() < 0.5 else ()
        person.stand(staying, facing=rng.uniform(-np.pi, np.pi), gestures=gestures)
        yield
    stage.leave(person, speed)
    yield


def passers_by(stage: Set, people: int) -> Iterator[None]:
    """About `people` of them at any time of the episode."""
    count = max(0, round(people * EPISODE_S / STAY_S))
    for k in range(count):
        here = stage.opening and k < people
        first = 0 if here else int((k + stage.rng.uniform(0, 0.9)) * EPISODE_S / max(count, 1) * RATE_HZ)
        yield from passer_by(stage, first, here=here)


def near_middle(rng: np.random.Generator) -> Array:
    """A place near the middle of the area."""
    return np.array([rng.uniform(-1.6, 1.6), rng.uniform(-1.0, 1.2)])


def one_falls(
    stage: Set, first: int, *, lying_s: float, at: Array | None = None, kind: str | None = None
) -> Iterator[None]:
    """Somebody comes, falls, lies, gets up and leaves."""
    rng = stage.rng
    person = stage.enter(first=first, at=at)
    fall = random_fall(rng, kind)
    speed = walking_speed(rng)
    goal = near_middle(rng)
    if fall.kind in {"trip", "slip"}:
        person.go([*stage.way(person, goal, speed)], speed, end_speed=speed)
    else:
        if at is None or rng.random() < 0.5:
            person.go(stage.way(person, goal, speed), speed)
        person.stand(rng.uniform(0.6, 2.5), gestures=some_gestures(rng, 1) if rng.random() < 0.3 else ())
    onset = person.now
    for _ in fall_down(person, fall):
        yield
    stage.event("fall", onset, person.now, person)
    lie(person, lying_s)
    get_up(person, speed=rng.uniform(0.6, 1.0))
    person.stand(rng.uniform(0.8, 2.0))
    stage.leave(person, rng.uniform(0.7, 1.1))
    yield


def gather(stage: Set, count: int, centre: Array, first: int, apart: float, *, near: bool) -> list[Performer]:
    """`count` people around `centre`, facing it, all standing there from the same frame on."""
    rng = stage.rng
    turn = rng.uniform(0, 2 * np.pi)
    persons = []
    for k in range(count):
        angle = turn + 2 * np.pi * k / count + rng.normal(0, 0.1)
        place = centre + apart / 2 * np.array([np.cos(angle), np.sin(angle)])
        start = centre + rng.uniform(1.6, 2.4) * np.array([np.cos(angle), np.sin(angle)]) if near else None
        person = stage.enter(first=first, at=start)
        speed = walking_speed(rng) * 1.1
        person.go(stage.way(person, place, speed), speed)
        person.stand(0.4, facing=towards(person.xy, centre))
        persons.append(person)
    ready = max(person.now for person in persons) + 1
    for person in persons:
        waiting = (ready - person.now) / RATE_HZ
        if waiting > 0:
            person.stand(
                waiting, facing=towards(person.xy, centre), gestures=some_gestures(rng, 1) if waiting > 2 else ()
            )
    last = max(person.now for person in persons)
    for person in persons:
        if person.now < last:
            person.hold(last - person.now)
    return persons


def people_fight(stage: Set, first: int, count: int, seconds: float, *, near: bool, knock_down: bool) -> Iterator[None]:
    """`count` (2-4) people meet and fight; perhaps one goes down."""
    rng = stage.rng
    centre = near_middle(rng)
    fighters = gather(stage, count, centre, first, 1.5, near=near)
    begun = fighters[0].now
    foes = [1, 0, 0, 1][:count]
    blows: list[Blow] = []
    for result in fight(rng, fighters, foes, temper=random_temper(rng), seconds=seconds):
        if result is not None:
            blows = result
        yield
    start = begun + min(blow.at for blow in blows)
    end = begun + max(max(blow.until, blow.at) for blow in blows)
    stage.event("fight", start, end, *fighters)
    for k, person in enumerate(fighters):
        if knock_down and k == blows[-1].victim:
            yield from _knocked_down(stage, person, fighters[blows[-1].attacker])
        else:
            away = rng.random()
            person.stand(rng.uniform(0.4, 3.0))
            stage.leave(person, walking_speed(rng) if away < 0.6 else rng.uniform(2.4, 3.2))
        yield


def _knocked_down(stage: Set, person: Performer, other: Performer) -> Iterator[None]:
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
        speed = walking_speed(rng)
        person.go(stage.way(person, place, speed), speed)
        person.stand(seconds * rng.uniform(0.5, 1.0), facing=towards(person.xy, centre), gestures=some_gestures(rng))
        stage.leave(person, speed)
        yield


def _drop_in(stage: Set, first: int, at: Array | None = None) -> Performer:
    """Somebody who has come to a place of their own and stands there."""
    rng = stage.rng
    person = stage.enter(first=first, at=at)
    if at is None or rng.random() < 0.5:
        speed = walking_speed(rng)
        person.go(stage.way(person, stage.spot(first + 3 * RATE_HZ, 22 * RATE_HZ), speed), speed)
    person.stand(rng.uniform(0.3, 1.5), facing=rng.uniform(-np.pi, np.pi))
    return person


def _sits(stage: Set, person: Performer) -> None:
    rng = stage.rng
    quick = rng.random() < 0.5
    sit(
        person,
        rng.uniform(2, 9),
        down_s=rng.uniform(0.45, 0.7) if quick else rng.uniform(1.2, 2.2),
        up_s=rng.uniform(0.8, 2.2),
    )


def _bends(stage: Set, person: Performer) -> None:
    rng = stage.rng
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.3:
            tie_shoe(person, rng.uniform(1.5, 5))
        else:
            mimic(
                person,
                str(rng.choice(STOOP)),
                "bend",
                speed=rng.uniform(0.8, 1.4),
                pause_s=rng.uniform(0, 1.5),
                flip=bool(rng.random() < 0.5),
            )
        if rng.random() < 0.4:
            mimic(person, str(rng.choice(REACH)), "stand", speed=rng.uniform(0.8, 1.2), flip=bool(rng.random() < 0.5))


def _exercises(stage: Set, person: Performer) -> None:
    rng = stage.rng
    for _ in range(int(rng.integers(1, 3))):
        exercise(person, str(rng.choice(EXERCISES)), rng.uniform(4, 8))


def _goes_down(stage: Set, person: Performer) -> None:
    """Kneels, or lies down to rest or stretch, on purpose and with care."""
    rng = stage.rng
    if rng.random() < 0.5:
        kneel(person, rng.uniform(2, 5))
    else:
        lie_down(person, rng.uniform(3, 8), speed=rng.uniform(0.45, 0.75))
        get_up(person, speed=rng.uniform(0.6, 0.9))


ALONE: dict[str, Callable[[Set, Performer], None]] = {
    "sit": _sits,
    "bend": _bends,
    "exercise": _exercises,
    "down": _goes_down,
}


def alone(stage: Set, first: int, what: str, *, here: bool = False) -> Iterator[None]:
    """Somebody comes, does something of `ALONE`, and leaves."""
    person = _drop_in(stage, first, stage.spot(first, 18 * RATE_HZ) if here else None)
    yield
    ALONE[what](stage, person)
    person.stand(stage.rng.uniform(0.3, 1.5))
    stage.leave(person, walking_speed(stage.rng))
    yield


def together(stage: Set, first: int, kinds: tuple[str, ...], *, near: bool = False) -> Iterator[None]:
    """Two meet, greet each other in one of `kinds` ways, talk, perhaps again, and part."""
    rng = stage.rng
    centre = stage.spot(first + 3 * RATE_HZ, 20 * RATE_HZ, margin=1.4)
    pair = gather(stage, 2, centre, first, rng.uniform(1.0, 1.3), near=near)
    yield
    for _ in range(int(rng.integers(1, 3))):
        meet((pair[0], pair[1]), str(rng.choice(kinds)), rng)
        yield
        talk(pair, rng.uniform(1.5, 6), rng, GESTURES)
        yield
    for person in pair:
        stage.leave(person, walking_speed(rng))
        yield


def group_talks(stage: Set, first: int, count: int) -> Iterator[None]:
    """Two to four people talk with their hands."""
    rng = stage.rng
    centre = stage.spot(first + 3 * RATE_HZ, 20 * RATE_HZ, margin=1.4)
    group = gather(stage, count, centre, first, rng.uniform(1.0, 1.5), near=False)
    yield
    talk(group, rng.uniform(6, 14), rng, GESTURES)
    for person in group:
        stage.leave(person, walking_speed(rng))
        yield


def runs_past(stage: Set, first: int) -> Iterator[None]:
    """Somebody is in a hurry."""
    rng = stage.rng
    person = stage.enter(first=first)
    stage.leave(person, rng.uniform(2.5, 3.8))
    yield


def children_chase(stage: Set, first: int) -> Iterator[None]:
    """Two children run after each other; the second touches the first now and then."""
    rng = stage.rng
    speed = rng.uniform(2.2, 2.9)
    route = [inside(rng, 1.0) for _ in range(int(rng.integers(4, 7)))]
    for k in range(2):
        child = stage.enter(first=first + int(k * rng.uniform(0.6, 1.1) * RATE_HZ), child=True)
        child.go([point + rng.normal(0, 0.15, 2) for point in route], speed, end_speed=1.5)
        stage.leave(child, 2.2)
        yield


def anything_harmless(stage: Set, first: int) -> Iterator[None]:
    """Any of the things that look a little like a fall or a fight."""
    rng = stage.rng
    choice = str(
        rng.choice(
            ("sit", "bend", "exercise", "down", "meet", "talk", "run", "children"),
            p=(0.17, 0.17, 0.12, 0.12, 0.2, 0.08, 0.07, 0.07),
        )
    )
    if choice in ALONE:
        yield from alone(stage, first, choice)
    elif choice == "meet":
        yield from together(stage, first, MEETINGS)
    elif choice == "talk":
        yield from group_talks(stage, first, int(rng.integers(2, 4)))
    elif choice == "run":
        yield from runs_past(stage, first)
    else:
        yield from children_chase(stage, first)
