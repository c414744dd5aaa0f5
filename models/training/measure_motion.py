"""Figures of the simulated motion, as they stand in models/human-motion/CARD.md.

python models/training/measure_motion.py [--falls 8]
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from agent.simulation import skeleton as sk
from agent.simulation.area import travel
from agent.simulation.falling import KINDS, fall_down, random_fall
from agent.simulation.gait import Mover, perform, plan_along
from agent.simulation.motion import RATE_HZ, MotionModel, load_motion_model
from agent.simulation.performer import Performer
from agent.simulation.scripts import simulate_joints

Array = NDArray[np.float64]


def walk(model: MotionModel, speed: float) -> None:
    """Cadence, stride, slip of resting feet, bounce of the pelvis on a straight line."""
    mover = Mover(sk.average_body(), np.zeros(len(model.walk.styles)), model)
    xy, heading = travel(np.array([[0.0, 0.0], [24.0, 0.0]]), 0.0, speed)
    take = perform(mover, plan_along(mover, xy, heading))
    joints = sk.joints_of(sk.Lengths([mover.body]).table[0][None], take.root, take.bones)[3 * RATE_HZ : -3 * RATE_HZ]
    ankles = joints[:, [sk.ANKLE_L, sk.ANKLE_R]]
    rests = ankles[..., 2] < mover.body.ankle + 0.002
    landings = np.flatnonzero(rests[1:, 0] & ~rests[:-1, 0])
    stride_s = float(np.diff(landings).mean()) / RATE_HZ
    slip = np.linalg.norm(np.diff(ankles[..., :2], axis=0), axis=-1)[rests[1:] & rests[:-1]] * 1000
    hips = joints[:, [sk.HIP_L, sk.HIP_R], 2].mean(axis=1)
    print(
        f"{speed:.1f} m/s: {120 / stride_s:.0f} steps/min, stride {speed * stride_s:.2f} m, feet rest {rests.mean():.0%}, "
        f"slip {slip.mean():.2f} mm a frame (95 %: {np.percentile(slip, 95):.1f}), hips {np.ptp(hips) * 100:.1f} cm up and down"
    )


def falls(model: MotionModel, kind: str, count: int) -> None:
    """Duration and the greatest downward speed of pelvis and head."""
    rows = []
    for seed in range(count):
        person = Performer(model, np.random.default_rng(seed), first=0, xy=np.zeros(2), heading=0.0)
        if kind in {"trip", "slip"}:
            person.go([np.array([2.5, 0.0])], 1.3, end_speed=1.3)
        else:
            person.stand(0.8)
        onset = person.now
        for _ in fall_down(person, random_fall(np.random.default_rng(seed + 100), kind)):
            pass
        track = person.track()
        joints = sk.joints_of(sk.Lengths([track.body]).table, track.root.astype(float), track.bones.astype(float))[
            onset:
        ]
        hips, head = joints[:, [sk.HIP_L, sk.HIP_R], 2].mean(axis=1), joints[:, [sk.EAR_L, sk.EAR_R], 2].mean(axis=1)
        down = int(np.argmax(head < 0.5 * track.body.height * 0.55))
        rows.append((
            -np.diff(hips).min() * RATE_HZ, -np.diff(head).min() * RATE_HZ, down / RATE_HZ, len(joints) / RATE_HZ, head[-1],
        ))  # fmt: skip
    table = np.array(rows)
    mean, low, high = table.mean(axis=0), table.min(axis=0), table.max(axis=0)
    names = ("hips m/s", "head m/s", "head down s", "still s", "head m")
    print(
        f"{kind}: "
        + ", ".join(f"{n} {m:.1f} ({a:.1f}-{b:.1f})" for n, m, a, b in zip(names, mean, low, high, strict=True))
    )


def fights(count: int) -> None:
    """Fist speed and how near the fighters are."""
    fists, apart = [], []
    for seed in range(count):
        found = simulate_joints("fight", seed, 2, 30.0, 60.0)
        interval = next(i for i in found.intervals if i.action == "fight")
        part = found.joints[int(interval.start_s * 60) : int(interval.end_s * 60)]
        columns = [found.actor_ids.tolist().index(actor) for actor in interval.actor_ids[:2]]
        speed = np.linalg.norm(np.diff(part[:, columns][:, :, [sk.WRIST_L, sk.WRIST_R]], axis=0), axis=-1) * 60
        fists.append(np.nanpercentile(speed.max(axis=(1, 2)), 99))
        hips = part[:, columns][:, :, [sk.HIP_L, sk.HIP_R], :2].mean(axis=2)
        apart.append(np.nanmean(np.linalg.norm(hips[:, 0] - hips[:, 1], axis=-1)))
    print(f"fights: fists {np.mean(fists):.1f} m/s ({min(fists):.1f}-{max(fists):.1f}), {np.mean(apart):.2f} m apart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--falls", type=int, default=8, help="of each kind")
    count = parser.parse_args().falls
    model = load_motion_model()
    for speed in (0.8, 1.1, 1.4, 1.7, 3.0):
        walk(model, speed)
    for kind in KINDS:
        falls(model, kind, count)
    fights(min(count, 5))


if __name__ == "__main__":
    main()
