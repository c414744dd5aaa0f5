"""A script in front of a simulated camera: pictures with exact ground truth."""

from __future__ import annotations

import numpy as np

from agent.simulation.background import Setting, choose_place
from agent.simulation.body import Anatomy, pose
from agent.simulation.camera import NEAR_M, Camera, hang_camera
from agent.simulation.render import Light, Silhouettes, Wardrobe, draw_people, fold_texture
from agent.simulation.sensor import Sensor, SensorModel, choose_sensor
from agent.simulation.shadow import cast_shadows
from agent.simulation.stage import Backdrop
from agent.simulation.values import ActorState, Script, Shot, Truth
from agent.simulation.wardrobe import Look, dress
from agent.types import NUM_KEYPOINTS, FloatArray, ImageArray, IntArray

_SAMPLES = 60
"""Moments of a script that are looked at to hang the camera and to place furniture."""
_STEP_S = 1 / 60
"""Velocities are differences over this time."""
_TOLERANCE_M = np.array([0.035] * 5 + [0.13] * 2 + [0.10] * 4 + [0.18] * 2 + [0.12] * 2 + [0.10] * 2, np.float32)
"""How far a key point may lie behind the surface seen at its pixel and still count as seen: it is inside the limb."""
_AROUND = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)], np.int64)


class SimulatedScene:
    """See `values.Scene`. Every shot follows from the arguments of `build_scene` and the time, in whatever order."""

    def __init__(self, script: Script, camera: Camera, setting: Setting, sensor: Sensor, *, seed: int) -> None:
        self.script = script
        self.camera = camera
        self.setting = setting
        self.seed = seed
        self.sensor = sensor
        self._model = SensorModel(sensor, seed, width=camera.width, height=camera.height)
        self._floor = (setting.backdrop.floor * 255).astype(np.uint8)
        self._folds = fold_texture(np.random.default_rng((seed, 4)))
        self._looks: dict[int, Look] = {}
        self._together: tuple[tuple[int, ...], tuple[Anatomy, IntArray, Wardrobe]] | None = None

    @property
    def width(self) -> int:
        """Of the picture, px."""
        return self.camera.width

    @property
    def height(self) -> int:
        """Of the picture, px."""
        return self.camera.height

    def shot(self, t_s: float) -> Shot:
        """The picture at `t_s` >= 0 with its truth."""
        actors = sorted(self.script.actors(t_s), key=lambda actor: actor.actor_id)
        image = self.setting.backdrop.image.copy()
        if not actors:
            return Shot(self._model.apply(image, t_s), _nobody(t_s))
        joints = np.stack([actor.joints for actor in actors]).astype(np.float32)
        body, owner, wardrobe = self._bodies(tuple(actor.actor_id for actor in actors))
        light, backdrop = self.setting.light, self.setting.backdrop
        cast_shadows(image, self._floor, joints, light.toward, strength=_shadow_strength(light), camera=self.camera)
        solids = pose(body, owner, joints, self._drift(actors, joints, t_s))
        seen = draw_people(image, backdrop.depth, solids, wardrobe, camera=self.camera, light=light)
        return Shot(self._model.apply(image, t_s), _truth(t_s, actors, joints, seen, self.camera))

    def _bodies(self, actor_ids: tuple[int, ...]) -> tuple[Anatomy, IntArray, Wardrobe]:
        """What these people are made of; made anew only when somebody comes or goes."""
        together = self._together
        if together is None or together[0] != actor_ids:
            # Who has left is forgotten: a look follows from seed and id, and a scene has no end.
            self._looks = {
                actor_id: self._looks.get(actor_id) or dress((self.seed, actor_id), grey=self.setting.night)
                for actor_id in actor_ids
            }
            looks = list(self._looks.values())
            owner = np.repeat(np.arange(len(looks)), [len(look.anatomy) for look in looks])
            joined = Anatomy.join([look.anatomy for look in looks]), owner, Wardrobe.of(looks, self._folds)
            together = self._together = (actor_ids, joined)
        return together[1]

    def _drift(self, actors: list[ActorState], joints: FloatArray, t_s: float) -> FloatArray:
        """(A, 17, 3) m that joints move while the shutter is open; who was not there a moment ago stands still."""
        before_s = t_s - _STEP_S
        if not self.sensor.exposure_s or before_s < 0:
            return np.zeros_like(joints)
        before = {actor.actor_id: actor.joints for actor in self.script.actors(before_s)}
        moved = np.stack([actor.joints - before.get(actor.actor_id, actor.joints) for actor in actors])
        return np.clip(moved / _STEP_S, -12, 12).astype(np.float32) * np.float32(self.sensor.exposure_s)


