"""Places: corridor, room, shop, street, parking. Each lays out a stage around the ground that people use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from agent.simulation.camera import Array, Camera
from agent.simulation.materials import Material
from agent.simulation.render import Light
from agent.simulation.stage import Ambience, Backdrop, Block, Lamp, Shell, arriving, build_backdrop
from agent.types import FloatArray

PLACES = ("corridor", "room", "shop", "street", "parking")
_CLEARANCE_M = 0.45
"""Blocks keep this away from where people's joints are."""
_MOST_HIDDEN = 0.08
"""Share of all joints that one thing in the foreground may hide."""

Colour = tuple[float, float, float]

_WALLS: tuple[Colour, ...] = (
    (0.78, 0.80, 0.82), (0.70, 0.76, 0.80), (0.66, 0.74, 0.72), (0.60, 0.66, 0.74), (0.52, 0.56, 0.58), (0.76, 0.72, 0.62),
)  # fmt: skip
_FLOORS: tuple[Colour, ...] = (
    (0.52, 0.56, 0.60), (0.34, 0.36, 0.38), (0.60, 0.66, 0.70), (0.26, 0.38, 0.50), (0.22, 0.30, 0.42), (0.42, 0.42, 0.40),
    (0.40, 0.34, 0.28), (0.20, 0.22, 0.40),
)  # fmt: skip
_FURNITURE: tuple[Colour, ...] = (
    (0.28, 0.40, 0.54), (0.16, 0.24, 0.36), (0.62, 0.66, 0.68), (0.20, 0.20, 0.22), (0.46, 0.34, 0.22), (0.22, 0.24, 0.48),
)  # fmt: skip
_POSTS: tuple[Colour, ...] = (
    (0.55, 0.56, 0.57),
    (0.30, 0.31, 0.32),
    (0.72, 0.74, 0.76),
    (0.24, 0.30, 0.38),
    (0.30, 0.36, 0.30),
)
_CARS: tuple[Colour, ...] = (
    (0.70, 0.70, 0.70), (0.10, 0.10, 0.11), (0.20, 0.16, 0.52), (0.46, 0.26, 0.14), (0.86, 0.86, 0.86), (0.34, 0.34, 0.33),
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """A place with its light. name: one of `PLACES`; night: seen by an infrared camera, grey."""

    name: str
    backdrop: Backdrop
    light: Light
    night: bool


@dataclass(slots=True)
class _Builder:
    """Puts blocks where nobody walks."""

    rng: np.random.Generator
    used: FloatArray
    camera: Camera
    blocks: list[Block]

    def material(self, kind: str, colours: tuple[Colour, ...], **more: float) -> Material:
        base = np.clip(np.array(colours[self.rng.integers(len(colours))]) * self.rng.uniform(0.85, 1.1), 0.05, 0.95)
        second = base * self.rng.choice([0.62, 0.78, 1.2])
        size = more.get("size_m", 0.5)
        contrast = more.get("contrast", self.rng.uniform(0.015, 0.06))
        triple = [tuple(float(x) for x in np.clip(c, 0.02, 0.97)) for c in (base, second)]
        return Material(kind, triple[0], triple[1], size, float(contrast), int(self.rng.integers(1 << 20)))  # type: ignore[arg-type]  # triples by construction

    def free(self, low: Array, high: Array) -> bool:
        """Whether nobody comes near the ground between the corners (2,), and the camera neither."""
        near = np.all((self.used > low - _CLEARANCE_M) & (self.used < high + _CLEARANCE_M), axis=1)
        eye = self.camera.position[:2]
        return not near.any() and not bool(np.all((eye > low - 0.5) & (eye < high + 0.5)))

    def put(
        self,
        x: float,
        y: float,
        size: tuple[float, float, float],
        side: Material,
        *,
        top: Material | None = None,
        z: float = 0,
    ) -> bool:
        """A block centred at (x, y) if there is room."""
        half = np.array(size[:2]) / 2
        centre = np.array([x, y])
        if not self.free(centre - half, centre + half):
            return False
        low, high = centre - half, centre + half
        self.blocks.append(
            Block((float(low[0]), float(low[1]), z), (float(high[0]), float(high[1]), z + size[2]), side, top or side)
        )
        return True


def choose_place(
    camera: Camera,
    points: FloatArray,
    rng: np.random.Generator,
    *,
    name: str = "",
    night: bool | None = None,
    occluders: bool = True,
) -> Setting:
    """A place around `points` ((N, 3) m, where joints are over time), seen by `camera`.

    name: one of `PLACES`, empty = by chance; night: None = by chance. Raises ValueError for another name.
    """
    if name and name not in PLACES:
        raise ValueError(f"unknown place {name!r}: known are {', '.join(PLACES)}")
    place = name or PLACES[rng.integers(len(PLACES))]
    dark = bool(rng.random() < 0.15) if night is None else night
    builder = _Builder(rng, points[:, :2], camera, [])
    low = np.minimum(points[:, :2].min(axis=0), camera.position[:2]) - rng.uniform(0.7, 2.5, 2)
    high = np.maximum(points[:, :2].max(axis=0), camera.position[:2]) + rng.uniform(0.7, 2.5, 2)
    indoors = place in ("corridor", "room", "shop")
    ceiling = max(float(rng.uniform(2.7, 3.6)), float(camera.position[2]) + 0.3)
    shell = _indoor_shell(builder, place, low, high, ceiling) if indoors else _outdoor_shell(builder, place, low, high)
    (_furnish if indoors else _park)(builder, place, shell)
    if occluders:
        _occlude(builder, points, place, ceiling)
    ambience = _ambience(rng, shell, camera, indoors=indoors, night=dark)
    brightness = float(rng.uniform(58, 95) if dark else rng.uniform(88, 132))
    backdrop, gain = build_backdrop(shell, tuple(builder.blocks), ambience, camera, brightness=brightness)
    if dark:
        grey = backdrop.image.mean(axis=2, keepdims=True).astype(np.uint8)
        backdrop = Backdrop(np.repeat(grey, 3, axis=2), backdrop.depth, backdrop.floor)
    middle = np.array([*np.median(points[:, :2], axis=0), 1.0])
    light = _light(rng, camera, ambience, middle, gain=gain, indoors=indoors, night=dark)
    return Setting(place, backdrop, light, dark)


def _indoor_shell(builder: _Builder, place: str, low: FloatArray, high: FloatArray, ceiling: float) -> Shell:
    rng = builder.rng
    kind = str(rng.choice(["tiles", "tiles", "planks", "rough"]))
    size = {"tiles": rng.uniform(0.3, 0.7), "planks": rng.uniform(0.1, 0.2), "rough": 0.4}[kind]
    floor = builder.material(kind, _FLOORS, size_m=size)
    wall_kind = str(rng.choice(["plain", "plain", "bricks", "panel"] if place != "shop" else ["plain", "shelf"]))
    sizes = {"plain": 1.0, "bricks": 0.1, "panel": 1.3, "shelf": 0.42}
    walls = [
        builder.material(wall_kind if rng.random() < 0.5 else "plain", _WALLS, size_m=sizes[wall_kind])
        for _ in range(2)
    ]
    top = builder.material("tiles", ((0.85, 0.86, 0.87),), size_m=0.6)
    return Shell(
        (float(low[0]), float(low[1]), 0.0),
        (float(high[0]), float(high[1]), ceiling),
        (floor, top, walls[0], walls[1], walls[0], walls[1]),
    )


def _outdoor_shell(builder: _Builder, place: str, low: FloatArray, high: FloatArray) -> Shell:
    rng = builder.rng
    asphalt = ((0.34, 0.34, 0.34), (0.26, 0.26, 0.26), (0.46, 0.47, 0.48))
    kind = str(rng.choice(["lanes", "rough", "lanes"] if place == "parking" else ["lanes", "rough", "tiles", "bricks"]))
    size = {"lanes": rng.uniform(2.3, 3.6), "rough": 0.12, "tiles": rng.uniform(0.3, 0.6), "bricks": 0.12}[kind]
    floor = builder.material(
        kind, asphalt if kind in ("rough", "lanes") else _FLOORS, size_m=float(size), contrast=0.06
    )
    if kind == "lanes":
        floor = replace(floor, second=(0.75, 0.76, 0.76))
    facades: list[Material | None] = [
        builder.material(str(rng.choice(["windows", "bricks", "rough"])), _WALLS, size_m=float(rng.uniform(1.6, 2.8)))
        if rng.random() < 0.7 else None
        for _ in range(4)
    ]  # fmt: skip
    away = rng.uniform(3, 14, 4)
    return Shell(
        (float(low[0] - away[0]), float(low[1] - away[1]), 0.0),
        (float(high[0] + away[2]), float(high[1] + away[3]), 14.0),
        (floor, None, *facades),  # type: ignore[arg-type]  # four facades by construction
    )


def _furnish(builder: _Builder, place: str, shell: Shell) -> None:
    """Doors, posters and furniture along the walls."""
    rng = builder.rng
    for _ in range(int(rng.integers(5, 12))):
        axis, at_high = int(rng.integers(2)), bool(rng.integers(2))
        along = float(
            rng.uniform(shell.low[1 - axis] + 0.6, max(shell.high[1 - axis] - 0.6, shell.low[1 - axis] + 0.7))
        )
        choice = float(rng.random())
        if choice < 0.3:
            size, z = (0.04, 0.95, 2.05), 0.0
            side = builder.material("panel", _FURNITURE, size_m=0.95)
        elif choice < 0.5:
            size, z = (0.03, float(rng.uniform(0.4, 1.4)), float(rng.uniform(0.4, 1.0))), 1.2
            side = builder.material("rough", (*_FURNITURE, *_CARS), size_m=0.2, contrast=0.35)
        else:
            tall = rng.random() < 0.45 or place == "shop"
            size = (
                float(rng.uniform(0.35, 0.7)),
                float(rng.uniform(0.7, 1.8)),
                float(rng.uniform(1.5, 2.1) if tall else rng.uniform(0.45, 1.0)),
            )
            z = 0.0
            side = builder.material("shelf" if tall else "panel", _FURNITURE, size_m=0.4 if tall else 0.5)
        offset = size[0] / 2 + 0.005
        across = shell.high[axis] - offset if at_high else shell.low[axis] + offset
        top = builder.material("plain", _FURNITURE)
        if axis == 0:
            builder.put(across, along, size, side, top=top, z=z)
        else:
            builder.put(along, across, (size[1], size[0], size[2]), side, top=top, z=z)


def _park(builder: _Builder, place: str, shell: Shell) -> None:
    """Cars, planters and posts around the ground."""
    rng = builder.rng
    for _ in range(14 if place == "parking" else 8):
        x = float(rng.uniform(shell.low[0], shell.high[0]))
        y = float(rng.uniform(shell.low[1], shell.high[1]))
        if rng.random() < (0.8 if place == "parking" else 0.35):
            _put_car(builder, x, y)
        elif rng.random() < 0.5:
            size = (float(rng.uniform(0.5, 1.6)), float(rng.uniform(0.5, 1.6)), float(rng.uniform(0.4, 0.9)))
            hedge = builder.material("rough", ((0.16, 0.34, 0.20), (0.22, 0.40, 0.30)), size_m=0.1, contrast=0.25)
            builder.put(x, y, size, hedge)
        else:
            builder.put(x, y, (0.12, 0.12, 4.5), builder.material("plain", _POSTS))


def _put_car(builder: _Builder, x: float, y: float) -> None:
    """Body, cabin with windows, dark gap with wheels underneath."""
    paint = builder.material("plain", _CARS, contrast=0.02)
    glass = Material("panel", (0.16, 0.15, 0.14), paint.base, 1.1, 0.05)
    dark = Material("plain", (0.05, 0.05, 0.05))
    turned = bool(builder.rng.integers(2))

    def size(length: float, width: float, height: float) -> tuple[float, float, float]:
        return (width, length, height) if turned else (length, width, height)

    if builder.put(x, y, size(4.1, 1.65, 0.35), dark):
        low, high = np.array(builder.blocks[-1].low), np.array(builder.blocks[-1].high)
        middle = (low + high) / 2
        for length, width, bottom, top, side in ((4.3, 1.75, 0.28, 0.85, paint), (2.3, 1.5, 0.85, 1.42, glass)):
            half = np.array(size(length, width, 0)[:2]) / 2
            corner = middle[:2] - half, middle[:2] + half
            builder.blocks.append(
                Block(
                    (float(corner[0][0]), float(corner[0][1]), bottom),
                    (float(corner[1][0]), float(corner[1][1]), top),
                    side,
                    paint,
                )
            )


def _occlude(builder: _Builder, points: FloatArray, place: str, ceiling: float) -> None:
    """Something between the camera and the people that hides some of them some of the time, never most of them."""
    rng, eye = builder.rng, builder.camera.position
    for _ in range(int(rng.integers(0, 3))):
        for _ in range(15):
            target = points[rng.integers(len(points))]
            x, y = (eye + (target - eye) * rng.uniform(0.35, 0.85))[:2] + rng.normal(0, 0.3, 2)
            if rng.random() < 0.4 or place in ("street", "parking"):
                side = float(rng.uniform(0.1, 0.3))
                size, material = (side, side, max(ceiling, 4.0)), builder.material("rough", _POSTS, size_m=0.6)
            else:
                wide, deep, high = (float(value) for value in rng.uniform((0.7, 0.6, 0.7), (1.5, 0.9, 1.15)))
                size, material = (wide, deep, high), builder.material("panel", _FURNITURE, size_m=0.6)
            share = _hidden_share(np.array([x, y]), np.array(size), eye, points)
            if 0.005 < share < _MOST_HIDDEN and builder.put(float(x), float(y), size, material):
                break


def _hidden_share(centre: Array, size: Array, eye: Array, points: Array) -> float:
    """Share of `points` that a block of `size` at `centre` hides from `eye`."""
    low = np.array([*(centre - size[:2] / 2), 0.0])
    direction = points - eye
    direction = np.where(np.abs(direction) < 1e-6, 1e-6, direction)
    one, other = (low - eye) / direction, (low + size - eye) / direction
    enter, leave = np.minimum(one, other).max(axis=1), np.maximum(one, other).min(axis=1)
    return float(np.mean((enter < leave) & (enter > 0) & (enter < 1)))


def _ambience(rng: np.random.Generator, shell: Shell, camera: Camera, *, indoors: bool, night: bool) -> Ambience:
    if night:  # infrared lamps around the lens
        eye = (float(camera.position[0]), float(camera.position[1]), float(camera.position[2]))
        return Ambience(float(rng.uniform(0.06, 0.16)), (Lamp(eye, 1.0, float(rng.uniform(4, 8))),), (0.02,) * 3)
    warmth = float(rng.normal(0, 0.05))
    tint = (1 - warmth, 1.0, 1 + warmth)
    if not indoors:
        return Ambience(1.0, (), (0.92, 0.86, 0.80), tint)
    spots = rng.uniform(shell.low[:2], shell.high[:2], (int(rng.integers(2, 5)), 2))
    lamps = tuple(
        Lamp((float(x), float(y), shell.high[2] + 0.1), float(rng.uniform(0.3, 0.8)), float(rng.uniform(2, 3.5)))
        for x, y in spots
    )
    return Ambience(float(rng.uniform(0.4, 0.7)), lamps, tint=tint)


def _light(
    rng: np.random.Generator,
    camera: Camera,
    ambience: Ambience,
    middle: Array,
    *,
    gain: float,
    indoors: bool,
    night: bool,
) -> Light:
    """What falls on people in the `middle` (3,) of the stage, by the `gain` of its picture."""
    x, y, z = (np.array([value], np.float32) for value in middle)
    level = float(arriving(ambience, (x, y, z))[0]) * gain
    colour = np.array(ambience.tint, np.float32)
    if night:
        away_m = float(np.linalg.norm(camera.position - middle))
        direct, sky, ground = 0.85 * level, 0.25 * level, 0.12 * level
        return Light(-camera.rotation[2], direct * colour, sky * colour, ground * colour, lamp_m=max(away_m, 2.0))
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(45, 80) if indoors else rng.uniform(28, 70))
    toward = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    direct = float(rng.uniform(0.3, 0.55) if indoors else rng.uniform(0.3, 0.8)) * level
    return Light(toward.astype(np.float32), direct * colour, 0.72 * level * colour, 0.36 * level * colour)
