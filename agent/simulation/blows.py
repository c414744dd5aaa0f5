"""The plan of a fight: who strikes whom when and how, and where that takes the fighters."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np

from agent.simulation.area import AREA_M
from agent.simulation.curves import smooth
from agent.simulation.motion import RATE_HZ
from agent.simulation.skeleton import Array

PUNCHES = ("punch_lunge", "punch_high", "punch_up", "punch_straight", "punch_body")
GUARD_M = 1.25  # between the hips of two who wait for an opening


@dataclass(frozen=True, slots=True)
class Blow:
    """One attack. kind: punch, kick, shove or grapple; at: frame of contact; force: 0-1; hand: 0 left, 1 right."""

    kind: str
    attacker: int
    victim: int
    at: int
    until: int
    force: float
    lands: bool
    hand: int
    how: str = ""


@dataclass(frozen=True, slots=True)
class Temper:
    """How a fight goes. gap_s: from, to between blows; shares of kicks, shoves and grapples; force: from, to."""

    gap_s: tuple[float, float]
    kicks: float
    shoves: float
    grapples: float
    force: tuple[float, float]


def random_temper(rng: np.random.Generator) -> Temper:
    """Brawl, boxing, shoving match or wrestling, fast or slow."""
    quick = rng.uniform(0.35, 0.9)
    gap = (quick, quick * rng.uniform(1.3, 2.4))
    style = rng.choice(4, p=(0.4, 0.25, 0.2, 0.15))
    shares = ((0.18, 0.15, 0.10), (0.05, 0.05, 0.03), (0.05, 0.55, 0.15), (0.05, 0.15, 0.45))[style]
    return Temper(gap, *shares, force=(0.3, float(rng.uniform(0.6, 1.0))))


def draw_blows(rng: np.random.Generator, temper: Temper, foes: list[int], frames: int) -> list[Blow]:
    """Blows over `frames` frames, the last half a second before the end; foes[i] is whom fighter i attacks."""
    blows: list[Blow] = []
    at, last = int(rng.uniform(0.35, 0.8) * RATE_HZ), frames - int(0.5 * RATE_HZ)
    initiative = int(rng.integers(len(foes)))
    while at < last - int(0.3 * RATE_HZ):
        if rng.random() < 0.45:
            initiative = int(rng.integers(len(foes)))
        blow = _draw_blow(rng, temper, (initiative, foes[initiative]), at=at, last=last)
        blows.append(blow)
        at = blow.until + int(rng.uniform(*temper.gap_s) * RATE_HZ)
    if not blows or blows[-1].until < last - int(0.3 * RATE_HZ):
        final = _draw_blow(rng, temper, (initiative, foes[initiative]), at=last, last=last)
        blows.append(replace(final, kind="punch", until=last))
    return blows


def _draw_blow(rng: np.random.Generator, temper: Temper, pair: tuple[int, int], *, at: int, last: int) -> Blow:
    """A blow of the first of `pair` at the second, at frame `at`, over by frame `last`."""
    others = temper.kicks + temper.shoves + temper.grapples
    kinds, shares = ("kick", "shove", "grapple", "punch"), (temper.kicks, temper.shoves, temper.grapples, 1 - others)
    kind = str(rng.choice(kinds, p=shares))
    until = at + int(rng.uniform(1.2, 2.6) * RATE_HZ) if kind == "grapple" else at
    lands = kind == "grapple" or rng.random() < 0.72
    return Blow(
        kind, *pair, at, max(at, min(until, last)), float(rng.uniform(*temper.force)), bool(lands),
        int(rng.random() < 0.62), str(rng.choice(PUNCHES)),
    )  # fmt: skip


def places(
    rng: np.random.Generator, start: Array, foes: list[int], blows: list[Blow], *, frames: int, reach: Array
) -> Generator[None, None, Array]:
    """Hips over the floor (F, T, 2) of F fighters: springs towards the distance that the moment asks for, pushes of blows.

    Yields now and then, so that the work can be spread.

    start: (F, 2); reach: (F,) length of the arm.
    """
    count = len(foes)
    wanted, stiff = _distances(rng, foes, blows, frames=frames, reach=reach)
    turning = smooth(np.repeat(rng.normal(0, 0.6, (frames // 50 + 2, count)), 50, axis=0)[:frames], 0.3)
    jostle = smooth(rng.normal(0, 1, (frames, count, 2)), 0.18) * 9.0
    pushes = [b for b in blows if b.lands and b.kind != "grapple"]
    by_frame: dict[int, list[Blow]] = {}
    for blow in pushes:
        by_frame.setdefault(blow.at, []).append(blow)
    position, velocity = start.copy(), np.zeros((count, 2))
    out = np.empty((count, frames, 2))
    others = np.array(foes)
    centre = np.array([(AREA_M[0] + AREA_M[1]) / 2, (AREA_M[2] + AREA_M[3]) / 2])
    half = np.array([AREA_M[1] - AREA_M[0], AREA_M[3] - AREA_M[2]]) / 2 - 0.7
    dt = 1 / RATE_HZ
    for t in range(frames):
        gap = position - position[others]
        distance = np.sqrt((gap**2).sum(axis=1, keepdims=True)) + 1e-6
        away = gap / distance
        around = np.stack([-away[:, 1], away[:, 0]], axis=1)
        goal = position[others] + away * wanted[t][:, None] + around * (turning[t] * 0.4)[:, None]
        force = (goal - position) * stiff[t][:, None] - velocity * 2.4 * np.sqrt(stiff[t])[:, None] * 0.7 + jostle[t]
        force += _elbow_room(position, others)
        force -= np.sign(position - centre) * np.maximum(np.abs(position - centre) - half, 0) * 25
        size = np.sqrt((force**2).sum(axis=1, keepdims=True))
        velocity += force * np.minimum(1, 16 / np.maximum(size, 1e-6)) * dt
        for blow in by_frame.get(t, ()):
            strength = {"punch": 0.9, "kick": 1.3, "shove": 2.2}[blow.kind] * (0.4 + blow.force)
            velocity[blow.victim] -= away[blow.attacker] * strength
        speed = np.sqrt((velocity**2).sum(axis=1, keepdims=True))
        velocity *= np.minimum(1, 2.0 / np.maximum(speed, 1e-6))
        position = position + velocity * dt
        out[:, t] = position
        if t % 60 == 59:
            yield
    return np.stack([smooth(track, 0.035) for track in out])


def _elbow_room(position: Array, others: Array) -> Array:
    """People who do not face each other keep half a metre apart."""
    gap = position[:, None] - position[None]
    distance = np.sqrt((gap**2).sum(axis=2)) + np.eye(len(position)) * 9
    distance[np.arange(len(others)), others] = 9
    near = np.maximum(0.75 - distance, 0)
    push: Array = (gap / np.maximum(distance, 0.05)[..., None] * near[..., None]).sum(axis=1)
    return push * 40


def _distances(
    rng: np.random.Generator, foes: list[int], blows: list[Blow], *, frames: int, reach: Array
) -> tuple[Array, Array]:
    """(T, F) wanted distance to the foe and how stiffly it is kept."""
    count = len(foes)
    slow = smooth(np.repeat(rng.normal(0, 0.16, (frames // 45 + 2, count)), 45, axis=0)[:frames], 0.25)
    wanted = GUARD_M * (reach / 0.56) + slow
    stiff = np.full((frames, count), 14.0)
    for blow in blows:
        close = {"punch": 1.30, "shove": 1.12, "kick": 1.68, "grapple": 0.98}[blow.kind] * reach[blow.attacker]
        begin = max(0, blow.at - int(0.38 * RATE_HZ))
        end = min(frames, max(blow.until, blow.at) + int(0.06 * RATE_HZ))
        wanted[begin:end, blow.attacker] = close
        stiff[begin:end, blow.attacker] = 75.0
        wanted[begin:end, blow.victim] = np.minimum(wanted[begin:end, blow.victim], close + 0.15)
        if blow.kind == "grapple":
            wanted[blow.at : end, blow.victim] = close
            stiff[blow.at : end, blow.victim] = 60.0
    return wanted, stiff
