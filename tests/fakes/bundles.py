"""Sealed bundles of RTMO's contract, made at test time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fakes.graphs import rtmo_graph

from agent.catalogue.picture import people_picture
from agent.runtime.bundle import seal_bundle, write_golden
from agent.runtime.session import create_session

SIZE = (64, 96)
FIELDS: dict[str, Any] = {
    "name": "tiny", "version": "1.0.0", "task": "pose", "licence": "Apache-2.0", "training_data": "none: computed",
    "figures": {"coco": {"ap": 0.25, "ap50": 0.5}, "ms": 3.0},
    "inputs": [{"name": "input", "shape": ["batch", 3, *SIZE], "preprocessing": {"kind": "letterbox"}}],
    "outputs": [{"name": "dets", "shape": ["batch", "people", 5], "meaning": "detections"},
                {"name": "keypoints", "shape": ["batch", "people", 17, 3], "meaning": "keypoints"}],
}  # fmt: skip


def make_bundle(folder: Path, *, golden: bool = True, **changes: Any) -> Path:
    """A sealed pose bundle; changes: of the manifest."""
    folder.mkdir(parents=True)
    model = rtmo_graph(folder / "model.onnx", size=SIZE)
    if golden:
        picture = people_picture(*SIZE).transpose(2, 0, 1)[None].copy()
        session = create_session(model, device="cpu")
        outputs = session.run({"input": picture.astype(np.float32)})
        write_golden(folder / "golden.npz", {"input": picture}, dict(zip(session.output_names, outputs, strict=True)))
    seal_bundle(folder, FIELDS | changes)
    return folder
