"""The simulated camera's pictures with their exact truth -> one shard.

    python -m pose_nano.prepare_simulated --mocap data/mocap --backgrounds shards/real --scenes 1000 --first-seed 0 --out shards/simulated

Scenes are the agent's scripted scenarios in the agent's own places, each in two of them (the second has a seed 100,003 higher), and
captured poses in any company (`staged.py`), seen by cameras on walls and in hands, in simulated places and in front of pictures of
the shard `--backgrounds` (its people stay labelled where nobody stands before them). Seeds from 1000001 on are those of hold-out
scenes and refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from agent.simulation.scene import SimulatedScene, build_scene
from agent.simulation.scripts import SCENARIOS, build_script
from agent.simulation.values import MIN_VISIBLE_SHARE, Script, Truth
from agent.types import FloatArray, ImageArray
from pose_nano.staged import CAST_S, StagedScript, load_motions, near_camera
from pose_nano.store import Annotations, Sample, Shard, ShardWriter, parts

WIDTH, HEIGHT = 640, 480
HOLDOUT_SEEDS = 1_000_001
"""The first of them; see holdout.sh."""
HIDDEN_WEIGHT = 0.6
_LEAST_SEEN = 2
_NEAR, _PICTURE = 0.5, 0.45
_PLAY_S = 40.0
_FALLS = ("fall", "fall-rise", "mixed")
_VIEWS, _NEXT_VIEW = 2, 100_003
"""Places, cameras and clothes in which one scripted play is seen, since the play costs more than its pictures."""


def annotations_of(truth: Truth) -> Annotations:
    """Exact labels; who hardly shows becomes an unknown region."""
    sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
    valid = np.isfinite(truth.boxes).all(axis=1) & (sides > 1).all(axis=1)
    labelled = (truth.visible_share >= MIN_VISIBLE_SHARE) & ((truth.visibility == 2).sum(axis=1) >= _LEAST_SEEN)
    people = Annotations(
        boxes=truth.boxes,
        keypoints=truth.keypoints,
        weights=np.choose(truth.visibility, [0.0, HIDDEN_WEIGHT, 1.0]).astype(np.float32),
        seen=np.choose(truth.visibility, [0.0, -1.0, 1.0]).astype(np.float32),
        labelled=labelled,
    )
    return people.rows(valid)


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What staged scenes are made of. scripted: share of scenes that are the agent's scenarios all the same; fallen: share of these
    in which people fall and which are seen while somebody does or lies: such poses are few in what cameras see, and matter most."""

    motions: list[FloatArray]
    backgrounds: Shard | None
    scripted: float
    fallen: float = 0.0


def scene_pictures(seed: int, shots: int, material: Material) -> Iterator[Sample]:
    """`shots` pictures of the scene `seed`."""
    rng = np.random.default_rng([seed, 7])
    if rng.random() < material.scripted:
        fallen = material.fallen > 0 and rng.random() < material.fallen
        scenario = str(rng.choice(_FALLS)) if fallen else _scenario(rng)
        people = int(rng.integers(1, 7))
        script = build_script(scenario, seed=seed, people=people)
        moments = _fallen_moments(script) if fallen else None
        for number in range(_VIEWS):
            scene = build_scene(script, seed=seed + number * _NEXT_VIEW, width=WIDTH, height=HEIGHT)
            count = shots // _VIEWS + (number < shots % _VIEWS)
            times = rng.uniform(0, _PLAY_S, count) if moments is None else rng.choice(moments, count)
            for t_s in np.sort(times):
                shot = scene.shot(float(t_s))
                yield Sample(shot.image, annotations_of(shot.truth))
        return
    staged = StagedScript(material.motions, seed=seed, people=int(rng.integers(1, 9)), casts=shots)
    scene, behind = _staged_scene(staged, seed, rng, material.backgrounds)
    for cast in range(shots):
        shot = scene.shot(cast * CAST_S + float(rng.uniform(0.1, CAST_S * 0.9)))
        people = annotations_of(shot.truth)
        yield Sample(shot.image, Annotations.joined([people, _still_seen(behind, people)]))


def _fallen_moments(script: Script) -> FloatArray | None:
    """Times at which somebody falls or lies; None where nobody does."""
    times = np.arange(0, _PLAY_S, 0.2)
    low = [any(actor.action in {"fall", "lie"} for actor in script.actors(float(t_s))) for t_s in times]
    return times[low] if any(low) else None


