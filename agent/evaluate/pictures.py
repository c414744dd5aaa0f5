"""Pictures of reports, drawn from the report alone. Matplotlib comes with the extra `evaluate` and is imported here only.

Everything is drawn without a display, in PNG without metadata, so that equal reports give equal files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from agent.errors import ModelError

_DPI = 100
_TRUTH, _FOUND, _WRONG, _QUIET = "#1f77b4", "#2ca02c", "#d62728", "#999999"


def draw(kind: str, report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The pictures of one report in `folder` (made if need be): title -> file, in the order in which they are shown.

    kind: `pose`, `tracking`, `action` or `events`. Raises ModelError when Matplotlib is not installed.
    """
    figures = {"pose": _pose, "tracking": _tracking, "action": _action, "events": _events}[kind](report)
    drawn: dict[str, Path] = {}
    if figures:
        folder.mkdir(parents=True, exist_ok=True)
    for title, (name, size, paint) in figures.items():
        drawn[title] = folder / f"{name}.png"
        _save(drawn[title], size, paint)
    return drawn


Paint = Callable[[Any], None]
"""Draws onto a Matplotlib figure."""
Figures = dict[str, tuple[str, tuple[float, float], Paint]]
"""Title -> file name, size in inches, what paints it."""


def _save(path: Path, size: tuple[float, float], paint: Paint) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModelError("pictures need Matplotlib (hint: pip install 'recognizer-agent[evaluate]')") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    paint(figure)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


# --- pose and tracking ------------------------------------------------------------------------------------------------


