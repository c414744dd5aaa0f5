"""The command line as a user meets it: exit codes, what goes to which stream, messages for bad input."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import pytest
from fakes.commandline import plain_logging
from fakes.plugin import install, save_recording
from fakes.replay import walkers
from fakes.video import make_video

from agent import __version__
from agent.cli import main
from agent.commands import doctor
from agent.config.delivery import OutboxConfig
from agent.events.cloudevents import load_schema, render
from agent.events.gaps import render_gap
from agent.events.ids import Uuid7
from agent.outbox.audit import refused_id
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import GAP, Event, EventPhase, Lane, Loss, People

GOOD, FAILED, USAGE, CONFIG = 0, 1, 2, 78
SOUND = {
    "cameras": [{"id": "a", "source": "sim://"}],
    "pose": {"model": "shipped:pose-nano-int8"},
    "tracking": {"track_threshold": 0.15},
    "services": {"fight": {"model": "shipped:fight-stgcn-nano"}},
}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Shell:
    """The command line with the tests' plug-ins installed: `run` calls it in this process, `command` is for a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "plugins"
        variables = {"PYTHONPATH": install(self.plugins), "HOME": str(folder), "NO_COLOR": "1"}
        self.environment = os.environ | variables

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "agent", *map(str, arguments)]

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [str(argument) for argument in arguments]
        stdout, stderr = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch, plain_logging(),
            mock.patch.dict(os.environ, self.environment | environment),  # also takes back what `agent.env` added
            contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr),
        ):  # fmt: skip
            patch.chdir(self.folder)
            patch.syspath_prepend(str(self.plugins))
            try:
                code = main(argv)
            except SystemExit as end:  # how argparse ends
                code = int(end.code or 0)
        return subprocess.CompletedProcess(argv, code, stdout.getvalue(), stderr.getvalue())

    def config(self, document: dict[str, Any], name: str = "agent.yaml") -> Path:
        """A configuration file; state in the test's folder, no broker, no pages unless `document` says so."""
        file = self.folder / name
        defaults = {"state_dir": str(self.folder / "state"), "mqtt": {"enabled": False}, "http": {"enabled": False}}
        file.write_text(json.dumps(defaults | document, indent=1))
        return file


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_version_and_help(shell: Shell) -> None:
    assert shell.run("--version").stdout == f"recognizer-agent {__version__}\n"
    done = shell.run("--help")
    assert done.returncode == GOOD
    for command in ("run", "demo", "analyze", "evaluate", "check-config", "doctor", "events"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["run", "--speed", "9"],
        ["analyze"],
        ["analyze", "a.mp4"],
        ["check-config"],
        ["evaluate"],
        ["evaluate", "action", "--service", "fight"],
        ["evaluate", "action", "--service", "f", "--data", "x", "--report", "y", "--threshold", "2"],
        ["evaluate", "tracking", "--detections", "x", "--truth", "y", "--report", "z", "--fps", "nan"],
        ["events"],
        ["events", "list", "--limit", "0"],
        ["events", "list", "--limit", "many"],
        ["events", "list", "--since", "yesterday"],
        ["events", "export", "--format", "xml"],
        ["demo", "--seconds", "-1"],
    ],
)
def test_wrong_usage_is_2_and_says_what_is_wrong(shell: Shell, arguments: list[str]) -> None:
    done = shell.run(*arguments)
    assert done.returncode == USAGE
    assert done.stdout == ""
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("demo --seconds x", "argument --seconds: expected a number above 0, got 'x'"),
        ("demo --seed 1.5", "argument --seed: expected a whole number, got '1.5'"),
        ("demo --port http", "argument --port: expected a whole number, got 'http'"),
        ("evaluate pose --examples few", "argument --examples: expected a whole number, got 'few'"),
        ("evaluate pose --score-threshold low", "argument --score-threshold: expected a number from 0 to 1, got 'low'"),
        ("models bench m --batch 1,", "argument --batch: expected a whole number, got ''"),
    ],
)
def test_an_argument_that_is_no_number_is_told_what_was_expected(shell: Shell, arguments: str, told: str) -> None:
    done = shell.run(*arguments.split())
    assert done.returncode == USAGE
    assert done.stderr.endswith(f"error: {told}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"], ["doctor"], ["events", "list"], ["events", "export"],
        ["analyze", "a.mp4", "--out", "out"],
        ["evaluate", "action", "--service", "fight", "--data", "x", "--report", "y"],
        ["evaluate", "tracking", "--detections", "x", "--truth", "y", "--report", "z"],
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_78_with_file_line_path_and_hint(shell: Shell, arguments: list[str]) -> None:
    file = shell.folder / "bad.yaml"
    file.write_text("http:\n  prot: 80\nmqtt:\n  port: 70000\n")
    done = shell.run(*arguments, "--config", file)
    assert done.returncode == CONFIG
    told = done.stderr + done.stdout  # the doctor prints its findings
    assert f"{file}:2:http.prot: unknown key" in told
    assert "did you mean 'port'?" in told
    assert f"{file}:4:mqtt.port" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("max_fps", "window", "says"),
    [
        (0, {"rate_hz": 5}, "services.fight: a verdict every 10 s, but after 10 s without one"),
        (4, {"rate_hz": 0}, "services.fight: a verdict every 12.5 s"),
        (0, {"rate_hz": 0}, ""),
        (0, {"rate_hz": 5.1}, ""),
    ],
)
def test_verdicts_as_rare_as_silence_are_warned_of(
    shell: Shell, max_fps: int, window: dict[str, float], says: str
) -> None:
    done = shell.run("check-config", shell.config(SOUND | {
        "cameras": [
            {"id": "door", "source": "rtsp://cam/1", "services": ["fight"]},
            {"id": "yard", "source": "rtsp://cam/2", "services": ["fight"], "max_fps": max_fps},
            {"id": "hall", "source": "rtsp://cam/3", "services": ["fall"], "max_fps": 1},
        ],
        "services": {"fight": {"model": "shipped:fight-stgcn-nano", "window": {"stride": 50, **window}}},
    }))  # fmt: skip
    assert done.returncode == GOOD
    assert done.stderr.startswith(f"warning: {says}" if says else "")
    assert bool(done.stderr) == bool(says)


