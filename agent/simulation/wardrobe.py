"""What people look like: build, skin, hair and clothes from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from agent.simulation.body import (
    CHEST,
    HEAD,
    HIPS,
    KNEES,
    LEFT_ARM,
    LEFT_FOOT,
    NECK,
    PELVIS,
    RIGHT_ARM,
    RIGHT_FOOT,
    SHOULDERS,
    SKULL,
    WAIST,
    Anatomy,
)  # fmt: skip
from agent.types import FloatArray

Colour = tuple[float, float, float]
"""Blue, green, red; share of light given back, 0-1."""
Vector = tuple[float, float, float]

_SKIN: tuple[Colour, ...] = (
    (0.62, 0.70, 0.86), (0.52, 0.62, 0.80), (0.44, 0.55, 0.74), (0.34, 0.46, 0.64), (0.25, 0.34, 0.50), (0.17, 0.23, 0.35),
)  # fmt: skip
_HAIR: tuple[Colour, ...] = (
    (0.06, 0.06, 0.07), (0.09, 0.11, 0.15), (0.13, 0.20, 0.30), (0.30, 0.46, 0.60), (0.55, 0.56, 0.58), (0.14, 0.22, 0.42),
)  # fmt: skip
_CLOTH: tuple[Colour, ...] = (
    (0.08, 0.08, 0.09), (0.16, 0.16, 0.17), (0.34, 0.33, 0.33), (0.58, 0.58, 0.57), (0.86, 0.86, 0.85), (0.34, 0.16, 0.10),
    (0.52, 0.30, 0.16), (0.74, 0.56, 0.34), (0.16, 0.14, 0.54), (0.22, 0.20, 0.74), (0.20, 0.36, 0.20), (0.26, 0.44, 0.40),
    (0.30, 0.52, 0.62), (0.50, 0.66, 0.76), (0.16, 0.46, 0.82), (0.24, 0.70, 0.84), (0.46, 0.24, 0.44), (0.60, 0.48, 0.78),
    (0.22, 0.28, 0.42), (0.52, 0.50, 0.24),
)  # fmt: skip
_BOTTOMS: tuple[Colour, ...] = (
    (0.08, 0.08, 0.09), (0.18, 0.17, 0.17), (0.36, 0.24, 0.16), (0.46, 0.34, 0.24), (0.24, 0.15, 0.11), (0.34, 0.34, 0.34),
    (0.40, 0.52, 0.62), (0.26, 0.36, 0.44), (0.74, 0.76, 0.77), (0.20, 0.26, 0.24), (0.62, 0.54, 0.46),
)  # fmt: skip
_SHOES: tuple[Colour, ...] = (
    (0.06, 0.06, 0.07),
    (0.10, 0.14, 0.22),
    (0.80, 0.80, 0.80),
    (0.42, 0.41, 0.40),
    (0.18, 0.16, 0.58),
)


_FRONT = (0, 1.0, 0, 0, 0.93)
"""The trim of a jacket that stands open."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """K solids of one person with their surface.

    colours: (K, 3 kinds, 3) float32 BGR 0-1: base, trim, pattern.
    trim: (K, 5): a surface point whose unit coordinates (left, front, up, t) dotted with the first four exceed the fifth
    has the trim colour. pattern: (K, 5): the point has the pattern colour where the dot product with the first four
    plus the fifth has a fractional part above 0.5; all 0 = plain. folds: (K,) depth of the cloth's folds, 0-1.
    """

    anatomy: Anatomy
    colours: FloatArray
    trim: FloatArray
    pattern: FloatArray
    folds: FloatArray


@dataclass(frozen=True, slots=True)
class Surface:
    """Of one solid; the rules as in `Look`."""

    colour: Colour
    trim: tuple[float, ...] = (0, 0, 0, 0, 9)
    trim_colour: Colour = (0, 0, 0)
    pattern: tuple[float, ...] = (0, 0, 0, 0, 0)
    pattern_colour: Colour = (0, 0, 0)
    folds: float = 0.0


@dataclass(slots=True)
class _Tailor:
    """Collects solids."""

    girth: float
    rows: list[tuple[object, ...]] = field(default_factory=list)

    def add(
        self,
        at: int,
        radii: Vector,
        surface: Surface,
        *,
        frame: int = CHEST,
        offset: Vector = (0, 0, 0),
        to: int | None = None,
        to_offset: Vector = (0, 0, 0),
        taper: float = 1.0,
        span: tuple[float, float] = (0, 0),
    ) -> None:
        end, end_offset = (at, offset) if to is None else (to, to_offset)
        colours = surface.colour, surface.trim_colour, surface.pattern_colour
        anatomy = (at, offset, end, end_offset, frame, radii, taper, span)
        self.rows.append((*anatomy, colours, surface.trim, surface.pattern, surface.folds))

    def look(self) -> Look:
        columns = list(zip(*self.rows, strict=True))
        kinds = (np.int64, np.float32, np.int64, np.float32, np.int64, *[np.float32] * 7)
        arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        return Look(Anatomy(*arrays[:8]), *arrays[8:])


@dataclass(frozen=True, slots=True)
class _Outfit:
    """The choices; lengths along a limb as t (2 = all of it)."""

    skin: Colour
    hair: Colour
    top: Colour
    second: Colour
    bottom: Colour
    shoes: Colour
    sole: Colour
    sleeve: float
    trouser: float
    pattern: tuple[float, ...]
    open_front: bool
    skirt: bool
    coat: bool
    hair_style: str
    beard: bool
    backpack: bool
    hat: bool

    def shirt(self) -> Surface:
        """The cloth of trunk and sleeves."""
        return Surface(self.top, pattern=self.pattern, pattern_colour=self.second, folds=0.8)


def dress(seed: tuple[int, ...], *, grey: bool = False) -> Look:
    """A person by chance; the same seed gives the same one. grey: as an infrared camera sees cloth and skin."""
    rng = np.random.default_rng(seed)
    outfit = _choose(rng, grey=grey)
    tailor = _Tailor(girth=float(np.clip(rng.normal(1.0, 0.09), 0.84, 1.3)))
    _trunk(tailor, outfit)
    _head(tailor, outfit)
    for side in (0, 1):
        _arm(tailor, outfit, side)
        _leg(tailor, outfit, side)
    return tailor.look()


def _choose(rng: np.random.Generator, *, grey: bool) -> _Outfit:
    def pick(colours: tuple[Colour, ...], spread: float = 0.05) -> Colour:
        base = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.85, 1.12)
        colour = np.clip(base + rng.normal(0, spread, 3), 0.03, 0.95)
        if grey:  # near infrared: dyes fade, cloth is brighter than it looks by day
            colour = np.full(3, np.clip(0.25 + 0.6 * colour.mean() + rng.normal(0, 0.12), 0.08, 0.95))
        return float(colour[0]), float(colour[1]), float(colour[2])

    patterns = ((0,) * 5,) * 5 + ((0, 0, 0, float(rng.uniform(3, 7)), 0), (float(rng.uniform(2, 4)), 0, 0, 0, 0.25))
    skirt = bool(rng.random() < 0.14)
    trouser = float(rng.choice([2.0, 1.9, 0.9], p=[0.6, 0.25, 0.15]))
    return _Outfit(
        skin=pick(_SKIN, 0.02),
        hair=pick(_HAIR, 0.02),
        top=pick(_CLOTH),
        second=pick(_CLOTH),
        bottom=pick(_BOTTOMS),
        shoes=pick(_SHOES, 0.02),
        sole=(0.8, 0.8, 0.8) if rng.random() < 0.4 else (0.1, 0.1, 0.1),
        sleeve=float(rng.choice([2.0, 0.7, 0.2], p=[0.62, 0.3, 0.08])),
        trouser=0.0 if skirt else trouser,
        pattern=patterns[rng.integers(len(patterns))],
        open_front=bool(rng.random() < 0.3),
        skirt=skirt,
        coat=bool(rng.random() < 0.16) and not skirt,
        hair_style=str(rng.choice(["short", "short", "long", "bun", "bald"], p=[0.36, 0.24, 0.22, 0.1, 0.08])),
        beard=bool(rng.random() < 0.2),
        backpack=bool(rng.random() < 0.14),
        hat=bool(rng.random() < 0.14),
    )


def _trunk(tailor: _Tailor, outfit: _Outfit) -> None:
    girth = tailor.girth
    shirt = outfit.shirt()
    if outfit.open_front:
        shirt = replace(shirt, trim=_FRONT, trim_colour=outfit.second)
    tailor.add(
        SHOULDERS, (-0.012, 0.108 * girth, 0.095), shirt, offset=(0, 0, -0.095), to=WAIST, span=(0.9, 0),
        taper=0.86 * girth**0.5,
    )  # fmt: skip
    tailor.add(
        WAIST, (0.056 * girth, 0.114 * girth, 0.06), shirt, frame=PELVIS, offset=(0, 0, 0.06), to=HIPS,
        to_offset=(0, -0.006, 0.0), span=(0, 0.9), taper=1.1,
    )  # fmt: skip
    seat = Surface(outfit.top if outfit.coat else outfit.bottom, folds=0.6)
    tailor.add(
        HIPS, (0.056 * girth, 0.108 * girth, 0.08), seat, frame=PELVIS, offset=(0, -0.012, -0.02), to=HIPS,
        to_offset=(0, -0.012, -0.06), span=(0, 0.96), taper=0.98,
    )  # fmt: skip
    for side, sign in ((5, 1), (6, -1)):
        tailor.add(
            NECK, (0.056, 0.06, 0.055), Surface(outfit.top, folds=0.5), offset=(0.02 * sign, -0.012, -0.012), to=side,
            to_offset=(-0.015 * sign, -0.008, -0.006),
        )  # fmt: skip
    neck = Surface(outfit.skin)
    if outfit.sleeve > 1:
        neck = Surface(outfit.skin, trim=(0, 0, 0, -1, -0.12), trim_colour=outfit.top)
    tailor.add(NECK, (0.056 * girth**0.5, 0.058, 0.03), neck, frame=SKULL, to=HEAD, to_offset=(0, -0.025, -0.06))
    _hang_cloth(tailor, outfit)
    if outfit.backpack:
        tailor.add(SHOULDERS, (0.15, 0.085, 0.21), Surface(outfit.second, folds=0.5), offset=(0, -0.17, -0.2))


def _hang_cloth(tailor: _Tailor, outfit: _Outfit) -> None:
    """A skirt or the tails of a coat: a tube around each thigh and one between, so that legs never poke through."""
    if not (outfit.skirt or outfit.coat):
        return
    girth = tailor.girth
    if outfit.skirt:
        cloth = Surface(outfit.bottom, pattern=outfit.pattern, pattern_colour=outfit.second, folds=1.0)
        down, wide, taper = 0.04, 0.115 * girth, 1.3
    else:
        cloth = Surface(outfit.top, folds=1.0)
        if outfit.open_front:
            cloth = replace(cloth, trim=_FRONT, trim_colour=outfit.second)
        down, wide, taper = 0.16, 0.11 * girth, 1.1
    for side, frame in ((0, LEFT_FOOT), (1, RIGHT_FOOT)):
        tube = Surface(cloth.colour, folds=1.0)
        tailor.add(11 + side, (wide, wide, 0.02), tube, frame=frame, to=13 + side, to_offset=(0, 0, down), taper=taper)
    tailor.add(
        WAIST, (0.05 * girth, 0.118 * girth, 0.03), cloth, frame=PELVIS, to=KNEES, to_offset=(0, 0, down), span=(0, 1.0),
        taper=taper,
    )  # fmt: skip


def _head(tailor: _Tailor, outfit: _Outfit) -> None:
    skin, hair = Surface(outfit.skin), Surface(outfit.hair, folds=0.5)
    dark = Surface((outfit.skin[0] * 0.72, outfit.skin[1] * 0.74, outfit.skin[2] * 0.82))
    lips = Surface((dark.colour[0] * 0.8, dark.colour[1] * 0.75, dark.colour[2]))
    jaw = replace(skin, trim=(0, -0.1, -1, 0, 0.1), trim_colour=outfit.hair) if outfit.beard else skin

    def add(radii: Vector, surface: Surface, offset: Vector = (0, 0, 0)) -> None:
        tailor.add(HEAD, radii, surface, frame=SKULL, offset=offset)

    add((0.074, 0.094, 0.112), skin)
    add((0.056, 0.06, 0.058), jaw, (0, 0.028, -0.062))
    add((0.026, 0.008, 0.008), lips, (0, 0.083, -0.068))
    add((0.015, 0.022, 0.026), dark, (0, 0.092, -0.022))
    for sign in (1, -1):
        add((0.015, 0.010, 0.010), Surface((0.14, 0.15, 0.18)), (0.031 * sign, 0.082, 0.012))
        add((0.022, 0.010, 0.006), Surface(outfit.hair), (0.031 * sign, 0.082, 0.033))
        add((0.012, 0.020, 0.030), dark, (0.073 * sign, -0.008, -0.012))
    if outfit.hair_style != "bald":
        add((0.079, 0.092, 0.104), hair, (0, -0.022, 0.026))
    if outfit.hair_style == "long":
        add((0.082, 0.062, 0.13), hair, (0, -0.052, -0.07))
    if outfit.hair_style == "bun":
        add((0.045, 0.04, 0.045), hair, (0, -0.10, 0.075))
    if outfit.hat:
        add((0.086, 0.103, 0.085), Surface(outfit.second), (0, -0.008, 0.062))
        add((0.078, 0.075, 0.010), Surface(outfit.second), (0, 0.085, 0.052))


def _arm(tailor: _Tailor, outfit: _Outfit, side: int) -> None:
    shoulder, elbow, wrist, frame = 5 + side, 7 + side, 9 + side, (LEFT_ARM, RIGHT_ARM)[side]
    loose = 0.008 if outfit.sleeve > 1 else 0.003
    thick = tailor.girth**0.5
    upper, lower, end = 0.054 * thick + loose, 0.044 * thick + loose, 0.030 + loose
    skin, shirt = Surface(outfit.skin), outfit.shirt()
    sleeve = replace(shirt, trim=(0, 0, 0, 1, outfit.sleeve), trim_colour=outfit.skin)
    tailor.add(shoulder, (upper, upper, upper), sleeve, frame=frame, to=elbow, taper=lower / upper)
    covered = shirt if outfit.sleeve > 1 else skin
    tailor.add(elbow, (lower, lower, lower), covered, frame=frame, to=wrist, taper=end / lower)
    tailor.add(
        wrist, (0.036, 0.024, 0.03), skin, frame=frame, offset=(0, 0, -0.015), to=wrist, to_offset=(0, 0.015, -0.10),
        taper=0.9,
    )  # fmt: skip


def _leg(tailor: _Tailor, outfit: _Outfit, side: int) -> None:
    hip, knee, ankle, frame = 11 + side, 13 + side, 15 + side, (LEFT_FOOT, RIGHT_FOOT)[side]
    long, thick = outfit.trouser > 1, tailor.girth**0.7
    loose = 0.010 if long else 0.0
    upper, middle = 0.080 * thick + loose, 0.054 * thick + loose
    ankle_width = 0.037 + 1.8 * loose
    thigh = Surface(
        outfit.skin if outfit.skirt else outfit.bottom,
        trim=(0, 0, 0, 1, outfit.trouser),
        trim_colour=outfit.skin,
        folds=0.7,
    )
    tailor.add(hip, (upper, upper, upper), thigh, frame=frame, to=knee, taper=middle / upper)
    calf = Surface(outfit.bottom, folds=0.7) if long else Surface(outfit.skin)
    shin = calf if long else replace(calf, trim=(0, 0, 0, 1, 0.86), trim_colour=outfit.second)
    tailor.add(
        knee, (middle, middle, middle), shin, frame=frame, to=ankle, to_offset=(0, 0, -0.02), taper=ankle_width / middle
    )
    tailor.add(knee, (0.046 * thick + loose, 0.05 * thick + loose, 0.12), calf, frame=frame, offset=(0, -0.018, -0.13))
    shoe = Surface(outfit.shoes, trim=(0, 1, 0, 0, 0.55), trim_colour=outfit.sole)
    tailor.add(
        ankle, (0.041, 0.038, 0.042), shoe, frame=frame, offset=(0, -0.035, -0.042), to=ankle,
        to_offset=(0, 0.135, -0.058), taper=0.92,
    )  # fmt: skip