def _pose(report: Mapping[str, Any]) -> Figures:
    def paint(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        recall = report["precision"]["recall"]
        for oks, precision in report["precision"].items():
            if oks != "recall":
                left.plot(recall, precision, label=f"OKS {oks}")
        _axes(left, "recall", "precision", "Precision and recall")
        left.legend(loc="lower left")
        steps = report["ap_by_oks"]
        right.plot([float(oks) for oks in steps], list(steps.values()), marker="o")
        right.set(xlabel="OKS that counts as found", ylabel="AP", title="How exact the key points are", ylim=(0, 1.02))
        right.grid(alpha=0.3)

    return {"Precision and recall, and AP by OKS": ("precision", (9, 3.6), paint)}


def _tracking(report: Mapping[str, Any]) -> Figures:
    curves = report.get("by_alpha")
    if not curves:
        return {}

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for name in ("HOTA", "DetA", "AssA"):
            axes.plot(curves["alpha"], curves[name], marker=".", label=name)
        _axes(axes, "IoU that counts as a match (alpha)", "", "HOTA, its detection and its association part")
        axes.legend(loc="lower left")

    return {"HOTA by localisation threshold": ("hota", (6, 3.6), paint)}


# --- action -----------------------------------------------------------------------------------------------------------


def _action(report: Mapping[str, Any]) -> Figures:
    figures: Figures = {
        "Confusion matrix, ROC and reliability": (
            "calls",
            (13, 4),
            lambda figure: _action_panels(figure, report),
        ),
    }
    sources = report.get("by_source", {})
    if len(sources) > 1:
        height = max(2.5, 0.28 * len(sources) + 1)
        figures["Calls by source"] = ("sources", (8, height), lambda figure: _sources(figure, sources))
    return figures


def _action_panels(figure: Any, report: Mapping[str, Any], unit: str = "clips") -> None:
    matrix, curve, calibration = figure.subplots(1, 3)
    _confusion(matrix, report["confusion_matrix"], report["service"])
    curve.plot([0, 1], [0, 1], color=_QUIET, linestyle=":")
    curve.plot(
        [point["false_alarm_rate"] for point in report["roc"]],
        [point["recall"] for point in report["roc"]],
        color=_TRUTH,
    )
    recall, false_alarms = report["recall"], report["false_alarm_rate"]
    curve.plot(false_alarms, recall, "o", color=_WRONG, label=f"threshold {report['threshold']:g}")
    area = "" if report["auc"] is None else f", area {report['auc']:.3f}"
    _axes(curve, "false alarm rate", "recall", f"ROC{area}")
    curve.legend(loc="lower right")
    bins = report["reliability"]
    calibration.plot([0, 1], [0, 1], color=_QUIET, linestyle=":")
    most = max(row["clips"] for row in bins)
    calibration.scatter(
        [row["mean_probability"] for row in bins],
        [row["positive"] for row in bins],
        s=[30 + 270 * row["clips"] / most for row in bins],
        color=_TRUTH,
        alpha=0.7,
    )
    _axes(
        calibration, "probability given", "share that was so", f"Reliability, ECE {report['ece']:.3f} (area = {unit})"
    )


def _confusion(axes: Any, counts: Mapping[str, int], service: str) -> None:
    cells = [
        [counts["true_negative"], counts["false_positive"]],
        [counts["false_negative"], counts["true_positive"]],
    ]
    axes.imshow(cells, cmap="Blues", vmin=0)
    most = max(max(row) for row in cells)
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            ink = "white" if value > most / 2 else "black"
            axes.text(column, row, str(value), ha="center", va="center", fontsize=16, color=ink)
    names = ["other", service]
    axes.set(xticks=[0, 1], yticks=[0, 1], xticklabels=names, yticklabels=names)
    axes.set(xlabel="called", ylabel="was", title="Calls")


def _sources(figure: Any, sources: Mapping[str, Mapping[str, float]]) -> None:
    axes = figure.subplots()
    names = list(sources)[::-1]
    right = [sources[name]["clips"] - sources[name]["missed"] - sources[name]["false_alarms"] for name in names]
    missed = [sources[name]["missed"] for name in names]
    false_alarms = [sources[name]["false_alarms"] for name in names]
    axes.barh(names, right, color=_FOUND, label="right")
    axes.barh(names, missed, left=right, color="#ff7f0e", label="missed")
    both = [a + b for a, b in zip(right, missed, strict=True)]
    axes.barh(names, false_alarms, left=both, color=_WRONG, label="false alarm")
    axes.set(xlabel="clips", title="Calls by source")
    axes.legend(loc="lower right")


# --- events -----------------------------------------------------------------------------------------------------------


def _events(report: Mapping[str, Any]) -> Figures:
    rows = [(scenario, service) for scenario in report["scenarios"] for service in scenario["services"]]
    height = max(2.5, 0.32 * len(rows) + 1.2)
    figures: Figures = {"Time lines": ("timelines", (12, height), lambda figure: _timelines(figure, rows))}
    delays = {
        name: [hit["delay_s"] for scenario in report["scenarios"] for hit in scenario["services"][name]["hits"]]
        for name in report["services"]
    }
    for name, told in report["services"].items():
        if windows := told.get("windows"):
            paint = partial(_action_panels, report={**windows, "service": name}, unit="windows")
            figures[f"Single verdicts: {name}"] = (f"verdicts-{name}", (13, 4), paint)
    if any(delays.values()):
        figures["Delay from onset to event"] = ("delays", (6, 3.4), lambda figure: _delays(figure, delays))
    return figures


def _timelines(figure: Any, rows: list[tuple[Mapping[str, Any], str]]) -> None:
    axes = figure.subplots()
    labels = []
    for y, (scenario, service) in enumerate(reversed(rows)):
        told = scenario["services"][service]
        labels.append(f"{scenario['scenario']}, seed {scenario['seed']}: {service}")
        for hit in told["hits"]:
            _bar(axes, y, hit["incident"], _TRUTH)
            axes.plot(hit["detected_s"], y, "|", color=_FOUND, markersize=16, markeredgewidth=2.5)
        for incident in told["missed"]:
            _bar(axes, y, incident, "#ff7f0e")
        for name, colour in (("duplicates", _QUIET), ("false_alarms", _WRONG)):
            times = [alarm["detected_s"] for alarm in told[name]]
            axes.plot(times, [y] * len(times), "x", color=colour, markersize=8, markeredgewidth=2)
    axes.set_yticks(range(len(labels)), labels=labels)
    longest = max(scenario["seconds"] for scenario, _ in rows)
    axes.set(xlabel="seconds of the scene", xlim=(0, longest), ylim=(-0.7, len(labels) - 0.3))
    axes.set_title("blue: incident found, orange: missed, green: event, grey x: a second event, red x: false alarm")
    axes.grid(axis="x", alpha=0.3)


def _bar(axes: Any, y: float, incident: Mapping[str, float], colour: str) -> None:
    axes.barh(y, incident["end_s"] - incident["start_s"], left=incident["start_s"], height=0.5, color=colour)


def _delays(figure: Any, delays: Mapping[str, list[float]]) -> None:
    axes = figure.subplots()
    shown = {name: values for name, values in delays.items() if values}
    axes.hist(list(shown.values()), bins=12, label=list(shown))
    axes.set(xlabel="seconds from onset to `detected`", ylabel="incidents", title="Delay")
    axes.legend()


def _axes(axes: Any, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y, title=title, xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