@pytest.mark.parametrize(
    ("mqtt", "warned"),
    [
        ({"compression": "deflate", "discovery": {"enabled": True}}, True),
        ({"compression": "deflate"}, False),
        ({"discovery": {"enabled": True}}, False),
    ],
)
def test_compression_that_home_assistant_cannot_read_is_warned_of(
    shell: Shell, mqtt: dict[str, Any], *, warned: bool
) -> None:
    done = shell.run("check-config", shell.config(SOUND | {"mqtt": mqtt}))
    assert done.returncode == GOOD
    assert done.stderr.startswith("warning: mqtt.compression: ") == warned
    assert bool(done.stderr) == warned


def test_a_configuration_that_is_not_there_is_78(shell: Shell) -> None:
    done = shell.run("check-config", shell.folder / "none.yaml")
    assert done.returncode == CONFIG
    assert "none.yaml: cannot be read: No such file" in done.stderr


def test_check_config(shell: Shell) -> None:
    good = shell.config(SOUND | {"cameras": [{"id": "door", "source": "rtsp://user:secret@cam/1"}]})
    done = shell.run("check-config", good)
    assert (done.returncode, done.stderr) == (GOOD, "")
    assert "door" in done.stdout
    assert "secret" not in done.stdout
    done = shell.run("check-config", good, "--json")
    assert json.loads(done.stdout) == {"ok": True, "problems": [], "cameras": ["door"], "services": ["fight", "fall"]}
    good.write_text("cameras: [{id: a, source: ''}]\nlog: {level: loud}")
    done = shell.run("check-config", good, "--json")
    assert done.returncode == CONFIG
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert [(problem["path"], problem["line"]) for problem in report["problems"]] == [
        ("cameras.0.source", 1), ("log.level", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "says", "anywhere"),
    [
        ({"pose": {"options": {"target": 3}}}, "pose.options.target: ", True),
        (
            {"pose": {"model": "shipped:pose-nan"}},
            "pose.model: shipped:pose-nan: no model of this name comes with",
            True,
        ),
        ({"services": {"fight": {"options": {"x": 1}}}}, "services.fight.options.x: ", True),
        ({"pose": {"estimator": "rtmo"}}, "pose.model: the estimator 'rtmo' needs a model", False),
        ({"pose": {"estimator": "rtmoo"}}, "pose.estimator: no plug-in 'rtmoo'", False),
        ({"services": {"fight": {"classifier": "none"}}}, "services.fight.classifier: no plug-in 'none'", False),
        ({"cameras": [{"id": "a", "source": "ftp://x/y"}]}, "cameras: camera 'a': unknown kind of source 'ftp'", False),
    ],
)
def test_what_the_agent_refuses_at_its_start_is_said_before_with_its_line(
    shell: Shell, document: dict[str, Any], says: str, *, anywhere: bool
) -> None:
    assert shell.run("check-config", shell.config(SOUND)).stderr == ""
    file = shell.config(SOUND | document)
    done = shell.run("check-config", file)
    assert done.returncode == (CONFIG if anywhere else GOOD)
    told = "error: " if anywhere else "warning: would be refused on this machine: "
    place = rf"({re.escape(str(file))}:\d+:)?{re.escape(says)}"
    assert re.match(told + place, done.stderr), done.stderr
    done = shell.run("run", "--config", file)
    assert done.returncode == CONFIG
    assert any(re.match(f"error: {place}", line) for line in done.stderr.splitlines()), done.stderr


