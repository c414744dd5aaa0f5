"""Makes docs/simulated-scenes.jpg: a contact sheet of the simulated camera, one scenario and place after the other.

python docs/make_scene_sheet.py [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.simulation.scene import build_scene  # noqa: E402  the repository first
from agent.simulation.scripts import build_script  # noqa: E402
from agent.simulation.values import Script, Truth  # noqa: E402
from agent.types import SKELETON  # noqa: E402

COLUMNS, CELL = 4, (400, 300)
TILES = (
    # scenario, seed, place, night, truth drawn in; the moment shown is the middle of the first such action
    ("crowd", 2, "shop", False, False), ("fight", 21, "room", False, False), ("fall", 47, "corridor", False, False),
    ("hug", 60, "street", False, False), ("sit", 60, "room", False, False), ("bend", 26, "shop", False, False),
    ("exercise", 27, "parking", False, False), ("fall-rise", 69, "parking", False, False),
    ("fight", 12, "street", True, False), ("crowd", 33, "parking", False, True), ("fight", 56, "corridor", False, True),
    ("fall", 31, "room", False, True),
)  # fmt: skip
ACTIONS = {"crowd": "walk", "fall-rise": "fall"}
"""Of scenarios that are not named after the action to show."""


def moment(script: Script, scenario: str) -> float:
    """Middle of the first interval of what the scenario is about; 3 s where there is none."""
    wanted = ACTIONS.get(scenario, scenario)
    found = [each for each in script.intervals(0.0, script.length_s) if each.action == wanted and each.start_s > 1]
    return (found[0].start_s + min(found[0].end_s, found[0].start_s + 4.0)) / 2 if found else 3.0


def draw_truth(image: NDArray[np.uint8], truth: Truth) -> None:
    """Boxes, bones and key points: green seen, red hidden."""
    for box, keypoints, visibility in zip(truth.boxes, truth.keypoints, truth.visibility, strict=True):
        left, top, right, bottom = (round(float(value)) for value in box)
        cv2.rectangle(image, (left, top), (right, bottom), (0, 230, 255), 1)
        pixels = np.rint(keypoints).astype(int).tolist()
        for start, end in SKELETON:
            if visibility[start] and visibility[end]:
                cv2.line(image, pixels[start], pixels[end], (200, 200, 200), 1, cv2.LINE_AA)
        for pixel, seen in zip(pixels, visibility, strict=True):
            if seen:
                cv2.circle(image, pixel, 2, (0, 220, 0) if seen == 2 else (0, 0, 255), -1, cv2.LINE_AA)


def tile(scenario: str, seed: int, place: str, night: bool, with_truth: bool) -> NDArray[np.uint8]:
    """One picture, labelled."""
    script = build_script(scenario, seed=seed, people=4)
    shot = build_scene(script, seed=seed, place=place, night=night).shot(moment(script, scenario))
    image = shot.image.copy()
    if with_truth:
        draw_truth(image, shot.truth)
    image = cv2.resize(image, CELL, interpolation=cv2.INTER_AREA)
    label = f"{scenario}, {place}"
    (wide, high), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    cv2.rectangle(image, (0, 0), (wide + 12, high + 12), (30, 30, 30), -1)
    cv2.putText(image, label, (6, high + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(image, np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "simulated-scenes.jpg")
    out = parser.parse_args().out
    tiles = [tile(*each) for each in TILES]
    sheet = np.vstack([np.hstack(tiles[row : row + COLUMNS]) for row in range(0, len(tiles), COLUMNS)])
    cv2.imwrite(str(out), sheet, [cv2.IMWRITE_JPEG_QUALITY, 80])
    print(f"{out}: {sheet.shape[1]} x {sheet.shape[0]}, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
