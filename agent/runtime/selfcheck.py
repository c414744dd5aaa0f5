"""A loaded model asked again for what its bundle says it must answer, and the figures that its card promises."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from agent.drift.card import SIGNALS
from agent.errors import ModelError
from agent.runtime.bundle import Array, Bundle, Runnable, agreement_of, people_outputs, read_bundle, read_golden
from agent.runtime.manifest import Agreement, Manifest
from agent.runtime.people import Tolerance, compare_people

CARD_SIGNALS = frozenset(signal for signals in SIGNALS.values() for signal in signals)
"""What `figures.baseline` of a manifest may promise: means over the material that the model was measured on, 0-1."""


def card_baseline(bundle: Bundle) -> dict[str, float]:
    """`figures.baseline` of the manifest by signal; empty where it has none. Raises ModelError for anything but numbers 0-1."""
    figures = bundle.manifest.figures.get("baseline", {}) if bundle.manifest else {}
    if not isinstance(figures, Mapping):
        raise ModelError(f"{bundle.title}: figures.baseline should be an object, found {type(figures).__name__}")
    known = {name: value for name, value in figures.items() if name in CARD_SIGNALS}
    for name, value in known.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 < value <= 1:
            raise ModelError(
                f"{bundle.title}: figures.baseline.{name} should be a number above 0 and up to 1, found {value!r}"
            )
    return {name: float(value) for name, value in known.items()}


def golden_agreement(bundle: Bundle, session: Runnable) -> float | None:
    """Share of the golden samples (rows of the batch) that are answered as they must be; None without golden data, and when
    the model that was loaded no longer lies where it was loaded from.

    The tolerances are those of `check_golden`. Raises as `Runnable.run`.
    """
    manifest = bundle.manifest
    if manifest is None or manifest.golden is None or not _still_there(bundle, manifest):
        return None
    inputs, expected = read_golden(bundle, manifest)
    agreement = agreement_of(manifest.golden, session.device, reduced_precision=session.device != "cpu")
    found = dict(zip(session.output_names, session.run(inputs), strict=True))
    people = people_outputs(manifest, expected)
    rows = len(next(iter(expected.values())))
    return sum(_agrees(row, expected, found, people, agreement) for row in range(rows)) / rows


def _still_there(bundle: Bundle, manifest: Manifest) -> bool:
    """`models pull` makes the name of its folder stand for another model, whose answers this one need not give."""
    try:
        found = read_bundle(bundle.path).manifest
    except (ModelError, OSError):
        return False
    return found is not None and found.files == manifest.files


def _agrees(
    row: int, expected: Mapping[str, Array], found: Mapping[str, Array], people: tuple[str, ...], agreement: Agreement
) -> bool:
    one = slice(row, row + 1)
    if people:
        dets, keypoints = people
        tolerance = Tolerance(agreement.min_score, agreement.score, agreement.position_px)
        want, have = (expected[dets][one], expected[keypoints][one]), (found[dets][one], found[keypoints][one])
        if compare_people(want, have, tolerance):
            return False
    return all(
        found[name][one].shape == expected[name][one].shape
        and np.allclose(found[name][one], expected[name][one], rtol=agreement.rtol, atol=agreement.atol)
        for name in expected.keys() - set(people)
    )