def test_a_model_that_is_not_there_is_warned_of(shell: Shell) -> None:
    file = shell.config(SOUND | {"pose": {"model": "/nowhere/x.onnx"}})
    done = shell.run("check-config", file)
    assert done.returncode == GOOD
    assert re.fullmatch(r"warning: would be .*:\d+:pose.model: /nowhere/x.onnx is not there\n", done.stderr)


def test_a_pose_model_that_is_missing_is_warned_of_before_there_is_a_camera(shell: Shell) -> None:
    done = shell.run("check-config", shell.config({}))
    assert done.returncode == GOOD
    begin = "warning: would be refused on this machine, with its first camera: pose.model: the estimator 'rtmo' needs"
    assert done.stderr.startswith(begin)
    profile = re.findall(r"all of (\S+) to try things out", done.stderr)
    assert shell.run("check-config", *profile).stderr == ""
    wrong = SOUND | {"cameras": [], "pose": {"model": "shipped:pose-nano", "options": {"target": 3}}}
    done = shell.run("check-config", shell.config(wrong))
    assert done.returncode == GOOD, "the agent idles without a camera"
    assert "pose.options.target" in done.stderr


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        ({}, []),
        ({"tracking": {}}, ["tracking.track_threshold"]),
        ({"tracking": {"track_threshold": 0.53}}, ["tracking.track_threshold"]),
        ({"tracking": {"track_threshold": 0.51}}, []),
        ({"services": {}}, ["services.fight.model"]),
        ({"services": {"fight": {"enabled": False}}}, []),
        ({"tracking": {}, "services": {}}, ["tracking.track_threshold", "services.fight.model"]),
    ],
)
def test_what_does_not_go_with_the_pose_model_is_warned_of(
    shell: Shell, document: dict[str, Any], keys: list[str]
) -> None:
    file = shell.config(SOUND | document)
    done = shell.run("check-config", file)
    assert done.returncode == GOOD
    assert re.findall(r"^warning: (\S+): ", done.stderr, re.MULTILINE) == keys
    found = json.loads(shell.run("doctor", "--config", file, "--json").stdout)
    assert [one["text"].split(": ")[0] for one in found if (one["check"], one["state"]) == ("models", "warn")] == keys


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("clip.mp4", "{folder}/clip.mp4 is not there"),
        ("file:///none/clip.mp4", "/none/clip.mp4 is not there"),
        ("192.0.2.10", "taken for a file, and there is none (hint: an address begins with its protocol, such as rtsp"),
        ("camera.local:554/stream1", "taken for a file"),
        ("viewer:s3cret@192.0.2.10/clip.mp4", "taken for a file"),
        ("here.mp4", ""),
        (".", ""),
        ("/dev/video77", ""),
        ("77", ""),
        ("rtsp://192.0.2.10/", ""),
    ],
)
def test_a_source_that_is_taken_for_a_file_and_is_none_is_warned_of(shell: Shell, source: str, says: str) -> None:
    (shell.folder / "here.mp4").touch()
    cameras = [{"id": "off", "source": "x.mp4", "enabled": False}, {"id": "a", "source": source}]
    file = shell.config(SOUND | {"cameras": cameras})
    done = shell.run("check-config", file)
    assert done.returncode == GOOD
    told = rf"warning: {re.escape(str(file))}:\d+:cameras\.1\.source: {re.escape(says.format(folder=shell.folder))}.*\n"
    assert re.fullmatch(told if says else "", done.stderr), done.stderr
    assert "s3cret" not in done.stderr


