"""Golden answers of pose bundles: which differences are forgiven where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.bundles import make_bundle

from agent.errors import ModelError
from agent.runtime.bundle import check_golden, load_bundle, seal_bundle
from agent.runtime.session import InferenceSession, create_session


@dataclass
class Drifting:
    """A session of another provider, which is off by so much."""

    real: InferenceSession
    device: str
    shift_px: float = 0.0
    score: float = 0.0

    @property
    def output_names(self) -> Sequence[str]:
        return self.real.output_names

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        dets, keypoints = (array.copy() for array in self.real.run(feeds))
        dets[..., :4] += self.shift_px
        keypoints[..., :2] += self.shift_px
        dets[..., 4] -= self.score
        return [dets, keypoints]


def reseal(folder: Path, golden: dict[str, Any]) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    fields.pop("files")
    seal_bundle(folder, fields | {"golden": golden})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def verdict(folder: Path, device: str, **drift: float) -> str:
    bundle = load_bundle(folder)
    session = create_session(bundle.model, device="cpu")
    try:
        check_golden(bundle, Drifting(session, device, **drift), reduced_precision=device != "cpu")
    except ModelError as error:
        return str(error)
    finally:
        session.close()
    return ""


def test_the_picture_is_kept_as_bytes_and_given_as_floats(folder: Path) -> None:
    with np.load(folder / "golden.npz") as data:
        assert data["input.input"].dtype == np.uint8
    assert verdict(folder, "cpu") == ""


@pytest.mark.parametrize(
    ("device", "shift_px", "score", "good"),
    [
        ("cpu", 0.4, 0.005, True),
        ("cpu", 0.8, 0.0, False),
        ("cpu", 0.0, 0.02, False),
        ("cuda:0", 3.0, 0.04, True),
        ("tensorrt:0", 3.0, 0.04, True),
        ("tensorrt:0", 5.0, 0.0, False),
        ("cuda:0", 0.0, 0.06, False),
    ],
)
def test_reduced_precision_is_forgiven_off_the_cpu(
    folder: Path, device: str, shift_px: float, score: float, good: bool
) -> None:
    assert (verdict(folder, device, shift_px=shift_px, score=score) == "") == good


def test_a_provider_may_have_figures_of_its_own(folder: Path) -> None:
    reseal(folder, {"providers": {"tensorrt": {"position_px": 10}, "cuda": {"position_px": 0.1}}})
    assert verdict(folder, "tensorrt:1", shift_px=9) == ""
    assert "the nearest box is 1.0 px off" in verdict(folder, "cuda:0", shift_px=1)
    assert verdict(folder, "cpu", shift_px=0.4) == ""


def test_an_engine_that_lost_everybody_is_refused(folder: Path) -> None:
    assert "tiny 1.0.0: golden picture 0: the person of score 1.00 at [0, 0, 85, 10] is not found" in verdict(
        folder, "tensorrt:0", score=1.0
    )


def test_an_output_that_is_gone_is_named(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "golden.npz") as data:
        arrays = dict(data)
    np.savez(folder / "golden.npz", **arrays, **{"output.masks": np.zeros((1, 2))})
    reseal(folder, {})
    assert "golden output 'masks' should have shape (1, 2), found no such output" in verdict(folder, "cpu")
