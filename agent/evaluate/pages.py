"""Reports as Markdown: the same figures for people. Pure: a report and the names of its pictures in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.evaluate.gate import Outcome

_SHOWN = 20
"""Rows of a table of single images; the JSON has all of them."""
_SWITCHES_SHOWN = 8
"""Of one person; the JSON has all of them."""


def page(
    kind: str, report: Mapping[str, Any], pictures: Mapping[str, str], gate: Sequence[Outcome] | None = None
) -> str:
    """Markdown of one report.

    kind: `pose`, `tracking`, `action` or `events`; pictures: title -> path relative to the page; gate: outcome of the bars,
    None without a gate.
    """
    title, sections = {"pose": _pose, "tracking": _tracking, "action": _action, "events": _events}[kind](report)
    parts = [f"# {title}", _about(report)]
    if gate is not None:
        parts.append(_gate(gate))
    parts += [*sections, _baseline(report)]
    parts += [f"![{caption}]({path})" for caption, path in pictures.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers are rounded, None is a dash, `|` in a text is escaped."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def cell(value: object) -> str:
    """One value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value).replace("|", "\\|")


def _about(report: Mapping[str, Any]) -> str:
    about = report.get("about", {})
    models = ", ".join(f"{slot} `{name}`" for slot, name in about.get("models", {}).items())
    facts = [
        f"recognizer-agent {about['version']}" if "version" in about else "",
        f"models: {models}" if models else "",
        str(about.get("note", "")),
    ]
    return "; ".join(fact for fact in facts if fact)


def _gate(outcomes: Sequence[Outcome]) -> str:
    verdict = "passed" if all(one.passed for one in outcomes) else "**missed**"
    rows = [(one.figure, one.value, str(one.bar), "yes" if one.passed else "**no**") for one in outcomes]
    return f"## Release gate: {verdict}\n\n{table(('figure', 'value', 'bar', 'met'), rows)}"


def _baseline(report: Mapping[str, Any]) -> str:
    """The means that a device is held against once they stand in a manifest."""
    rows = [
        (slot, signal, mean) for slot, means in report.get("baseline", {}).items() for signal, mean in means.items()
    ]
    return "## Baseline of the drift watch\n\n" + table(("slot", "signal", "mean"), rows) if rows else ""


# --- kinds ------------------------------------------------------------------------------------------------------------


def _pose(report: Mapping[str, Any]) -> tuple[str, list[str]]:
    names = ("AP", "AP50", "AP75", "AR", "AP_medium", "AP_large")
    intro = (
        f"{report['people']} people in {report['images']} images, {report['found']} found at any score. "
        f"One image takes {report['ms_per_image']:.1f} ms (median, on the machine of this run)."
    )
    missed = [row for row in report["missed"] if row["missed"]]
    rows = [(row["file"], row["people"], row["missed"]) for row in missed[:_SHOWN]]
    sections = [intro, table(names, [[report[name] for name in names]])]
    if rows:
        sections.append(
            "## Images with the most people missed at OKS 0.5\n\n" + table(("image", "people", "missed"), rows)
        )
    return "Pose estimation", sections


def _tracking(report: Mapping[str, Any]) -> tuple[str, list[str]]:
    names = ("HOTA", "MOTA", "IDF1", "id_switches", "id_consistency")
    intro = (
        f"{report['truth_ids']} people, {report['truth_boxes']} boxes, {report['frames']} frames; "
        f"{report['track_ids']} tracks, {report['track_boxes']} boxes. "
        f"{report['ms_per_frame']:.2f} ms a frame (median, on the machine of this run)."
    )
    sections = [intro, table(names, [[report[name] for name in names]])]
    if sequences := report.get("sequences"):
        rows = [(name, *(figures[key] for key in names)) for name, figures in sequences.items()]
        sections.append("## By sequence\n\n" + table(("sequence", *names), rows))
    if worst := report.get("worst"):
        header = ("sequence", "person", "boxes", "missed", "longest miss", "switches", "frame: track before > after")
        title = "## People followed worst, by switches and then by boxes without a track"
        sections.append(f"{title}\n\n{table(header, map(_lapses, worst))}")
    return "Tracking", sections


def _lapses(person: Mapping[str, Any]) -> tuple[object, ...]:
    """A row about somebody whom the tracker lost or took for another."""
    miss, switches = person["longest_miss"], person["switches"]
    shown = ", ".join(f"{frame}: {before} > {after}" for frame, before, after in switches[:_SWITCHES_SHOWN])
    return (
        person["sequence"], person["person"], person["boxes"], person["missed"],
        f"{miss[0]}-{miss[1]}" if miss else None, len(switches),
        shown + (", ..." if len(switches) > _SWITCHES_SHOWN else ""),
    )  # fmt: skip