def build_scene(
    script: Script,
    *,
    seed: int,
    width: int = 640,
    height: int = 480,
    camera: Camera | None = None,
    background: ImageArray | None = None,
    place: str = "",
    night: bool | None = None,
    occluders: bool = True,
    sensor: Sensor | None = None,
) -> SimulatedScene:
    """A scene; whatever is not given follows from `seed`.

    camera: instead of one hung so that the script's people fill the picture; its size wins over width and height.
    background: (height, width, 3) uint8 BGR, a picture to put people on: nothing in it hides them, all of it takes
    shadows. place: one of `background.PLACES`; night: infrared, grey; occluders: things in front of people; sensor:
    noise, blur, compression (`sensor.CLEAN` = none). Raises ValueError for what does not fit together.
    """
    rng = np.random.default_rng((seed, 1))
    points = _where_people_are(script)
    eye = camera or hang_camera(points, rng, width=width, height=height)
    rng = np.random.default_rng((seed, 2))
    if background is None:
        setting = choose_place(eye, points, rng, name=place, night=night, occluders=occluders)
    else:
        setting = _on_picture(background, eye, rng, night=bool(night))
    chosen = sensor or choose_sensor(np.random.default_rng((seed, 3)), night=setting.night)
    return SimulatedScene(script, eye, setting, chosen, seed=seed)


def _where_people_are(script: Script) -> FloatArray:
    """(N, 3) joints over the script's length, at least those of one person in the middle."""
    # Not the end itself: it belongs to the next stretch of an endless script, which would have to be made.
    times = np.linspace(0, max(script.length_s, 0.1), _SAMPLES, endpoint=False)
    joints = [actor.joints for t_s in times for actor in script.actors(float(t_s))]
    if not joints:
        joints = [np.array([(x, y, z) for x in (-2, 2) for y in (-2, 2) for z in (0, 1.8)], np.float32)]
    return np.concatenate(joints).astype(np.float32)


def _on_picture(background: ImageArray, camera: Camera, rng: np.random.Generator, *, night: bool) -> Setting:
    if background.shape != (camera.height, camera.width, 3) or background.dtype != np.uint8:
        raise ValueError(
            f"background: expected uint8 of shape {(camera.height, camera.width, 3)}, got {background.dtype} {background.shape}"
        )
    size = (camera.height, camera.width)
    level = float(np.clip(background.mean() / 110, 0.55, 1.15))
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(30, 80))
    toward = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    direct, sky, ground = (np.full(3, share * level, np.float32) for share in (rng.uniform(0.25, 0.6), 0.6, 0.32))
    light = Light(toward.astype(np.float32), direct, sky, ground)
    backdrop = Backdrop(background.copy(), np.full(size, np.inf, np.float32), np.ones(size, np.float32))
    return Setting("picture", backdrop, light, night)


def _shadow_strength(light: Light) -> float:
    """Share of the light that a shadow takes away."""
    if light.lamp_m:
        return 0.0  # a lamp at the lens throws shadows to where the lens does not see them
    direct, sky = float(light.direct.mean()), float(light.sky.mean())
    return min(0.8 * direct / (direct + sky), 0.6)


def _truth(t_s: float, actors: list[ActorState], joints: FloatArray, seen: Silhouettes, camera: Camera) -> Truth:
    pixels, depth = camera.project(joints)
    visibility = _visibility(pixels, depth, seen)
    kept = np.flatnonzero(np.any(visibility > 0, axis=1) & np.isfinite(seen.full_boxes).all(axis=1))
    edges = np.array([camera.width, camera.height] * 2, np.float32)
    full = seen.full_boxes[kept]
    boxes = np.where(np.isfinite(seen.boxes[kept]), seen.boxes[kept], np.clip(full, 0, edges))
    return Truth(
        t_s=t_s,
        actor_ids=np.array([actors[row].actor_id for row in kept], np.int64),
        boxes=boxes.astype(np.float32),
        full_boxes=full,
        keypoints=pixels[kept],
        visibility=visibility[kept],
        visible_share=seen.visible_share[kept],
        actions=tuple(actors[row].action for row in kept),
    )


def _visibility(pixels: FloatArray, depth: FloatArray, seen: Silhouettes) -> IntArray:
    """(A, 17) 0 outside the picture, 1 hidden, 2 seen, by the depth buffer around each key point."""
    height, width = seen.depth.shape
    inside = (depth > NEAR_M) & np.all((pixels > -0.5) & (pixels < np.array([width, height]) - 0.5), axis=-1)
    nearest = np.rint(np.where(inside[..., None], pixels, 0)).astype(np.int64)
    around = np.clip(nearest[..., None, :] + _AROUND, 0, (width - 1, height - 1))
    surface = seen.depth[around[..., 1], around[..., 0]]
    owner = seen.actor[around[..., 1], around[..., 0]]
    mine = (owner == np.arange(len(pixels))[:, None, None]) | (owner < 0)
    # Another body right in front counts from the surface of the own limb on, one's own from twice its depth.
    reach = np.where(mine, _TOLERANCE_M[:, None], _TOLERANCE_M[:, None] * 0.6)
    clear = np.any(surface > depth[..., None] - reach, axis=-1)
    return np.where(inside, np.where(clear, 2, 1), 0).astype(np.int64)


def _nobody(t_s: float) -> Truth:
    return Truth(
        t_s,
        np.zeros(0, np.int64),
        np.zeros((0, 4), np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros((0, NUM_KEYPOINTS, 2), np.float32),
        np.zeros((0, NUM_KEYPOINTS), np.int64),
        np.zeros(0, np.float32),
        (),
    )
