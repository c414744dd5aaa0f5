"""`recognizer-agent evaluate` from arguments to report, page, pictures and exit code, on replayed poses and scripted verdicts."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from fakes.plugin import save_recording
from fakes.replay import walkers
from test_cli import Shell

from agent.commands import evaluate
from agent.evaluate.strips import WIDTH_PX
from agent.overlay import track_colour
from agent.simulation.export import export_run
from agent.simulation.scene import build_scene
from agent.simulation.scripts import build_script
from agent.types import People

IMAGES = 3
SIZE = (240, 320)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setattr(evaluate, "_LINE_EVERY_S", math.inf)  # else a slow machine tells more
    return Shell(tmp_path)


# --- pose -------------------------------------------------------------------------------------------------------------


def pose_set(shell: Shell) -> tuple[Path, Path, Path]:
    """Annotations, folder of images, and a configuration whose estimator finds all but the last image's people."""
    people = walkers(2, IMAGES, size=SIZE)
    folder = shell.folder / "images"
    folder.mkdir()
    annotations, images = [], []
    for number, found in enumerate(people):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((*SIZE, 3), number, np.uint8))
        images.append({"id": number, "file_name": f"{number}.png"})
        for box, points in zip(found.boxes.tolist(), found.keypoints, strict=True):
            left, top, right, bottom = box
            triples = np.concatenate([points, np.full((17, 1), 2)], axis=1).ravel().tolist()
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "keypoints": triples,
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
            })  # fmt: skip
    file = shell.folder / "truth.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    # The first image is estimated once more, as a warm-up.
    recording = save_recording(shell.folder / "poses.npz", [people[0], *people[:-1], People.empty()])
    config = shell.config({"pose": {"estimator": "replay", "model": str(recording)}})
    return file, folder, config


