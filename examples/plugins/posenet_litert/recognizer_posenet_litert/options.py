"""The keys that `pose.options` takes for this plug-in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from agent.errors import ConfigProblem
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Fraction = Annotated[float, Field(ge=0, le=1)]


class PoseNetOptions(BaseModel):
    """Parameters of decoding and of the boxes. Lengths are in pixels of the network's input."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    candidate_threshold: _Fraction = 0.3
    """Least heatmap score of a peak that may seed a person."""
    keypoint_threshold: _Fraction = 0.3
    """Least score of a key point that counts for boxes, for `min_keypoints` and against doubles."""
    nms_radius_px: Annotated[float, Field(gt=0)] = 20.0
    """A seed this near to the same key point of a better person is dropped."""
    refinement_steps: Annotated[int, Field(ge=0, le=20)] = 5
    """Short-range corrections after each displacement along the skeleton."""
    oks_threshold: _Fraction = 0.5
    """Of two people more alike than this (object key-point similarity) the weaker is dropped."""
    min_keypoints: Annotated[int, Field(ge=1, le=17)] = 3
    """People with fewer key points at `keypoint_threshold` are dropped: one or two peaks make no person."""
    box_margin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Room around the key points on each side of a box, as a fraction of the longer side of their extent."""


def parse_options(raw: Mapping[str, object]) -> tuple[PoseNetOptions | None, list[ConfigProblem]]:
    """The options, or None and every problem found, each with its dotted key and a hint."""
    try:
        return PoseNetOptions.model_validate(dict(raw)), []
    except ValidationError as error:
        return None, [_problem(str(detail["loc"][0]), detail["type"], detail["msg"]) for detail in error.errors()]


def _problem(key: str, kind: str, message: str) -> ConfigProblem:
    path = f"pose.options.{key}"
    if kind == "extra_forbidden":
        known = ", ".join(sorted(PoseNetOptions.model_fields))
        return ConfigProblem(f"posenet knows no option {key!r}", path=path, hint=f"known are {known}")
    default = PoseNetOptions.model_fields[key].default
    return ConfigProblem(message, path=path, hint=f"the default is {default}")
