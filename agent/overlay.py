"""Draws people, identities and actions onto pictures: snapshots, evidence, the live page. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.types import SKELETON, ImageArray, People, Tracks, TrackState

MIN_JOINT_SCORE = 0.3
"""Joints below it are not drawn."""

Colour = tuple[int, int, int]
"""BGR."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE: Colour = (255, 255, 255)
_BLACK: Colour = (0, 0, 0)
_CALM: Colour = (70, 140, 30)
_ALERT: Colour = (40, 40, 200)
_LEFT_OUT: Colour = (150, 150, 150)
_GOLDEN_ANGLE = 137.508


class Mode(StrEnum):
    """What is shown."""

    FULL = "full"  # picture, boxes, skeletons, ids, actions
    SKELETON = "skeleton"  # the same on black: nobody can be recognised
    MINIMAL = "minimal"  # picture, skeletons
    DEBUG = "debug"  # as full, with what the models and the tracker said: scores, states, whom they left out
    RAW = "raw"  # the picture as it is


@dataclass(frozen=True, slots=True)
class ActionBar:
    """An action's probability (0-1) to show; it turns red at `threshold`."""

    label: str
    probability: float
    threshold: float = 1.0


def draw(
    image: ImageArray,
    tracks: Tracks,
    *,
    mode: Mode = Mode.FULL,
    actions: Sequence[ActionBar] = (),
    caption: str = "",
    found: People | None = None,
) -> ImageArray:
    """A new picture with `tracks` drawn on it.

    image: (H, W, 3) uint8 BGR, left unchanged; it may be a scaled copy of the tracks' source frame: coordinates are
    scaled by the ratio of the sizes. caption: one line at the bottom, ASCII. found: everyone in the frame, shown to debug.
    """
    canvas = np.zeros_like(image) if mode is Mode.SKELETON else image.copy()
    if mode is Mode.RAW:
        return canvas
    height, width = canvas.shape[:2]
    scale = np.array([width / tracks.stamp.width, height / tracks.stamp.height])
    pen = _Pen(width, height)
    people = tracks.people
    if mode is Mode.DEBUG and found is not None:
        for box, score in zip(found.boxes.astype(np.float64) * np.tile(scale, 2), found.scores.tolist(), strict=True):
            _draw_box(canvas, box, f"{score:.2f}", _LEFT_OUT, pen)  # who is followed gets another one on top
    for index, track_id in enumerate(tracks.track_ids.tolist()):
        colour, text = track_colour(track_id), f"#{track_id}"
        joints = people.keypoints[index].astype(np.float64) * scale
        if mode is Mode.DEBUG:
            text += f" {people.scores[index]:.2f} {TrackState(int(tracks.states[index])).name.lower()}"
            _draw_joint_scores(canvas, joints, people.keypoint_scores[index], pen)
        _draw_skeleton(canvas, joints, people.keypoint_scores[index], colour, pen)
        if mode is not Mode.MINIMAL:
            _draw_box(canvas, people.boxes[index].astype(np.float64) * np.tile(scale, 2), text, colour, pen)
    if mode is not Mode.MINIMAL:
        for row, bar in enumerate(actions):
            _draw_bar(canvas, bar, row, pen)
    if caption:
        _label(canvas, caption, (pen.unit, height - pen.unit), _BLACK, pen)
    return canvas


@lru_cache(maxsize=1024)
def track_colour(track_id: int) -> Colour:
    """A bright colour that stays with the id; neighbouring ids differ clearly (golden angle on the hue circle)."""
    hue = round(track_id * _GOLDEN_ANGLE / 2) % 180
    pixel = np.array([[[hue, 190, 255]]], np.uint8)
    blue, green, red = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return int(blue), int(green), int(red)