def test_libraries_have_the_variables_of_the_service(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = proxy.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        file = shell.config({})
        (shell.folder / "agent.env").write_text(f"HTTPS_PROXY=http://127.0.0.1:{proxy.getsockname()[1]}\n")
        assert shell.run("models", "pull", "rtmo-t", "--config", file).returncode == FAILED
        thread.join(10)
    assert asked[0].startswith(b"CONNECT huggingface.co:443")


def test_every_command_has_the_variables_of_the_service(shell: Shell) -> None:
    file = shell.config({"cameras": [{"id": "door", "source": "rtsp://user:${DOOR_PASSWORD}@cam/1"}]})
    for arguments in (("check-config",), ("events", "list", "--config"), ("ota", "status", "--config")):
        assert "the environment variable DOOR_PASSWORD is not set" in shell.run(*arguments, file).stderr
    (shell.folder / "agent.env").write_text("DOOR_PASSWORD='a b'\n")
    assert shell.run("check-config", file).returncode == GOOD
    assert "no event database here" in shell.run("events", "list", "--config", file).stderr
    assert shell.run("ota", "status", "--config", file).returncode == GOOD


# --- evaluate tracking ------------------------------------------------------------------------------------------------


def test_evaluate_tracking(shell: Shell) -> None:
    truth, detections, report = shell.folder / "gt.txt", shell.folder / "det.txt", shell.folder / "report.json"
    rows = [(frame, person, 100 * person + frame, 50, 40, 90) for frame in range(1, 31) for person in (1, 2)]
    truth.write_text("".join(f"{f},{p},{x},{y},{w},{h},1,-1,-1,-1\n" for f, p, x, y, w, h in rows))
    detections.write_text("".join(f"{f},-1,{x},{y},{w},{h},0.9\n" for f, _, x, y, w, h in rows))
    arguments = ("evaluate", "tracking", "--detections", detections, "--truth", truth, "--report", report)
    done = shell.run(*arguments)
    assert done.returncode == GOOD, done.stderr
    found = json.loads(report.read_text())
    assert {"HOTA", "MOTA", "IDF1", "id_switches", "id_consistency", "ms_per_frame"} <= found.keys()
    assert found["MOTA"] == pytest.approx(1)
    assert found["id_switches"] == 0

    detections.write_text("1,-1,10,10,20,40,0.9\n2,-1,10,ten,20,40,0.9\n")
    done = shell.run(*arguments)
    assert done.returncode == FAILED
    assert f"{detections}:2: " in done.stderr
    assert "Traceback" not in done.stderr
    done = shell.run("evaluate", "tracking", "--detections", "none.txt", "--truth", truth, "--report", report)
    assert done.returncode == FAILED
    assert "none.txt: No such file" in done.stderr


# --- events -----------------------------------------------------------------------------------------------------------


def fill(state: Path, count: int) -> None:
    """A history of `count` steps, one a minute from noon on: fights on odd minutes, falls on even ones."""

    new_id = Uuid7()

    async def put_all() -> None:
        store = await OutboxStore.open(state / "events.db", OutboxConfig())
        for n in range(count):
            moment, kind = NOON + timedelta(minutes=n), "fight" if n % 2 else "fall"
            event = Event(
                new_id(), new_id(), kind, EventPhase.DETECTED, "door", (n,), 0, moment, moment, 1.5, 0.9
            )  # fmt: skip

            def payload(sequence: int | None, event: Event = event, moment: datetime = moment) -> bytes:
                assert sequence is not None
                return render(event, device_id="box", sequence=sequence, emitted_utc=moment)

            await store.put(
                Message(
                    Lane.ALARM, event.event_id, "t", payload, kind=kind, phase="detected", camera_id="door",
                    t_utc_iso=moment.isoformat(),
                )
            )  # fmt: skip
        await store.close()

    state.mkdir(parents=True, exist_ok=True)
    asyncio.run(put_all())


def test_events_list_says_where_the_evidence_of_each_incident_lies(shell: Shell) -> None:
    new_id, state, lies = Uuid7(), shell.folder / "state", "door/2026-03-01/i-1"
    unpictured = Event(new_id(), new_id(), "fall", EventPhase.DETECTED, "door", (1,), 0, NOON, NOON, 1.5, 0.9)
    steps = [
        replace(
            unpictured, event_id=new_id(), incident_id="i-1", kind="fight", phase=phase, attributes={"evidence": lies}
        )
        for phase in (EventPhase.DETECTED, EventPhase.RESOLVED)
    ]

    async def put_all() -> None:
        store = await OutboxStore.open(state / "events.db", OutboxConfig())
        for event in (*steps, unpictured):

            def payload(sequence: int | None, event: Event = event) -> bytes:
                return render(event, device_id="box", sequence=sequence or 0, emitted_utc=NOON)

            kind, phase = event.kind, event.phase.value
            await store.put(Message(Lane.ALARM, event.event_id, "t", payload, kind=kind, phase=phase, camera_id="door"))
        await store.close()

    state.mkdir(parents=True)
    asyncio.run(put_all())
    listed = shell.run("events", "list", "--config", shell.config({})).stdout
    assert [line.split()[0] for line in listed.splitlines()[:4]] == ["sequence", "3", "2", "1"]
    assert listed.splitlines()[4:] == ["", "sequence  evidence", f"2         {state}/evidence/{lies}"]


def test_events_list_and_export(shell: Shell) -> None:
    config = shell.config({})
    fill(shell.folder / "state", 6)
    done = shell.run("events", "list", "--config", config, "--limit", 2, "--json")
    assert (done.returncode, done.stderr) == (GOOD, "")
    listed = json.loads(done.stdout)
    assert [event["data"]["sequence"] for event in listed] == [6, 5]
    assert all(event.pop("delivery") == "pending" for event in listed)
    for event in listed:
        jsonschema.validate(event, load_schema())

    done = shell.run("events", "list", "--config", config, "--kind", "fight", "--since", "2026-03-01T12:02:00+00:00")
    assert done.stdout.count("fight detected") == 2
    assert "fall" not in done.stdout
    assert "no events" in shell.run("events", "list", "--config", config, "--camera", "none").stdout

    done = shell.run("events", "export", "--config", config)
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == [1, 2, 3, 4, 5, 6]
    out = shell.folder / "out.csv"
    done = shell.run("events", "export", "--config", config, "--format", "csv", "--out", out, "--kind", "fall")
    assert (done.returncode, done.stdout) == (GOOD, "")
    assert "3 events written" in done.stderr
    with out.open(newline="") as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["fall"] * 3
    done = shell.run("events", "export", "--config", config, "--out", "/proc/none/out.csv")
    assert done.returncode == FAILED
    assert done.stderr == "error: /proc/none/out.csv: No such file or directory\n"


def test_events_dead_audit_backup_and_gaps_in_the_list(shell: Shell) -> None:
    config = shell.config({})
    fill(shell.folder / "state", 3)
    new_id = Uuid7()

    def announce(loss: Loss, _series: str) -> Message:
        event_id = new_id()
        return Message(
            Lane.ALARM, event_id, "t",
            lambda number: render_gap(loss, event_id=event_id, device_id="box", sequence=number or 0, emitted_utc=NOON),
            kind=GAP,
        )  # fmt: skip

    async def trouble() -> None:
        store = await OutboxStore.open(shell.folder / "state" / "events.db", OutboxConfig(), announce=announce)
        (first, *_) = await store.fetch(Lane.ALARM, 1)
        await store.dead_letter(first.row_id, "not authorised")
        await store.accept_command("4f1c", "reload", "desk", "admin", "{}")
        await store.finish_command("4f1c", "done", b'{"id": "4f1c", "state": "done"}')
        await store.accept_command("[/4f1d]", "snapshot", "", "", "{}")  # anybody may send such an id
        for client, role in (("desk", "operator"), ("", "none"), ("", "")):
            record = refused_id("4f1e")
            await store.accept_command(record, f"of-{role}", client, role, '{"a": 1}')
            await store.finish_command(record, "refused", b'{"id": "4f1e", "state": "refused", "detail": "it may not"}')
        await store.close()

    asyncio.run(trouble())
    listed = shell.run("events", "list", "--config", config).stdout
    assert "gap 1-1: refused" in listed
    assert "dead" in listed
    dead = json.loads(shell.run("events", "dead", "--config", config, "--json").stdout)
    assert [(letter["sequence"], letter["reason"]) for letter in dead] == [(1, "not authorised")]
    assert "not authorised" in shell.run("events", "dead", "--config", config).stdout
    *refused, strange, command = json.loads(shell.run("events", "audit", "--config", config, "--json").stdout)
    assert {(one["id"], one["command"], one["answer"]["detail"]) for one in refused} == {
        ("4f1e", f"of-{role}", "it may not") for role in ("operator", "none", "")
    }  # fmt: skip
    assert strange["id"] == "[/4f1d]"
    assert (command["id"], command["client"], command["answer"]["state"]) == ("4f1c", "desk", "done")
    audit = shell.run("events", "audit", "--config", config).stdout
    assert "reload" in audit
    assert "[/4f1d]" in audit
    rows = [" ".join(line.split()[2:]) for line in audit.splitlines()]
    for sender in ("of-operator desk operator", "of-none unsigned none", "of- unverified"):
        assert f'{sender} refused it may not 4f1e {{"a": 1}}' in rows

    copy = shell.folder / "copy.db"
    done = shell.run("events", "backup", copy, "--config", config)
    assert (done.returncode, done.stdout) == (GOOD, "")
    assert f"written to {copy}" in done.stderr
    assert copy.stat().st_size > 4096
    done = shell.run("events", "backup", copy, "--config", config)
    assert done.returncode == FAILED
    assert "is there already" in done.stderr


def test_events_without_a_database(shell: Shell) -> None:
    done = shell.run("events", "list", "--config", shell.config({}))
    assert done.returncode == FAILED
    assert "events.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(shell: Shell) -> None:
    config = shell.config({})
    fill(shell.folder / "state", 400)
    exporting = subprocess.Popen(
        shell.command("events", "export", "--config", config), env=shell.environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert exporting.stdout is not None
    assert exporting.stderr is not None
    exporting.stdout.readline()
    exporting.stdout.close()
    stderr = exporting.stderr.read()
    exporting.stderr.close()
    assert exporting.wait(30) == GOOD
    assert stderr == b""


# --- doctor, run, demo ------------------------------------------------------------------------------------------------


def good_box(shell: Shell) -> dict[str, Any]:
    recording = walkers(1, 5, size=(240, 320))
    return {
        "cameras": [{"id": "hall", "source": str(make_video(shell.folder / "hall.mp4", 5, size=(320, 240)))}],
        "pose": {"estimator": "replay", "model": str(save_recording(shell.folder / "poses.npz", recording))},
        "services": {"fight": {"classifier": "scripted", "model": "/none"}, "fall": {"enabled": False}},
    }


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    return {finding["check"]: (finding["state"], finding["text"]) for finding in json.loads(done.stdout)}


def test_doctor_on_a_good_box(shell: Shell) -> None:
    config = shell.config(good_box(shell) | {"http": {"port": 0}})
    done = shell.run("doctor", "--config", config, "--json")
    found = findings(done)
    assert done.returncode == GOOD, found
    assert found["pose model"] == ("good", "replay-1")
    assert found["service fight"] == ("good", "scripted-fight")
    assert found["camera hall"] == ("good", "320x240 at 10.0 frames/s")
    assert found["event database"][1].startswith("none yet")
    assert "service fall" not in found
    assert "camera hall" in shell.run("doctor", "--config", config).stdout


def test_doctor_makes_no_state_folder(shell: Shell) -> None:
    box = good_box(shell) | {"http": {"port": 0}}
    done = shell.run("doctor", "--config", shell.config(box), "--json")
    assert findings(done)["state folder"] == (
        "good", f"{shell.folder / 'state'}: not there yet, the agent makes it at its start",
    )  # fmt: skip
    assert not (shell.folder / "state").exists()
    blocked = shell.folder / "blocked"
    blocked.write_text("a file")
    done = shell.run("doctor", "--config", shell.config(box | {"state_dir": str(blocked / "x")}), "--json")
    state, text = findings(done)["state folder"]
    assert (done.returncode, state) == (FAILED, "bad")
    assert f"cannot be made in {blocked}" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who asks for the service")
def test_doctor_says_what_the_service_cannot_write(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SERVICE_USER", "nobody")  # there is one on every machine
    folder, config = shell.folder / "state", shell.config(good_box(shell) | {"http": {"port": 0}})

    def found() -> tuple[str, str]:
        return findings(shell.run("doctor", "--config", config, "--json"))["state folder"]

    assert found()[0] == "warn"
    assert "mistyped? Outside /var/lib/recognizer the service needs a ReadWritePaths=" in found()[1]
    monkeypatch.setattr(doctor, "SERVICE_STATE", shell.folder)
    assert found()[0] == "good"
    folder.mkdir()
    assert found() == ("warn", f"{folder}: not of the service's user (hint: chown -R nobody: {folder})")
    shutil.chown(folder, "nobody")
    assert found()[0] == "good"


def test_the_self_test_blames_an_action_model_that_finds_nothing(shell: Shell) -> None:
    box = good_box(shell)
    box["services"]["fight"] |= {"options": {"script": [0.0]}, "window": {"min_track_frames": 1}}
    done = shell.run("doctor", "--self-test", "--config", shell.config(box | {"http": {"port": 0}}), "--json")
    found = findings(done)
    assert done.returncode == FAILED, found
    assert found["self-test: fight"] == ("bad", "0 of 1 found, 0 false alarms, on true poses")
    assert found["self-test: pose model"][0] == "warn"
    assert [check for check, (state, _) in found.items() if state == "bad"] == ["self-test: fight"]


def test_a_box_whose_estimator_does_not_know_drawn_people_is_not_condemned(shell: Shell) -> None:
    """The shipped action models, and an estimator that sees nobody."""
    box = good_box(shell) | {"services": {}}
    nobody = save_recording(shell.folder / "nobody.npz", [People.empty()])
    box["pose"] = {"estimator": "replay", "model": str(nobody)}
    done = shell.run("doctor", "--self-test", "--config", shell.config(box | {"http": {"port": 0}}), "--json")
    found = findings(done)
    assert done.returncode == GOOD, found
    assert found["self-test: fight"] == ("good", "1 of 1 found, 0 false alarms, on true poses")
    assert found["self-test: fall"] == ("good", "1 of 1 found, 0 false alarms, on true poses")
    state, text = found["self-test: pose model"]
    assert state == "warn"
    assert text.startswith("0 of ")
    assert "photographs" in text
    assert "analyze" in text


def test_the_self_test_of_a_box_without_a_pose_model_is_bad(shell: Shell) -> None:
    box = good_box(shell)
    box["pose"] = {"estimator": "rtmo", "model": str(shell.folder / "none.onnx")}
    done = shell.run("doctor", "--self-test", "--config", shell.config(box | {"http": {"port": 0}}), "--json")
    assert done.returncode == FAILED
    state, text = findings(done)["self-test: pose model"]
    assert state == "bad"
    assert "none.onnx" in text


def test_doctor_on_a_bad_box_goes_on_to_the_end_and_keeps_secrets(shell: Shell) -> None:
    box = good_box(shell)
    box["cameras"] = [
        {"id": "gone", "source": str(shell.folder / "none.mp4")},
        {"id": "net", "source": "rtsp://admin:s3cret@127.0.0.1:1/live?token=abc", "read_timeout_s": 1},
    ]
    box["services"]["fight"]["model"] = str(shell.folder / "none")
    box["services"]["fight"]["classifier"] = "stgcn"
    box["pose"]["model"] = str(shell.folder / "none.npz")  # the plug-in raises what it likes
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mqtt = {"port": 1, "username": "u", "password": "s3cret"}
        hook = {"type": "webhook", "url": "https://x/", "secret_files": [str(shell.folder / "none")]}
        sinks = {"pager": hook, "lines": {"type": "file"}}
        config = shell.config(box | {"http": {"port": port}, "mqtt": mqtt, "sinks": sinks})
        done = shell.run("doctor", "--config", config, "--json")
    found = findings(done)
    assert done.returncode == FAILED
    assert found["sink lines"][0] == "good"
    assert "no such file" in found["camera gone"][1]
    assert "Connection refused" in found["camera net"][1]
    bad = {check for check, (state, _) in found.items() if state == "bad"}
    assert bad >= {"pose model", "service fight", "camera gone", "camera net", "mqtt", "sink pager"}
    assert "none.npz" in found["pose model"][1]
    assert found["http"][0] == "warn"
    assert "running already" in found["http"][1]
    assert "s3cret" not in done.stdout + done.stderr
    assert "abc" not in found["camera net"][1]
    assert "Traceback" not in done.stderr


def test_run_with_a_state_folder_that_cannot_be_made(shell: Shell) -> None:
    blocked = shell.folder / "blocked"
    blocked.write_text("a file")
    done = shell.run("run", "--config", shell.config(good_box(shell) | {"state_dir": str(blocked)}))
    assert done.returncode == FAILED
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_with_a_source_nothing_can_read_is_a_configuration_error(shell: Shell) -> None:
    box = good_box(shell)
    box["cameras"] = [{"id": "a", "source": "zzz://x"}, {"id": "b", "source": "yyy://x"}]
    done = shell.run("run", "--config", shell.config(box))
    assert done.returncode == CONFIG
    assert "camera 'a': unknown kind of source 'zzz'" in done.stderr
    assert "camera 'b': unknown kind of source 'yyy'" in done.stderr
    assert "Traceback" not in done.stderr


def test_bug_of_a_plug_in_is_named_without_secrets(shell: Shell) -> None:
    box = good_box(shell)
    box["pose"]["model"] = str(shell.folder / "password=s3cret")  # the plug-in opens it and does not find it
    done = shell.run("run", "--config", shell.config(box))
    assert done.returncode == FAILED
    assert "plug-in 'replay'" in done.stderr
    assert "FileNotFoundError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


@pytest.mark.timeout(60)
def test_demo_says_what_keeps_it_from_starting(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        page = shell.run("demo", "--seconds", "2", "--port", port, "--mqtt-port", "0")
        broker = shell.run("demo", "--seconds", "2", "--port", "0", "--mqtt-port", port)
    for done, option in ((page, "--port"), (broker, "--mqtt-port")):
        assert done.returncode == CONFIG
        assert re.search(rf"{option}: 127\.0\.0\.1:{port}: Address already in use \(hint: ", done.stderr)
    for option in ("--port", "--mqtt-port"):
        no_port = shell.run("demo", option, "99999")
        assert no_port.returncode == USAGE
        assert f"argument {option}: expected a port up to 65535, got 99999" in no_port.stderr
    no_file = shell.run("demo", "--seconds", "2", "--video", shell.folder / "none.mp4")
    assert no_file.returncode == USAGE
    assert "none.mp4: there is no such file" in no_file.stderr


def test_demo_wants_the_plugin_and_its_model_together(shell: Shell) -> None:
    done = shell.run("demo", "--pose-plugin", "posenet")
    assert done.returncode == USAGE
    assert "--pose-plugin and --pose-model go together" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_an_error_and_a_reader_that_has_gone_is_none(
    shell: Shell, unbuffered: str
) -> None:
    """With buffers as without: the exit code is one of ours, and nothing is said twice."""
    command = shell.command("check-config", shell.config(SOUND), "--json")
    environment = shell.environment | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")
    readable, writable = os.pipe()
    os.close(readable)
    with os.fdopen(writable, "w") as gone:
        done = subprocess.run(command, env=environment, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