def _action(report: Mapping[str, Any]) -> tuple[str, list[str]]:
    clips, service = report["clips"], report["service"]
    low, high = report["accuracy_95"]
    positive = report["confusion_matrix"]["true_positive"] + report["confusion_matrix"]["false_negative"]
    intro = (
        f"{len(clips)} clips, {positive} of them {service}; called at {report['threshold']:g}. "
        f"With 95 % confidence the accuracy lies between {low:.2f} and {high:.2f}."
    )
    names = ("accuracy", "precision", "recall", "f1", "false_alarm_rate", "auc", "ece")
    sections = [intro, table(names, [[report[name] for name in names]])]
    if sources := report.get("by_source"):
        keys = ("clips", "positive", "missed", "false_alarms", "accuracy")
        rows = [(name, *(figures[key] for key in keys)) for name, figures in sources.items()]
        sections.append("## By source\n\n" + table(("source", *keys), rows))
    bins = [
        (f"{row['from']:.1f}-{row['to']:.1f}", row["clips"], row["mean_probability"], row["positive"])
        for row in report["reliability"]
    ]
    header = ("probability", "clips", "mean probability", "share positive")
    chance = (
        f"Over {len(clips)} clips a model whose every probability is right would show an ECE of about "
        f"{report['ece_by_chance']:.3f}."
    )
    sections.append(f"## Reliability\n\n{chance}\n\n" + table(header, bins))
    sections.append("## Clips, the most wrong first\n\n" + _clips(clips, service, report["threshold"]))
    return f"Action: {service}", sections


def _clips(clips: Sequence[Mapping[str, Any]], service: str, threshold: float) -> str:
    def error(clip: Mapping[str, Any]) -> float:
        return abs(float(clip["label"] == service) - float(clip["probability"]))

    ordered = sorted(clips, key=lambda clip: (-error(clip), clip["file"]))
    rows = [
        (
            clip["file"],
            clip["label"],
            clip["probability"],
            "right" if (clip["probability"] >= threshold) == (clip["label"] == service) else "**wrong**",
        )
        for clip in ordered
    ]
    return table(("clip", "label", "probability", "call"), rows)


def _events(report: Mapping[str, Any]) -> tuple[str, list[str]]:
    intro = (
        f"{report['hours']:.2f} hours of simulated scenes, poses from {report['poses']}. An event counts for an incident "
        f"from {report['before_s']:g} s before it to {report['after_s']:g} s after it; one event an incident."
    )
    header = (
        "service", "incidents", "found", "missed", "duplicates", "false alarms", "precision", "recall", "F1",
        "delay median s", "p95 s", "false alarms/h",
    )  # fmt: skip
    rows = [
        (name, *(told[key] for key in ("incidents", "found", "missed", "duplicates", "false_alarms")),
         told["precision"], told["recall"], told["f1"], told["delay_s"]["median"], told["delay_s"]["p95"],
         told["false_alarms_per_hour"])
        for name, told in report["services"].items()
    ]  # fmt: skip
    by_scenario = [
        (scenario["scenario"], scenario["seed"], scenario["people"], scenario["seconds"], name, len(told["hits"]),
         len(told["missed"]), len(told["duplicates"]), len(told["false_alarms"]))
        for scenario in report["scenarios"]
        for name, told in scenario["services"].items()
    ]  # fmt: skip
    columns = ("scenario", "seed", "people", "seconds", "service", "found", "missed", "duplicates", "false alarms")
    return "Events, end to end", [
        intro, table(header, rows), _windows(report), "## By scenario\n\n" + table(columns, by_scenario), _causes(report),
    ]  # fmt: skip


def _windows(report: Mapping[str, Any]) -> str:
    """Single verdicts, and the tracks they were made on."""
    names = ("count", "precision", "recall", "f1", "false_alarm_rate", "auc", "ece")
    rows = [
        (service, *(told["windows"][name] for name in names))
        for service, told in report["services"].items()
        if "windows" in told
    ]
    parts = []
    if rows:
        intro = (
            "Windows that an incident fills by a third, or that hold it nearly whole, and windows that it does not come "
            "near; called at 0.5:"
        )
        parts.append(f"## Single verdicts\n\n{intro}\n\n{table(('service', *names), rows)}")
    if tracking := report.get("tracking"):
        parts.append("## Tracks\n\n" + table(list(tracking), [list(tracking.values())]))
    return "\n\n".join(parts)


def _causes(report: Mapping[str, Any]) -> str:
    """What people did while something was called that was not there."""
    rows = [
        (name, alarm["meanwhile"] or "nothing special", scenario["scenario"], scenario["seed"], alarm["detected_s"])
        for scenario in report["scenarios"]
        for name, told in scenario["services"].items()
        for alarm in told["false_alarms"]
    ]
    if not rows:
        return ""
    return "## False alarms\n\n" + table(("service", "meanwhile", "scenario", "seed", "at s"), rows)
