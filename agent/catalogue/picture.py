"""A picture with four people, the same on every machine: something to compare a pose model's answers on.

It ships as `models/people.png`, one frame of the simulated camera; `python -m agent.catalogue.picture FILE` draws it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.config.paths import resource_dir
from agent.errors import ModelError
from agent.types import ImageArray

FILE = "people.png"
_PAD = 114
_SCENARIO, _SEED, _PEOPLE, _TIME_S = "crowd", 9, 5, 7.0
"""Four people from 105 to 250 px high at 640x480; PoseNet sees all of them with scores from 0.71 to 0.85."""


def people_picture(height: int, width: int) -> ImageArray:
    """(height, width, 3) uint8 BGR: the picture at the top left, padded as a letterbox. Raises ModelError when it is missing."""
    import cv2

    file = resource_dir("models") / FILE
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise ModelError(f"{file}: cannot be read (hint: it comes with the agent; install it again)")
    ratio = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, int(image.shape[1] * ratio)), max(1, int(image.shape[0] * ratio)))
    canvas = np.full((height, width, 3), _PAD, np.uint8)
    canvas[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return canvas


def main(arguments: Sequence[str]) -> int:
    """The command of the module's docstring; returns its exit code."""
    import cv2

    from agent.simulation.scene import build_scene
    from agent.simulation.scripts import build_script
    from agent.simulation.sensor import CLEAN

    if len(arguments) != 1:
        sys.stderr.write("usage: python -m agent.catalogue.picture FILE\n")
        return 2
    script = build_script(_SCENARIO, seed=_SEED, people=_PEOPLE)
    shot = build_scene(script, seed=_SEED, sensor=CLEAN, night=False).shot(_TIME_S)
    if not cv2.imwrite(str(Path(arguments[0])), shot.image, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        sys.stderr.write(f"{arguments[0]}: cannot be written\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