def test_evaluate_pose(shell: Shell) -> None:
    truth, images, config = pose_set(shell)
    report = shell.folder / "reports" / "pose.json"
    arguments = ("evaluate", "pose", "--annotations", truth, "--images", images, "--config", config, "--report", report)
    done = shell.run(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert {"AP", "AP50", "AP75", "AR", "ms_per_image"} <= found.keys()
    assert found["AR"] == pytest.approx(2 / 3)
    assert (found["images"], found["people"], found["unreadable"]) == (3, 6, [])
    assert found["about"]["models"] == {"pose": "replay-1"}
    assert "AP50 0.6" in done.stdout
    assert "| 2.png | 2 | 2 |" in report.with_suffix(".md").read_text()
    assert (report.parent / "pose" / "precision.png").is_file()
    worst = cv2.imread(str(report.parent / "pose" / "missed-1.jpg"))
    height, width = worst.shape[:2]
    assert worst[:, : width // 2].std() > 5, "the people who were to be found are drawn"
    assert worst[height // 3 :, width // 2 + 3 :].std() < 2, "on the other side nobody is: nobody was found"
    assert not (report.parent / "pose" / "missed-2.jpg").exists(), "the other images are right"

    gate = shell.folder / "gate.yaml"
    gate.write_text("bars: {pose: {AP50: {min: 0.6}}, strict: {AP50: {min: 0.9}, AR: {min: 0.1}}}")
    assert shell.run(*arguments, "--gate", gate).returncode == 0
    done = shell.run(*arguments, "--gate", gate, "--bars", "strict")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("missed: AP50: 0.6")
    assert json.loads(report.read_text())["gate"]["passed"] is False
    assert shell.run(*arguments, "--gate", gate, "--bars", "none").returncode == 78


def test_baseline_counts_the_people_that_a_device_would_see(shell: Shell) -> None:
    truth, images, _ = pose_set(shell)
    seen, doubtful = walkers(2, 1, size=SIZE)[0], walkers(1, 1, size=SIZE)[0]
    faint = People(doubtful.boxes, doubtful.keypoints, doubtful.keypoint_scores / 3, doubtful.scores / 9)
    both = People(*(
        np.concatenate([getattr(one, name) for one in (seen, faint)])
        for name in ("boxes", "keypoints", "keypoint_scores", "scores")
    ))  # fmt: skip
    recording = save_recording(shell.folder / "some.npz", [both, both, faint, seen])
    report = shell.folder / "pose.json"
    arguments = ("evaluate", "pose", "--annotations", truth, "--images", images, "--report", report)

    def baseline(score_threshold: float, *more: object) -> Any:
        pose = {"estimator": "replay", "model": str(recording), "score_threshold": score_threshold}
        done = shell.run(*arguments, "--config", shell.config({"pose": pose}), *more)
        assert done.returncode == 0, done.stderr
        found = json.loads(report.read_text())
        assert found["found"] == 6, "AP is about everybody"
        return found.get("baseline")

    # At 0.3 the first and the last image show two people of 0.9 each, and the one between them nobody.
    assert baseline(0.3)["pose"] == pytest.approx({"person_confidence": 0.9, "keypoint_visibility": 0.9})
    everybody = (0.9 * 2 + 0.1) / 3
    assert baseline(0.05)["pose"] == pytest.approx({
        "person_confidence": (everybody + 0.1 + 0.9) / 3, "keypoint_visibility": ((0.9 * 2 + 0.3) / 3 + 0.3 + 0.9) / 3,
    })  # fmt: skip
    assert "| pose | person_confidence | 0.544 |" in report.with_suffix(".md").read_text()
    assert baseline(0.95) is None
    assert baseline(0.05, "--score-threshold", 0.5) is None, "who was left out is not averaged"


def test_the_images_are_not_taken_for_pictures_of_an_earlier_report(shell: Shell) -> None:
    truth, images, config = pose_set(shell)
    before = {file: file.read_bytes() for file in images.iterdir()}
    done = shell.run(
        "evaluate", "pose", "--annotations", truth, "--images", images, "--config", config,
        "--report", images.with_suffix(".json"),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {images}: the report would go there, where {images} is read")
    assert {file: file.read_bytes() for file in images.iterdir()} == before
    assert not images.with_suffix(".json").exists()


def test_a_slow_machine_measures_whole_pictures_too(shell: Shell) -> None:
    scene = build_scene(build_script("crowd", seed=3, people=3), seed=3, place="room", night=False)
    export_run(scene, (), shell.folder, name="crowd", frames=2, fps=0.5, images=True)
    report = shell.folder / "pose.json"

    def measured(**options: float) -> dict[str, Any]:
        pose = {"model": "shipped:pose-nano-int8", "score_threshold": 0.12, "options": options}
        done = shell.run(
            "evaluate", "pose", "--annotations", shell.folder / "person_keypoints.json", "--examples", 0,
            "--images", shell.folder / "img1", "--config", shell.config({"pose": pose}), "--report", report,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(report.read_text())
        assert found["found"]
        return {name: found[name] for name in ("AP", "AR", "found", "baseline")}

    assert measured(target_ms=1e-6) == measured(), "else a baseline of smaller pictures could be sealed"


def test_images_that_are_absent_or_damaged_are_named(shell: Shell) -> None:
    truth, images, config = pose_set(shell)
    report = shell.folder / "pose.json"
    arguments = ("evaluate", "pose", "--annotations", truth, "--images", images, "--config", config, "--report", report)
    (images / "1.png").write_bytes(b"no image")
    done = shell.run(*arguments)
    assert done.returncode == 1
    assert "error: 1.png is no image that can be read; left out" in done.stderr
    found = json.loads(report.read_text())
    assert (found["images"], found["unreadable"]) == (2, ["1.png"])
    (images / "2.png").unlink()
    done = shell.run(*arguments)
    assert done.returncode == 1
    assert "1 images are not there: " in done.stderr
    assert "2.png" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("how", "good", "image", "what"),
    [
        ("raise", 0, "0.png", "ValueError: a bug"),
        ("raise", 2, "1.png", "ValueError: a bug"),  # the first image is estimated twice
        ("exit", 2, "1.png", "SystemExit: 3"),
        ("model", 2, "1.png", "out of order"),
        ("nothing", 2, "1.png", "0 results for one image"),
        ("text", 2, "1.png", "failing-1 returned a str, expected People"),
    ],
)
def test_a_plug_in_that_fails_is_named_with_the_image(shell: Shell, how: str, good: int, image: str, what: str) -> None:
    truth, images, _ = pose_set(shell)
    config = shell.config({"pose": {"estimator": "failing", "options": {"how": how, "good": good}}})
    report = shell.folder / "pose.json"
    done = shell.run(
        "evaluate", "pose", "--annotations", truth, "--images", images, "--config", config, "--report", report
    )
    assert done.returncode == 1
    where = f"plug-in 'failing' of recognizer_agent.pose_estimators failed on {images / image}"
    assert done.stderr == f"error: {where}: {what}\n"
    assert not report.exists()


@pytest.mark.parametrize(("how", "what"), [("close", "ValueError: a bug"), ("exit at close", "SystemExit: 3")])
def test_a_plug_in_that_cannot_be_closed_is_told_beside_its_report(shell: Shell, how: str, what: str) -> None:
    truth, images, _ = pose_set(shell)
    config = shell.config({"pose": {"estimator": "failing", "options": {"how": how, "good": 9}}})
    report = shell.folder / "pose.json"
    done = shell.run(
        "evaluate", "pose", "--annotations", truth, "--images", images, "--config", config, "--report", report
    )
    assert (done.returncode, not_closed(done.stderr)) == (0, [("failing-1", what)])
    assert json.loads(report.read_text())["images"] == IMAGES


def not_closed(errors: str) -> list[tuple[str, str]]:
    """Models of which the log says so, and why; nothing else is in it."""
    lines = [json.loads(line) for line in errors.splitlines()]
    assert {line["event"] for line in lines} <= {"model not closed"}
    return [(line["model"], line["error"]) for line in lines]


def test_a_run_that_fails_leaves_the_earlier_report_as_it_was(shell: Shell) -> None:
    truth, images, config = pose_set(shell)
    report = shell.folder / "reports" / "pose.json"
    arguments = ("evaluate", "pose", "--annotations", truth, "--images", images, "--report", report)
    assert shell.run(*arguments, "--config", config).returncode == 0
    before = {file: file.read_bytes() for file in report.parent.rglob("*.*")}
    assert len(before) == 4, "JSON, page, curves and the worst image"
    failing = shell.config({"pose": {"estimator": "failing", "options": {"how": "raise", "good": 2}}})
    assert shell.run(*arguments, "--config", failing).returncode == 1
    assert {file: file.read_bytes() for file in report.parent.rglob("*.*")} == before


def test_images_are_counted_now_and_then_where_no_bar_can_be(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, images, config = pose_set(shell)
    report = shell.folder / "pose.json"
    arguments = ("evaluate", "pose", "--annotations", truth, "--images", images, "--config", config, "--report", report)
    quiet = shell.run(*arguments)
    monkeypatch.setattr(evaluate, "_LINE_EVERY_S", 0)
    told = shell.run(*arguments)
    assert quiet.stderr == ""
    assert told.stderr.splitlines() == [f"image {number} of {IMAGES}" for number in range(1, IMAGES + 1)]
    times = re.compile(r"ms_per_image .*")
    assert times.sub("", told.stdout) == times.sub("", quiet.stdout)


def test_bars_without_a_gate_are_refused(shell: Shell) -> None:
    report = shell.folder / "r.json"
    short = ("--only", "empty", "--minutes", "0.02", "--poses", "truth")
    done = shell.run("evaluate", "events", *short, "--bars", "strict", "--report", report)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --bars needs --gate, the file in which they stand\n"
    assert not report.exists()


def test_options_that_come_in_pairs(shell: Shell) -> None:
    done = shell.run(
        "evaluate", "pose", "--annotations", "a.json", "--annotations", "b.json", "--images", "x", "--report", "r.json"
    )
    assert done.returncode == 2
    assert done.stderr == "error: 2 times --annotations, but 1 times --images: they come in pairs\n"


# --- tracking, action -------------------------------------------------------------------------------------------------


def test_several_sequences_make_one_report(shell: Shell) -> None:
    arguments: list[object] = ["evaluate", "tracking", "--report", shell.folder / "r.json"]
    for name, frames in (("one", 20), ("two", 10)):
        folder = shell.folder / name
        for part in ("gt", "det"):
            (folder / part).mkdir(parents=True)
        rows = [(frame, 100 + frame, 50, 40, 90) for frame in range(1, frames + 1)]
        (folder / "gt/gt.txt").write_text("".join(f"{f},1,{x},{y},{w},{h},1\n" for f, x, y, w, h in rows))
        (folder / "det/det.txt").write_text("".join(f"{f},-1,{x},{y},{w},{h},0.9\n" for f, x, y, w, h in rows))
        arguments += ["--detections", folder / "det/det.txt", "--truth", folder / "gt/gt.txt"]
    done = shell.run(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((shell.folder / "r.json").read_text())
    assert (found["frames"], found["truth_boxes"], found["truth_ids"]) == (30, 30, 2)
    assert found["MOTA"] == found["id_consistency"] == pytest.approx(1)
    assert list(found["sequences"]) == ["one", "two"]
    assert (shell.folder / "r" / "hota.png").is_file()


def test_probabilities_made_elsewhere(shell: Shell) -> None:
    table = shell.folder / "folds.csv"
    table.write_text(
        "file,label,probability,source,fold\na.mp4,fight,0.9,x,1\nb.mp4,calm,0.2,y,1\nc.mp4,fight,0.7,y,2\n"
    )
    arguments = (
        "evaluate",
        "action",
        "--service",
        "fight",
        "--predictions",
        table,
        "--report",
        shell.folder / "r.json",
    )
    done = shell.run(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((shell.folder / "r.json").read_text())
    assert (found["accuracy"], found["auc"], list(found["by_source"])) == (1, 1, ["x", "y"])
    assert "baseline" not in found, "no model was asked"
    assert shell.run(*arguments, "--where", "fold=2").returncode == 0
    assert len(json.loads((shell.folder / "r.json").read_text())["clips"]) == 1
    assert shell.run(*arguments, "--data", table).returncode == 2


def test_a_table_without_the_action_is_warned_about_and_reported(shell: Shell) -> None:
    table, report = shell.folder / "folds.csv", shell.folder / "r.json"
    arguments = ("evaluate", "action", "--service", "fight", "--predictions", table, "--report", report)
    table.write_text("file,label,probability,kind\na.mp4,Fight,0.9,fight\nb.mp4,calm,0.2,calm\n")
    done = shell.run(*arguments)
    assert done.returncode == 0, "calm hours alone have a rate of false alarms"
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(
        "warning: no clip is positive, so precision, recall and f1 are 0: no label is 'fight' (hint"
    )
    assert "here are 'Fight', 'calm'; --label-column picks another column" in warning
    assert json.loads(report.read_text())["false_alarm_rate"] == 0.5
    assert shell.run(*arguments, "--label-column", "kind").stderr == ""


@pytest.mark.parametrize("option", ["--data", "--predictions"])
def test_a_table_that_cannot_be_used_is_no_configuration(shell: Shell, option: str) -> None:
    table = shell.folder / "clips.csv"
    arguments = ("evaluate", "action", "--service", "fight", option, table, "--report", shell.folder / "r.json")
    for content, words in (
        (None, "clips.csv: No such file or directory (hint: a CSV file with the columns file, label"),
        (b"file\na.mp4\n", "clips.csv:1: no column label"),
        (b"file,label,probability\n", "clips.csv: no clips in it"),
        (b"\xff\xfe", "clips.csv: not a CSV file in UTF-8"),
        (b"file,label,probability\n,fight,0.5\n", "clips.csv:2: no file"),
    ):
        if content is not None:
            table.write_bytes(content)
        done = shell.run(*arguments)
        assert done.returncode == 1, words
        assert words in done.stderr


# --- events -----------------------------------------------------------------------------------------------------------


def judged(
    shell: Shell, script: list[float], *more: object, broken_close: bool = False, positive: str | None = None
) -> tuple[int, dict[str, Any], str]:
    """Exit code, report and error output of 45 s of the fight scenario with scripted verdicts on fights."""
    services: dict[str, Any] = {
        "fall": {"enabled": False},
        "fight": {
            "classifier": "scripted", "model": "/none", "options": {"script": script, "broken_close": broken_close},
            "positive": positive,
            "window": {"length": 30, "stride": 15, "rate_hz": 0},
            "rules": {"alert_threshold": 0.8, "alert_count": 2, "normal_count": 2},
        },
    }  # fmt: skip
    config = shell.config({"services": services})
    plan = shell.folder / "plan.yaml"
    plan.write_text("runs: [{scenario: fight, seeds: [3], people: 2, seconds: 45}]\nfps: 15\n")
    report = shell.folder / "events.json"
    done = shell.run(
        "evaluate", "events", "--scenarios", plan, "--poses", "truth", "--config", config, "--report", report, *more
    )
    assert "Traceback" not in done.stderr
    assert re.search(
        r"^ +fight [01] of 1 found( after [\d.]+ s)?, \d false alarms \([\d.]+ an hour\)$", done.stdout, re.MULTILINE
    )
    return done.returncode, json.loads(report.read_text()), done.stderr


def test_events_of_simulated_scenes_are_matched_with_the_truth(shell: Shell) -> None:
    code, report, errors = judged(shell, [0.9])
    assert code == 0, errors
    fight = report["services"]["fight"]
    (scene,) = report["scenarios"]
    told = scene["services"]["fight"]
    assert fight["incidents"] == len(told["hits"]) + len(told["missed"]) >= 1
    assert sum(map(len, (told["hits"], told["duplicates"], told["false_alarms"]))) == 1  # the event never ends
    assert fight["windows"]["recall"] == 1
    assert report["tracking"]["MOTA"] > 0.5  # the poses are the truth with noise
    assert report["hours"] == pytest.approx(45 / 3600)
    assert report["baseline"] == {"action/fight": {"window_confidence": pytest.approx(0.9)}}, "noisy truth is no model"
    page = (shell.folder / "events.md").read_text()
    assert "![Time lines](events/timelines.png)" in page
    assert "![Single verdicts: fight](events/verdicts-fight.png)" in page
    curve = fight["windows"]["roc"]
    assert (curve[0]["recall"], curve[-1]["recall"]) == (0, 1)


def test_scenes_in_processes_of_their_own_give_the_same_report(shell: Shell) -> None:
    plan = shell.folder / "several.yaml"
    plan.write_text(
        "runs: [{scenario: fight, seeds: [3, 4], people: 2, seconds: 25}, {scenario: hug, seconds: 6}]\nfps: 10\n"
    )
    reports = []
    for jobs in ("1", "2"):
        arguments = ("evaluate", "events", "--scenarios", plan, "--poses", "truth", "--jobs", jobs, "--examples", 2)
        done = shell.run(*arguments, "--report", shell.folder / "several.json")
        assert done.returncode == 0, done.stderr
        report = json.loads((shell.folder / "several.json").read_text())
        strips = [file.read_bytes() for file in sorted((shell.folder / "several").glob("mistake-*.jpg"))]
        reports.append(({**report, "speed": 0}, strips))
    assert reports[0] == reports[1]
    assert [(one["scenario"], one["seed"]) for one in reports[0][0]["scenarios"]] == [
        ("fight", 3),
        ("fight", 4),
        ("hug", 1),
    ]


@pytest.mark.parametrize("ending", ["a scene's process dies", "Ctrl-C", "killed"])
def test_no_process_of_a_scene_is_left(shell: Shell, ending: str) -> None:
    arguments = ("--minutes", "60", "--only", "fight", "--seeds", "3", "4", "5", "--poses", "truth", "--jobs", "2")
    command = shell.command("evaluate", "events", *arguments, "--report", shell.folder / "several.json")
    with subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE, text=True) as run:
        process = psutil.Process(run.pid)
        while len(scenes := [one for one in process.children() if "spawn_main" in " ".join(one.cmdline())]) < 2:
            assert run.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        victim = scenes[0] if ending.startswith("a scene") else process
        victim.send_signal(signal.SIGINT if ending == "Ctrl-C" else signal.SIGKILL)
        _, errors = run.communicate(timeout=30)
    _, left = psutil.wait_procs(scenes, timeout=10)
    assert not left
    died = "error: a process that played a scene has died (hint: fewer --jobs take less memory)\n"
    if ending == "killed":
        assert run.returncode == -signal.SIGKILL
    else:
        stopped = f"stopped at frame 0 of {60 * 60 * 30}; nothing was written\n"
        assert (run.returncode, errors) == ((130, stopped) if ending == "Ctrl-C" else (1, died))


def test_a_model_may_have_another_word_for_what_the_scenes_call_as_the_service(shell: Shell) -> None:
    code, report, errors = judged(shell, [0.1], positive="other")
    assert code == 0, errors
    fight = report["services"]["fight"]
    assert (fight["incidents"], fight["windows"]["recall"]) == (1, 1)


def test_a_service_whose_action_no_scene_holds_is_refused(shell: Shell) -> None:
    service = {"classifier": "scripted", "model": "/none"}
    names: dict[str, dict[str, Any]] = {
        "wave": {"positive": "waving"}, "theft": {"enabled": False}, "brawl": {"positive": "fight"}, "hug": {},
    }  # fmt: skip
    config = shell.config({"services": {name: service | more for name, more in names.items()}})
    report = shell.folder / "r.json"
    done = shell.run("evaluate", "events", "--poses", "truth", "--config", config, "--report", report)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: services.wave: the scenes hold no action 'wave' (hint: name it, ")
    assert not report.exists()


def test_a_classifier_that_cannot_be_closed_is_told_beside_the_report(shell: Shell) -> None:
    code, report, errors = judged(shell, [0.9], broken_close=True)
    assert (code, not_closed(errors)) == (0, [("scripted-fight", "ValueError: a bug")])
    assert report["services"]["fight"]["windows"]["recall"] == 1


def test_what_was_missed_is_drawn_and_fails_the_gate(shell: Shell) -> None:
    gate = shell.folder / "gate.yaml"
    gate.write_text("bars: {events: {services.fight.recall: {min: 0.5}, services.fight.delay_s.median: {max: 3}}}")
    code, report, errors = judged(shell, [0.1], "--gate", gate, "--examples", 1)
    assert code == 1
    assert report["services"]["fight"]["recall"] == 0
    assert errors.splitlines()[-2:] == [
        "missed: services.fight.recall: 0, wanted at least 0.5",
        "missed: services.fight.delay_s.median: not in the report, wanted at most 3",
    ]
    strip = cv2.imread(str(shell.folder / "events" / "mistake-1.jpg")).astype(int)
    assert strip.std() > 10
    followed = np.abs(strip - track_colour(1)).max(axis=2) < 60
    panels = [followed[:, left : left + WIDTH_PX].sum() for left in range(0, strip.shape[1], WIDTH_PX + 3)]
    assert min(panels) > 100, "box, skeleton and number of the first one in every frame"
    assert "![Missed: fight from" in (shell.folder / "events.md").read_text()


def test_baseline_of_the_models_between_picture_and_verdict(shell: Shell) -> None:
    recording = [walkers(2, 1)[0], People.empty()]  # in every other frame
    service = {"classifier": "scripted", "model": "/none", "window": {"length": 6, "stride": 3, "min_track_frames": 1}}
    config = shell.config({
        "pose": {"estimator": "replay", "model": str(save_recording(shell.folder / "poses.npz", recording))},
        "services": {
            "fight": service | {"options": {"script": [0.9, 0.3]}}, "fall": service | {"options": {"script": [0.2]}},
        },
    })  # fmt: skip
    plan = shell.folder / "plan.yaml"
    plan.write_text("runs: [{scenario: sit, seeds: [3], people: 1, seconds: 6}]\nfps: 5\n")
    report = shell.folder / "events.json"
    done = shell.run("evaluate", "events", "--scenarios", plan, "--config", config, "--report", report)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["baseline"].keys() == found["about"]["models"].keys()
    assert found["baseline"]["pose"] == pytest.approx({"person_confidence": 0.9, "keypoint_visibility": 0.9})
    assert found["baseline"]["action/fall"] == {"window_confidence": pytest.approx(0.8)}
    assert found["baseline"]["action/fight"]["window_confidence"] == pytest.approx(0.8, abs=0.05)


def test_without_a_configured_pose_model_the_small_one_is_taken_and_said_to_be(shell: Shell) -> None:
    report = shell.folder / "r.json"
    done = shell.run("evaluate", "events", "--only", "empty", "--minutes", "0.02", "--report", report)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: no pose model is configured (pose.model), so pose-nano is taken")
    assert json.loads(report.read_text())["about"]["models"]["pose"].startswith("pose-nano")
    truth = shell.run(
        "evaluate", "events", "--only", "empty", "--minutes", "0.02", "--poses", "truth", "--report", report
    )
    assert truth.returncode == 0
    assert "note:" not in truth.stderr


def test_an_unknown_scenario_is_refused(shell: Shell) -> None:
    done = shell.run("evaluate", "events", "--only", "ballet", "--people", 99, "--report", shell.folder / "r.json")
    assert done.returncode == 78
    assert "unknown scenario 'ballet'" in done.stderr
    assert "--people: at most" in done.stderr
    assert "Traceback" not in done.stderr