@dataclass(frozen=True, slots=True)
class _Pen:
    """Sizes that keep lines and text legible from 320 px to 4K."""

    width: int
    height: int

    @property
    def line(self) -> int:
        return max(1, round(min(self.width, self.height) / 240))

    @property
    def unit(self) -> int:
        """Gap and padding."""
        return max(4, min(self.width, self.height) // 80)

    @property
    def font_scale(self) -> float:
        return max(0.45, min(self.width, self.height) / 800)

    @property
    def font_weight(self) -> int:
        return max(1, round(self.font_scale * 1.5))


def _drawable(canvas: ImageArray, joints: NDArray[np.float64]) -> NDArray[np.bool_]:
    limit = 4 * max(canvas.shape)  # far outside is a defect of the estimator and would overflow the drawing
    drawable: NDArray[np.bool_] = np.isfinite(joints).all(axis=1) & (np.abs(joints) < limit).all(axis=1)
    return drawable


def _draw_joint_scores(canvas: ImageArray, joints: NDArray[np.float64], scores: NDArray[np.float32], pen: _Pen) -> None:
    """A ring around each joint that was given a score, from red (0) to green (1), also where it is not drawn otherwise."""
    for joint in np.flatnonzero(_drawable(canvas, joints) & (scores > 0)).tolist():
        share = min(float(scores[joint]), 1.0)
        centre = (round(joints[joint, 0]), round(joints[joint, 1]))
        cv2.circle(
            canvas, centre, 3 * pen.line, (0, round(255 * share), round(255 * (1 - share))), pen.line, cv2.LINE_AA
        )


def _draw_skeleton(
    canvas: ImageArray, joints: NDArray[np.float64], scores: NDArray[np.float32], colour: Colour, pen: _Pen
) -> None:
    visible = (scores >= MIN_JOINT_SCORE) & _drawable(canvas, joints)
    points = np.where(visible[:, None], joints, 0.0).round().astype(int).tolist()
    for first, second in SKELETON:
        if visible[first] and visible[second]:
            cv2.line(canvas, points[first], points[second], colour, pen.line, cv2.LINE_AA)
    for joint in np.flatnonzero(visible).tolist():
        cv2.circle(canvas, points[joint], pen.line, _WHITE, cv2.FILLED, cv2.LINE_AA)


def _draw_box(canvas: ImageArray, box: NDArray[np.float64], text: str, colour: Colour, pen: _Pen) -> None:
    if not np.isfinite(box).all():
        return
    height, width = canvas.shape[:2]
    limits = np.array([width - 1, height - 1, width - 1, height - 1])
    left, top, right, bottom = np.clip(box, 0, limits).round().astype(int).tolist()
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, max(1, pen.line // 2), cv2.LINE_AA)
    _label(canvas, text, (left, top), colour, pen)


def _draw_bar(canvas: ImageArray, bar: ActionBar, row: int, pen: _Pen) -> None:
    """`label 0.87` on a bar whose filled part is the probability, from the upper left corner downwards."""
    probability = min(max(bar.probability, 0.0), 1.0) if np.isfinite(bar.probability) else 0.0
    text = f"{bar.label} {probability:.2f}"
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, pen.font_scale, pen.font_weight)
    height = text_height + pen.unit * 2
    width = min(max(pen.width // 4, text_width + pen.unit * 2), pen.width - pen.unit * 2)
    left, top = pen.unit, pen.unit + row * (height + pen.unit // 2)
    area = canvas[top : top + height, left : left + width]
    if area.shape[0] < height:
        return  # more actions than the picture is high
    area[:] = (area * 0.25).astype(np.uint8)
    area[:, : round(width * probability)] = _ALERT if bar.probability >= bar.threshold else _CALM
    _text(canvas, text, (left + pen.unit, top + text_height + pen.unit), _WHITE, pen)


def _label(canvas: ImageArray, text: str, corner: tuple[int, int], colour: Colour, pen: _Pen) -> None:
    """Text on a filled plate whose lower left corner is at `corner`, pushed into the picture."""
    (width, height), baseline = cv2.getTextSize(text, _FONT, pen.font_scale, pen.font_weight)
    plate_height = height + baseline + pen.unit // 2
    left = max(0, min(corner[0], canvas.shape[1] - width - pen.unit))
    bottom = max(plate_height, min(corner[1], canvas.shape[0] - 1))
    cv2.rectangle(canvas, (left, bottom - plate_height), (left + width + pen.unit, bottom), colour, cv2.FILLED)
    ink = _BLACK if max(colour) > 128 else _WHITE
    _text(canvas, text, (left + pen.unit // 2, bottom - baseline), ink, pen)


def _text(canvas: ImageArray, text: str, origin: tuple[int, int], colour: Colour, pen: _Pen) -> None:
    cv2.putText(canvas, text, origin, _FONT, pen.font_scale, colour, pen.font_weight, cv2.LINE_AA)
