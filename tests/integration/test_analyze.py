"""`recognizer-agent analyze` and `evaluate action` on made videos, with replayed poses and scripted verdicts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import av
import jsonschema
import numpy as np
import psutil
import pytest
from fakes.plugin import save_recording
from fakes.replay import walkers
from fakes.video import make_video
from test_cli import Shell

from agent.commands.analyze import _describe, output_names
from agent.events.cloudevents import load_schema
from agent.offline import Summary

FRAMES = 30
SIZE = (320, 240)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def video(shell: Shell, name: str = "clip.mp4", frames: int = FRAMES) -> Path:
    path = shell.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_video(path, frames, size=SIZE, fps=25)


def config(shell: Shell, script: list[float] | None = None) -> Path:
    recording = walkers(2, FRAMES, size=(SIZE[1], SIZE[0]))
    return shell.config({
        "device_id": "box",
        "pose": {"estimator": "replay", "model": str(save_recording(shell.folder / "poses.npz", recording))},
        "services": {
            "fall": {"enabled": False},
            "fight": {
                "classifier": "scripted", "model": "/none", "options": {"script": script or [0.9, 0.1]},
                "window": {"length": 4, "stride": 2, "min_track_frames": 1},
                "rules": {
                    "alert_count": 1, "normal_count": 1, "cooldown_s": 0, "min_duration_s": 0.01, "max_duration_s": 9,
                },
            },
        },
    })  # fmt: skip


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_of_a_video(shell: Shell) -> None:
    out = shell.folder / "out"
    done = shell.run("analyze", video(shell), "--config", config(shell), "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    (summary,) = json.loads(done.stdout)
    folder = out / "clip"
    assert {path.name for path in folder.iterdir()} == {
        "poses.jsonl", "tracks.txt", "windows.jsonl", "events.jsonl", "summary.json",
    }  # fmt: skip
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (summary["frames"], summary["tracks"], summary["people_per_frame"]) == (FRAMES, 2, 2.0)
    assert (summary["width"], summary["height"], summary["error"]) == (*SIZE, "")
    assert summary["models"] == {"pose": "replay-1", "action/fight": "scripted-fight"}

    poses = lines(folder / "poses.jsonl")
    assert [pose["frame"] for pose in poses] == list(range(1, FRAMES + 1))
    assert [round(pose["t"] * 25) for pose in poses] == list(range(FRAMES))
    person = poses[0]["people"][0]
    assert (len(person["box"]), len(person["keypoints"]), len(person["keypoints"][0])) == (4, 17, 3)

    rows = [line.split(",") for line in (folder / "tracks.txt").read_text().splitlines()]
    assert {len(row) for row in rows} == {10}
    assert [int(row[0]) for row in rows] == sorted(int(row[0]) for row in rows)
    assert {int(row[1]) for row in rows} == {1, 2}
    assert all(float(row[4]) > 0 and float(row[5]) > 0 and row[7:] == ["-1"] * 3 for row in rows)

    windows = lines(folder / "windows.jsonl")
    assert len(windows) == summary["windows"]["fight"]
    assert max(window["probability"] for window in windows) == summary["max_probability"]["fight"] == 0.9

    events = lines(folder / "events.jsonl")
    for event in events:
        jsonschema.validate(event, load_schema())
    assert [event["data"]["sequence"] for event in events] == list(range(1, len(events) + 1))
    started = [event for event in events if event["type"] == "recognizer.event.started.v1"]
    ended = [event for event in events if event["type"] == "recognizer.event.ended.v1"]
    assert len(started) == len(ended) == summary["events"]["fight"] > 0
    assert events[-1] in ended


def test_a_bad_video_costs_its_own_results_and_exit_code_1(shell: Shell) -> None:
    bad, good, out = shell.folder / "bad.mp4", video(shell, "good.mp4"), shell.folder / "out"
    bad.write_bytes(b"no video at all" * 100)
    missing = shell.folder / "missing.mp4"
    done = shell.run("analyze", bad, missing, good, "--config", config(shell), "--out", out, "--json")
    assert done.returncode == 1
    summaries = json.loads(done.stdout)
    assert [summary["frames"] for summary in summaries] == [0, 0, FRAMES]
    assert "not a readable video" in summaries[0]["error"]
    assert "no such file" in summaries[1]["error"]
    assert summaries[2]["error"] == ""
    assert "Traceback" not in done.stderr
    assert len(lines(out / "good" / "poses.jsonl")) == FRAMES
    assert json.loads((out / "bad" / "summary.json").read_text())["error"]


def test_a_name_that_is_no_text_costs_its_own_results_only(shell: Shell) -> None:
    odd = shell.folder / os.fsdecode(b"caf\xe9.mp4")
    os.link(video(shell, "good.mp4"), odd)
    for more in ([], ["--json"]):
        out = shell.folder / f"out{len(more)}"
        command = shell.command(
            "analyze", odd, shell.folder / "good.mp4", "--config", config(shell), "--out", out, *more
        )
        done = subprocess.run(command, env=shell.environment, capture_output=True, check=False, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
        assert r"caf\udce9.mp4: its name is not UTF-8 (hint: rename it)" in done.stdout
        assert len(lines(out / "good" / "poses.jsonl")) == FRAMES


def test_a_video_that_was_cut_off_keeps_what_it_holds_and_says_so(shell: Shell) -> None:
    whole = video(shell, "long.avi", 100)
    cut = shell.folder / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    done = shell.run("analyze", cut, "--config", config(shell), "--out", shell.folder / "out", "--json")
    (summary,) = json.loads(done.stdout)
    assert done.returncode == 1
    assert 0 < summary["frames"] < 100
    assert "cut off" in summary["error"]
    assert len(lines(shell.folder / "out" / "cut" / "poses.jsonl")) == summary["frames"]


def test_two_videos_of_one_name_do_not_share_a_folder(shell: Shell) -> None:
    videos = [video(shell, "a/clip.mp4", 5), video(shell, "b/clip.mp4", 7)]
    done = shell.run("analyze", *videos, "--config", config(shell), "--out", shell.folder / "out")
    assert done.returncode == 0, done.stderr
    assert [len(lines(shell.folder / "out" / name / "poses.jsonl")) for name in ("clip", "clip-2")] == [5, 7]
    assert done.stdout.count("frames at") == 2


def test_output_names_stay_in_their_folder_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    videos = ["a.mp4", "x/a.avi", "a-2.mp4", "..", ".", "/", "x/.."]
    names = output_names([Path(video) for video in videos])
    assert len(set(names)) == len(videos)
    assert not {name for name in names if "/" in name or name in ("", ".", "..")}
    assert names[:2] == ["a", "a-2"]


def interrupted_once_written(shell: Shell, file: Path, *arguments: object) -> None:
    """Run `analyze` in a process of its own until something is in `file`, then press Ctrl-C."""
    process = subprocess.Popen(
        shell.command("analyze", *arguments), env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - ignored in CI shells
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (file.exists() and file.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in stderr


def test_an_interrupted_run_leaves_only_partial_files(shell: Shell) -> None:
    endless, out = video(shell, "long.mp4", 2500), shell.folder / "out"
    interrupted_once_written(
        shell, out / "long" / "poses.jsonl.partial", endless, "--config", config(shell), "--out", out
    )
    assert {path.suffix for path in (out / "long").iterdir()} == {".partial"}


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_an_output_folder_that_cannot_be_written_is_one_line(shell: Shell, kind: str) -> None:
    out = shell.folder / "out"
    out.write_text("a file") if kind == "file" else out.symlink_to("/proc/self")
    done = shell.run("analyze", video(shell), "--config", config(shell), "--out", out)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {out}")
    assert "Traceback" not in done.stderr


# --- overlay ----------------------------------------------------------------------------------------------------------


def test_the_overlay_shows_people_and_events_and_changes_nothing_else(shell: Shell) -> None:
    times_ms = [40 * n if n < 20 else 800 + 100 * (n - 20) for n in range(FRAMES)]
    clip = make_video(shell.folder / "clip.mkv", FRAMES, size=SIZE, times_ms=times_ms)
    made, outs = config(shell), [shell.folder / name for name in ("plain", "drawn")]
    for out, more in zip(outs, ([], ["--overlay"]), strict=True):
        done = shell.run("analyze", clip, "--config", made, "--out", out, *more)
        assert done.returncode == 0, done.stderr
    plain, drawn = (out / "clip" for out in outs)
    assert {path.name for path in drawn.iterdir()} - {path.name for path in plain.iterdir()} == {"overlay.mp4"}
    for name in ("poses.jsonl", "tracks.txt", "windows.jsonl"):
        assert (plain / name).read_bytes() == (drawn / name).read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (plain, drawn)]
    for summary in summaries:
        del summary["wall_s"], summary["frames_per_s"]
    assert summaries[0] == summaries[1]

    with av.open(str(drawn / "overlay.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [round(1000 * float(frame.time)) for frame in frames] == times_ms
    images = [frame.to_ndarray(format="bgr24").astype(int) for frame in frames]
    assert {image.shape for image in images} == {(SIZE[1], SIZE[0], 3)}
    boxes = [[float(value) for value in line.split(",")] for line in (drawn / "tracks.txt").read_text().splitlines()]
    assert len({row[0] for row in boxes}) > FRAMES / 2
    for frame, _, left, top, width, height, *_ in boxes:
        area = images[int(frame) - 1][round(top + height / 2) - 3 :, round(left + width) - 3 :][:7, :7]
        assert area.size == 0 or np.ptp(area, axis=2).max() > 60, "the right edge of the box, on grey"

    ends = [(round(1000 * window["t_end"]), window["probability"]) for window in lines(drawn / "windows.jsonl")]
    following = [t_ms for t_ms, _ in ends[1:]] + times_ms[-1:]
    runs = [(t_ms, until) for (t_ms, probability), until in zip(ends, following, strict=True) if probability > 0.5]
    red = [(image[28:44, 5:90, 2] - image[28:44, 5:90, 1]).mean() > 80 for image in images]  # the second bar
    assert red == [any(start <= t_ms <= end for start, end in runs) for t_ms in times_ms]
    assert 0 < sum(red) < FRAMES

    assert shell.run("analyze", clip, "--config", made, "--out", outs[1]).returncode == 0
    assert {path.name for path in drawn.iterdir()} == {path.name for path in plain.iterdir()}, "an overlay of before"


def test_a_folder_that_takes_no_overlay_costs_the_overlay_alone(shell: Shell) -> None:
    out = shell.folder / "out"
    (out / "a" / "overlay.mp4" / "in the way").mkdir(parents=True)
    videos = [video(shell, "a.mp4", 5), video(shell, "b.mp4", 5)]
    done = shell.run("analyze", *videos, "--config", config(shell), "--out", out, "--overlay")
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {out}/a/overlay.mp4: the overlay cannot be written: Is a directory"
    assert len(lines(out / "a" / "poses.jsonl")) == len(lines(out / "b" / "poses.jsonl")) == 5
    assert (out / "b" / "overlay.mp4").is_file()
    assert done.stdout.count("5 frames at") == 2


def test_an_interrupted_overlay_leaves_the_other_files_whole(shell: Shell) -> None:
    clip, out = video(shell, "long.mp4", 1500), shell.folder / "out"
    partial = out / "long" / "overlay.mp4.partial"
    interrupted_once_written(shell, partial, clip, "--config", config(shell), "--out", out, "--overlay")
    assert [path.name for path in (out / "long").iterdir() if path.suffix == ".partial"] == [partial.name]
    assert len(lines(out / "long" / "poses.jsonl")) == 1500


def test_an_unreadable_video_is_told_once_and_has_no_overlay(shell: Shell) -> None:
    bad, out = shell.folder / "bad.mp4", shell.folder / "out"
    bad.write_bytes(b"no video at all" * 100)
    done = shell.run("analyze", bad, "--config", config(shell), "--out", out, "--overlay")
    assert done.returncode == 1
    assert [line[:6] for line in done.stderr.splitlines() if "not a readable video" in line].count("error:") == 1
    assert not (out / "bad" / "overlay.mp4").exists()


# --- evaluate action --------------------------------------------------------------------------------------------------


def clips(shell: Shell, rows: list[tuple[str, str]], *, make: bool = True) -> Path:
    table = shell.folder / "clips.csv"
    table.write_text("".join(f"{file},{label}\n" for file, label in [("file", "label"), *rows]))
    for file, _ in rows:
        if make and not (shell.folder / file).exists():
            video(shell, file, 4)  # one window each
    return table


def test_figures_of_labelled_clips(shell: Shell) -> None:
    rows = [("a.mp4", "fight"), ("b.mp4", "fight"), ("c.mp4", "walk"), ("d.mp4", "walk"), ("e.mp4", "walk")]
    table, report = clips(shell, rows), shell.folder / "sub" / "report.json"
    script = [0.9, 0.3, 0.7, 0.2, 0.1]  # one verdict per clip, in the order of the table
    done = shell.run(
        "evaluate",
        "action",
        "--service",
        "fight",
        "--data",
        table,
        "--config",
        config(shell, script),
        "--report",
        report,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert [clip["probability"] for clip in found["clips"]] == pytest.approx(script)
    assert found["confusion_matrix"] == {
        "true_positive": 1, "false_positive": 1, "false_negative": 1, "true_negative": 2,
    }  # fmt: skip
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == found["precision"] == found["recall"] == pytest.approx(1 / 2)
    assert found["baseline"] == {
        "pose": {"person_confidence": pytest.approx(0.9), "keypoint_visibility": pytest.approx(0.9)},
        "action/fight": {"window_confidence": pytest.approx((0.9 + 0.7 + 0.7 + 0.8 + 0.9) / 5)},
    }
    assert not list(report.parent.glob("*.partial"))
    assert "accuracy 0.6000" in done.stdout


def test_a_service_that_is_off_is_measured_where_it_is_named(shell: Shell) -> None:
    table, report, off = clips(shell, [("a.mp4", "fight")]), shell.folder / "report.json", shell.folder / "off.yaml"
    off.write_text("services: {fight: {enabled: false}}")
    done = shell.run(
        "evaluate", "action", "--service", "fight", "--data", table, "--report", report,
        "--config", config(shell), "--config", off,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert [clip["probability"] for clip in found["clips"]] == pytest.approx([0.9])
    assert found["about"]["models"] == {"pose": "replay-1", "action/fight": "scripted-fight"}


def test_a_clip_that_cannot_be_read_is_left_out_and_costs_exit_code_1(shell: Shell) -> None:
    table, report = clips(shell, [("bad.mp4", "fight"), ("good.mp4", "fight")]), shell.folder / "report.json"
    (shell.folder / "bad.mp4").write_bytes(b"x")
    arguments = (
        "evaluate",
        "action",
        "--service",
        "fight",
        "--data",
        table,
        "--config",
        config(shell),
        "--report",
        report,
    )
    done = shell.run(*arguments)
    assert done.returncode == 1
    assert "bad.mp4" in done.stderr
    assert [clip["file"] for clip in json.loads(report.read_text())["clips"]] == ["good.mp4"]

    (shell.folder / "good.mp4").write_bytes(b"x")
    done = shell.run(*arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("none of its 2 clips could be read")
    assert "Traceback" not in done.stderr


def test_an_interrupted_run_says_how_far_it_came_and_leaves_the_earlier_report_as_it_was(shell: Shell) -> None:
    long = video(shell, "long.mp4", 2500)
    table, folder = clips(shell, [("a.mp4", "fight"), ("long.mp4", "fight"), ("c.mp4", "walk")]), shell.folder / "sub"
    made = shell.folder / "made.csv"
    made.write_text("file,label,probability\nx.mp4,fight,0.9\ny.mp4,walk,0.2\n")
    arguments = ("evaluate", "action", "--service", "fight", "--report", folder / "report.json")
    assert shell.run(*arguments, "--predictions", made).returncode == 0
    before = {file: file.read_bytes() for file in folder.rglob("*.*")}
    assert folder / "report" / "calls.png" in before

    command = shell.command(*arguments, "--data", table, "--config", config(shell))
    with subprocess.Popen(
        command, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - ignored in CI shells
    ) as run:  # fmt: skip
        process = psutil.Process(run.pid)
        while str(long) not in [file.path for file in process.open_files()]:
            assert run.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = run.communicate(timeout=30)
    assert (run.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "stopped at clip 2 of 3; nothing was written"
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == before


def test_failed_inferences_are_not_passed_off_as_verdicts(shell: Shell) -> None:
    table, report = clips(shell, [("a.mp4", "fight")]), shell.folder / "report.json"
    broken = config(shell, ["not a number"])  # type: ignore[list-item]
    done = shell.run(
        "evaluate", "action", "--service", "fight", "--data", table, "--config", broken, "--report", report
    )
    assert done.returncode == 1
    assert "1 failed inferences" in done.stderr
    done = shell.run("analyze", shell.folder / "a.mp4", "--config", broken, "--out", shell.folder / "out")
    assert done.returncode == 1
    assert "1 inference failures: action: " in done.stdout


def test_failed_inferences_are_told_with_their_most_frequent_cause(shell: Shell) -> None:
    pose = {"estimator": "failing", "options": {"how": "text", "good": 10}}
    settings = shell.config({"pose": pose, "services": {"fall": {"enabled": False}, "fight": {"enabled": False}}})
    done = shell.run("analyze", video(shell), "--config", settings, "--out", shell.folder / "out")
    assert done.returncode == 1
    assert done.stdout.endswith(
        "; events: none; 20 inference failures: pose: failing-1 returned a str, expected People\n"
    )
    several = {"pose: out of order": 1, "action: no numbers": 3, "pose: a bug": 2}
    assert _describe(Summary("a.mp4", failures=several)).endswith(
        "; 6 inference failures, most often (3): action: no numbers"
    )


def test_bad_tables_and_services_are_named(shell: Shell) -> None:
    made = config(shell)
    table = clips(shell, [("a.mp4", "fight"), ("gone.mp4", "fight")], make=False)

    def evaluate(service: str) -> subprocess.CompletedProcess[str]:
        return shell.run(
            "evaluate",
            "action",
            "--service",
            service,
            "--data",
            table,
            "--config",
            made,
            "--report",
            shell.folder / "r.json",
        )

    done = evaluate("fight")
    assert done.returncode == 1, "a table is data, as other ground truth is, and no configuration"
    assert f"{table}:2: no such file: a.mp4" in done.stderr
    assert f"{table}:3: no such file: gone.mp4" in done.stderr
    done = evaluate("dance")
    assert done.returncode == 78
    assert "known: fight, fall" in done.stderr


def test_a_report_that_cannot_be_written_is_known_before_the_work(shell: Shell) -> None:
    table = clips(shell, [("a.mp4", "fight")])
    began = time.monotonic()
    done = shell.run(
        "evaluate",
        "action",
        "--service",
        "fight",
        "--data",
        table,
        "--config",
        config(shell),
        "--report",
        "/proc/r.json",
    )
    assert time.monotonic() - began < 30
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: /proc/r.json.partial: ")
    assert done.stdout == ""