def _scenario(rng: np.random.Generator) -> str:
    """Any, but seldom one without people."""
    scenario = str(rng.choice(SCENARIOS))
    return "crowd" if scenario == "empty" and rng.random() < 0.8 else scenario


def _staged_scene(
    script: StagedScript, seed: int, rng: np.random.Generator, backgrounds: Shard | None
) -> tuple[SimulatedScene, Annotations]:
    """The scene, and who is in the picture behind it."""
    camera = near_camera(script, rng, width=WIDTH, height=HEIGHT) if rng.random() < _NEAR else None
    if backgrounds is None or rng.random() >= _PICTURE:
        return build_scene(script, seed=seed, width=WIDTH, height=HEIGHT, camera=camera), Annotations.empty()
    image, behind = _cover(backgrounds[int(rng.integers(len(backgrounds)))])
    return build_scene(script, seed=seed, width=WIDTH, height=HEIGHT, camera=camera, background=image), behind


def _cover(sample: Sample) -> tuple[ImageArray, Annotations]:
    """A picture enlarged and cut so that it fills the scene."""
    height, width = sample.image.shape[:2]
    factor = max(HEIGHT / height, WIDTH / width)
    size = (max(WIDTH, round(width * factor)), max(HEIGHT, round(height * factor)))
    image = cv2.resize(sample.image, size, interpolation=cv2.INTER_LINEAR)[:HEIGHT, :WIDTH]
    return np.ascontiguousarray(image), sample.people.scaled(factor)  # type: ignore[return-value]  # stubs


def _still_seen(behind: Annotations, before: Annotations) -> Annotations:
    """People of the background; key points inside somebody's box are doubtful, who has many of these is unknown."""
    if not len(behind):
        return behind
    points, boxes = behind.keypoints[:, :, None], before.boxes[None, None]
    covered = ((points > boxes[..., :2]) & (points < boxes[..., 2:])).all(axis=-1).any(axis=-1)
    covered |= ((behind.keypoints < 0) | (behind.keypoints >= (WIDTH, HEIGHT))).any(axis=-1)
    few = (behind.weights * ~covered > 0).sum(axis=1) >= 0.7 * (behind.weights > 0).sum(axis=1)
    return replace(
        behind,
        boxes=np.clip(behind.boxes, 0, np.array([WIDTH, HEIGHT] * 2, np.float32)),
        weights=behind.weights * ~covered,
        seen=np.where(covered, -1, behind.seen).astype(np.float32),
        labelled=behind.labelled & few,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mocap", type=Path, required=True)
    parser.add_argument("--backgrounds", type=Path, help="shard of real pictures to put people on")
    parser.add_argument("--scripted", type=float, default=0.25, help="share of scripted scenes")
    parser.add_argument(
        "--fallen", type=float, default=0.0, help="share of scripted scenes seen while somebody falls or lies"
    )
    parser.add_argument("--scenes", type=int, required=True)
    parser.add_argument("--shots", type=int, default=6, help="pictures per scene")
    parser.add_argument("--first-seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--part-scenes",
        type=int,
        default=0,
        help="write a shard OUT-SEED for every so many scenes, each there when it is whole",
    )
    arguments = parser.parse_args()
    last = arguments.first_seed + arguments.scenes - 1 + (_VIEWS - 1) * _NEXT_VIEW
    if last >= HOLDOUT_SEEDS:
        parser.error(
            f"seeds from {HOLDOUT_SEEDS} on are for hold-out scenes; the last one here is {last} (a play is seen {_VIEWS} times)"
        )
    cv2.setNumThreads(1)
    backgrounds = Shard(arguments.backgrounds) if arguments.backgrounds else None
    material = Material(load_motions(arguments.mocap), backgrounds, arguments.scripted, arguments.fallen)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.scenes)
    for folder, part in parts(arguments.out, seeds, arguments.part_scenes):
        write_shard(folder, part, arguments.shots, material)


def write_shard(folder: Path, seeds: Sequence[int], shots: int, material: Material) -> None:
    """The pictures of these scenes."""
    writer, people = ShardWriter(folder, len(seeds) * shots), 0
    for seed in seeds:
        for sample in scene_pictures(seed, shots, material):
            writer.add(sample.image, sample.people)
            people += len(sample.people)
    print(f"{folder}: {len(writer)} pictures, {people} people", flush=True)
    writer.close()


if __name__ == "__main__":
    main()
