"""The means of an evaluation report -> `figures.baseline` of a bundle's manifest: what the drift watch holds a device against.

    recognizer-agent evaluate action --service fall --data clips.csv --label-column kind --config configs/posenet.yaml --report fall.json
    python models/training/seal_baseline.py models/fall-stgcn fall.json --material "14 real clips of one room, PoseNet 481x641"

The report must be about this very model, name and version. Nothing else in the manifest changes. A new export has no baseline:
measure and seal again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from agent.drift.card import SIGNALS
from agent.errors import DataError, ModelError, RecognizerError
from agent.runtime.bundle import load_bundle, seal_bundle
from agent.runtime.manifest import Manifest
from agent.runtime.selfcheck import card_baseline

DIGITS = 4


class About(BaseModel):
    """models: by slot, `pose` or `action/<service>`."""

    models: dict[str, str] = {}


class Report(BaseModel):
    """What matters here of an evaluation's report. baseline: means by slot and signal."""

    about: About = About()
    baseline: dict[str, dict[str, float]] = {}


def seal_baseline(folder: Path, report: Path, material: str, service: str = "") -> Manifest:
    """Write the means of `report` into the manifest of the bundle `folder`, seal it, return the manifest.

    material: one line on what was measured. service: which one of the report the bundle serves, where there are several.
    Raises ModelError, TrustError (the bundle is not what was sealed), DataError (the report does not fit); nothing is written then.
    """
    bundle = load_bundle(folder)
    if bundle.manifest is None:
        raise ModelError(f"{folder}: a bare model file has no manifest (hint: give a bundle folder)")
    try:
        baseline = baseline_of(read_report(report), bundle.manifest, service)
    except DataError as error:
        raise DataError(f"{report}: {error}") from error
    figures = bundle.manifest.figures | {"baseline": baseline, "baseline_material": material}
    manifest = bundle.manifest.model_copy(update={"figures": figures})
    card_baseline(replace(bundle, manifest=manifest))  # refuses what the agent would refuse
    return seal_bundle(folder, manifest.model_dump(mode="json", exclude={"files"}))


def read_report(file: Path) -> Report:
    """Raises DataError for what no evaluation wrote."""
    hint = "the JSON that `recognizer-agent evaluate ... --report` wrote is wanted"
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror} (hint: {hint})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{where or 'report'}: {problem['msg']} (hint: {hint})") from error


def baseline_of(report: Report, manifest: Manifest, service: str = "") -> dict[str, float]:
    """The rounded means by signal of the model with this manifest. Raises DataError when the report lacks one."""
    slot = slot_of(report, manifest, service)
    means = report.baseline.get(slot, {})
    missing = [signal for signal in SIGNALS[manifest.task] if signal not in means]
    if missing:
        hint = "nobody was found, no window classified, people were left out by --score-threshold, or the report is an old one"
        raise DataError(f"no {', '.join(missing)} in baseline.{slot} (hint: {hint})")
    return {signal: round(means[signal], DIGITS) for signal in SIGNALS[manifest.task]}


def slot_of(report: Report, manifest: Manifest, service: str = "") -> str:
    """Where in the report the model is. Raises DataError when it is nowhere, or in several places."""
    title, wanted = f"{manifest.name} {manifest.version}", f"{manifest.task}/{service}" if service else manifest.task
    slots = [
        slot for slot, name in report.about.models.items() if name == title and wanted in {slot, slot.partition("/")[0]}
    ]
    if not slots:
        measured = ", ".join(f"{slot} {name}" for slot, name in report.about.models.items()) or "no model"
        hint = (
            "evaluate with a configuration that names this bundle; --predictions and --poses truth stand in for a model"
        )
        raise DataError(f"it measured {measured}, not {title} as {wanted} (hint: {hint})")
    if len(slots) > 1:
        raise DataError(f"{title} is {', '.join(slots)} in it (hint: --service says which)")
    return slots[0]


def one_line(text: str) -> str:
    """Of an argument."""
    if not text.strip() or len(text.splitlines()) > 1:
        raise argparse.ArgumentTypeError("should be one line that says something")
    return text.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit codes as the agent's: 0 good, 1 refused, 2 usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("report", type=Path, metavar="REPORT.json")
    parser.add_argument("--service", default="", metavar="NAME", help="which one, where the model serves several")
    parser.add_argument("--material", type=one_line, required=True, metavar="TEXT", help="one line: what was measured")
    args = parser.parse_args(arguments)
    try:
        figures = seal_baseline(args.bundle, args.report, args.material, args.service).figures
        bundle = load_bundle(args.bundle)
    except (RecognizerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{bundle.title}: {figures['baseline']}, {figures['baseline_material']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
