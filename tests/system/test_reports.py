"""`make reports`: what is there is measured, what is not is skipped by name, and the committed index fits its reports."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.evaluate.gate import read_bars
from agent.evaluate.scenarios import read_plan


def make(repo: Path, out: Path, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [repo / "docs/reports/make.sh", *names],
        env={**os.environ, "PATH": path, "REPORTS": str(out), **variables},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_what_is_not_there_is_skipped_by_name(repo_dir: Path, tmp_path: Path) -> None:
    done = make(repo_dir, tmp_path, "pose-coco-*", "tracking-*", "action-fight-dev*", DATA="/none")
    assert done.returncode == 0, done.stderr
    assert "skipped  tracking-mot15: no /none/mot/mot15" in done.stdout
    assert "skipped  pose-coco-posenet-353x481: no /none/pose" in done.stdout
    assert "measure" not in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.slow
@pytest.mark.shared
def test_a_report_is_made_and_listed(repo_dir: Path, shared_dir: Path, tmp_path: Path) -> None:
    done = make(repo_dir, tmp_path, "tracking-mot15", DATA=str(shared_dir / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "tracking-mot15.json").is_file()
    assert "[tracking-mot15](tracking-mot15.md)" in (tmp_path / "README.md").read_text()


def test_the_committed_index_fits_the_committed_reports(repo_dir: Path) -> None:
    folder = repo_dir / "docs/reports"
    spec = importlib.util.spec_from_file_location("reports_index", folder / "index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (folder / "README.md").read_text() == module.index(folder), "run docs/reports/index.py"


def _pose(report: dict[str, Any]) -> list[str]:
    return [f"AP {report['AP']:.2f}", f"AP50 {report['AP50']:.2f}"]


def _events(report: dict[str, Any]) -> list[str]:
    fight, fall = report["services"]["fight"], report["services"]["fall"]
    return [
        f"fights {fight['found']} of {fight['incidents']} after {fight['delay_s']['median']:.1f} s",
        f", {fight['false_alarms_per_hour']:.1f} false alarms an hour",
        f"falls {fall['found']} of {fall['incidents']} after {fall['delay_s']['median']:.1f} s",
        f" s, {fall['false_alarms_per_hour']:.1f}",
    ]


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("action-fight-folds", lambda report: [f"accuracy {report['accuracy']:.2f}"]),
        ("action-fight-dev-nano", lambda report: [f"accuracy {report['accuracy']:.2f}"]),
        ("action-fall-folds", lambda report: [f"F1 {report['f1']:.2f}"]),
        ("events-truth", _events),
        ("events-nano", _events),
        ("pose-simulated-nano", _pose),
        ("pose-coco-nano", _pose),
    ],
)
def test_readme_says_what_the_reports_say(
    repo_dir: Path, name: str, figures: Callable[[dict[str, Any]], list[str]]
) -> None:
    report = json.loads((repo_dir / f"docs/reports/{name}.json").read_text())
    rows = [row for row in (repo_dir / "README.md").read_text().splitlines() if f"(docs/reports/{name}.md)" in row]
    assert len(rows) == 1
    for figure in figures(report):
        assert figure in rows[0]


def test_every_picture_of_a_page_is_committed_and_none_is_a_frame_of_real_footage(repo_dir: Path) -> None:
    folder = repo_dir / "docs/reports"
    for page in folder.glob("*.md"):
        pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
        assert all((folder / picture).is_file() for picture in pictures), page
        if not page.name.startswith(("events-", "pose-simulated-")):
            assert not list((folder / page.stem).glob("*.jpg")), (
                f"{page.stem}: strips of real clips stay out of the repository"
            )


def test_every_name_that_the_reports_ask_for_has_bars(repo_dir: Path) -> None:
    gate = repo_dir / "configs/release-gate.yaml"
    names = list(yaml.safe_load(gate.read_text())["bars"])
    for name in names:
        assert read_bars(gate, name)
    asked = set(re.findall(r"--bars ([\w/]+)", (repo_dir / "docs/reports/make.sh").read_text()))
    assert asked <= set(names)
    assert {"pose", "tracking", "events", "action/fight", "action/fall"} <= set(names)


def test_the_scenes_of_the_reports_are_held_out(repo_dir: Path) -> None:
    plan, longer = (read_plan(repo_dir / "docs/reports" / name) for name in ("scenes.yaml", "scenes-long.yaml"))
    assert all(scene.seed >= 1_000_000 for scene in longer.scenes())
    assert {repr(scene) for scene in plan.scenes()} <= {repr(scene) for scene in longer.scenes()}
    assert plan.hours > 0.3
    assert longer.hours > 1
