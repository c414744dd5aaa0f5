"""The estimator: letterbox, LiteRT, decoder, back to source pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from agent.errors import DataError, ModelError
from agent.ports import as_image
from agent.types import NUM_KEYPOINTS, ImageArray, People
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from recognizer_posenet_litert.decoder import STRIDE, Affine, Decoder, DecoderOptions, Skeletons
from recognizer_posenet_litert.letterbox import Fit, Letterbox
from recognizer_posenet_litert.options import PoseNetOptions

_HEATMAPS, _SHORT, _MID = NUM_KEYPOINTS, 2 * NUM_KEYPOINTS, 4 * (NUM_KEYPOINTS - 1)
"""Channels of the three outputs; what tells them apart, their order in the file is not fixed."""
_HINT = "a PoseNet .tflite without decoder, such as posenet_mobilenet_v1_075_481_641_quant.tflite of project-posenet"


class PoseNetEstimator:
    """Multi-person PoseNet on the CPU; a `PoseEstimator`.

    model: path of a uint8 .tflite with the outputs heatmaps, short-range offsets and mid-range displacements at
    stride 16; threads: of LiteRT, 0 = one per core; score_threshold: people below are dropped, 0-1, the score is the
    mean of the 17 key points' (those that a better person holds count 0); max_people: the best are kept.
    Raises ModelError.
    """

    max_batch = 1  # the graph's batch is fixed, so a batch is no faster than one picture after the other

    def __init__(
        self, model: Path, *, threads: int, score_threshold: float, max_people: int, options: PoseNetOptions
    ) -> None:
        self.name = f"posenet-{model.stem.removeprefix('posenet_').replace('_', '-')}"
        self._options = options
        interpreter = _load(model, threads or len(os.sched_getaffinity(0)))
        self._input, outputs = _contract(interpreter, model)
        self._outputs = [outputs[channels]["index"] for channels in (_HEATMAPS, _SHORT, _MID)]
        heatmaps, short, mid = (Affine(*outputs[channels]["quantization"]) for channels in (_HEATMAPS, _SHORT, _MID))
        decoding = DecoderOptions(
            candidate_threshold=options.candidate_threshold,
            keypoint_threshold=options.keypoint_threshold,
            nms_radius_px=options.nms_radius_px,
            refinement_steps=options.refinement_steps,
            oks_threshold=options.oks_threshold,
            min_keypoints=options.min_keypoints,
            score_threshold=score_threshold,
            max_people=max_people,
        )
        self._decoder = Decoder(decoding, heatmaps=heatmaps, short=short, mid=mid)
        _, height, width, _ = interpreter.get_input_details()[0]["shape"].tolist()
        self._letterbox = Letterbox(height, width)
        self._interpreter: Interpreter | None = interpreter

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        """One People per image, in source pixels; nobody is an empty People.

        images: (H, W, 3) uint8 BGR each, sizes may differ. Boxes are those of the key points that reach
        `keypoint_threshold`, wider by `box_margin` and cut at the picture's edge. Raises DataError, ModelError.
        """
        return [self._estimate(image) for image in images]

    def close(self) -> None:
        """Release the model; may be called twice."""
        self._interpreter = None

    def _estimate(self, image: ImageArray) -> People:
        if self._interpreter is None:
            raise ModelError(f"{self.name} is closed")
        try:
            fit = self._letterbox(as_image(image))
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from error
        try:
            self._interpreter.set_tensor(self._input, self._letterbox.buffer)
            self._interpreter.invoke()
            maps = [self._interpreter.get_tensor(index)[0] for index in self._outputs]
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{self.name} failed on a picture: {error}") from error
        return self._people(self._decoder.decode(*maps), fit)

    def _people(self, skeletons: Skeletons, fit: Fit) -> People:
        if not len(skeletons.scores):
            return People.empty()
        keypoints = fit.to_source(skeletons.keypoints)
        visible = skeletons.keypoint_scores >= self._options.keypoint_threshold
        boxes = _boxes(keypoints, visible, self._options.box_margin)
        last = np.array([fit.source_width, fit.source_height] * 2, np.float32) - 1
        return People(np.clip(boxes, 0, last), keypoints, skeletons.keypoint_scores, skeletons.scores)


def _boxes(keypoints: NDArray[np.float32], visible: NDArray[np.bool_], margin: float) -> NDArray[np.float32]:
    """(N, 4) xyxy around the visible key points (at least one each), `margin` of the longer side added all round."""
    seen = visible[..., None]
    low = np.where(seen, keypoints, np.inf).min(axis=1)
    high = np.where(seen, keypoints, -np.inf).max(axis=1)
    room = margin * (high - low).max(axis=1, keepdims=True)
    return np.concatenate([low - room, high + room], axis=1).astype(np.float32)


def _load(model: Path, threads: int) -> Interpreter:
    if not model.is_file():
        raise ModelError(f"no model file {model} (hint: {_HINT})")
    try:
        interpreter = Interpreter(str(model), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"LiteRT cannot load {model}: {error} (hint: the file may be cut off; use {_HINT})") from error
    return interpreter


def _contract(interpreter: Interpreter, model: Path) -> tuple[int, dict[int, dict[str, Any]]]:
    """Index of the input and the outputs by channel count, or a ModelError that says what the file has instead."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    by_channels = {int(output["shape"][-1]): output for output in outputs}
    tensors = [*inputs, *outputs]
    found = ", ".join(f"{tensor['name']} {tensor['shape'].tolist()} {tensor['dtype'].__name__}" for tensor in tensors)
    wrong = ModelError(
        f"{model} is no PoseNet with the outputs (1, R, C, {_HEATMAPS} | {_SHORT} | {_MID}) uint8 "
        f"at stride {STRIDE}: it has {found} (hint: use {_HINT})"
    )
    if len(inputs) != 1 or set(by_channels) != {_HEATMAPS, _SHORT, _MID}:
        raise wrong
    if any(tensor["dtype"] is not np.uint8 or len(tensor["shape"]) != 4 for tensor in tensors):
        raise wrong
    _, height, width, channels = inputs[0]["shape"].tolist()
    grid = [1, (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1]
    if channels != 3 or min(grid[1:]) < 2 or any(output["shape"].tolist()[:3] != grid for output in outputs):
        raise wrong
    return int(inputs[0]["index"]), by_channels
