"""Writes the README.md of a folder of reports: each with its main figures and whether it passed its bars.

python docs/reports/index.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agent.evaluate.pages import table

INTRO = """# Reports

What the parts reach, measured by commands of this repository. `make reports` makes all of it again (`docs/reports/make.sh`
says what each one needs and skips what is not there); [docs/evaluation.md](../evaluation.md) explains the figures,
[configs/release-gate.yaml](../../configs/release-gate.yaml) holds the bars. Times in the reports are of busy development
machines; [speed](speed.md) is what the shipped models take by themselves.
"""


def figures(report: dict[str, Any]) -> str:
    """The main figures of one report in one line."""
    if "services" in report:
        return "; ".join(f"{name}: {_events(told)}" for name, told in report["services"].items())
    names = ("AP", "AP50", "HOTA", "MOTA", "IDF1", "accuracy", "f1", "auc", "ece")
    return ", ".join(f"{name} {report[name]:.3f}" for name in names if report.get(name) is not None)


def _events(told: dict[str, Any]) -> str:
    delay = told["delay_s"]["median"]
    late = "" if delay is None else f", delay {delay:.1f} s"
    return f"F1 {told['f1']:.2f} ({told['found']} of {told['incidents']}){late}, {told['false_alarms_per_hour']:.1f} false alarms/h"


def gate(report: dict[str, Any]) -> str:
    """The verdict of the bars."""
    if "gate" not in report:
        return "no bars"
    return "passed" if report["gate"]["passed"] else "**missed**: " + "; ".join(report["gate"]["missed"])


def index(folder: Path) -> str:
    """The README of the reports in `folder`."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        note = report.get("about", {}).get("note", "")
        rows.append((f"[{path.stem}]({path.stem}.md)", note, figures(report), gate(report)))
    return INTRO + "\n" + table(("report", "measured on", "figures", "bars"), rows) + "\n"


def main() -> None:
    """Write README.md of the folder named, by default that of this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    (folder / "README.md").write_text(index(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
