"""`recognizer-agent doctor`: looks for what keeps this box from working, and says what to do about it."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import platform
import pwd
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from agent import __version__
from agent.capture.base import redact
from agent.capture.sources import build_source
from agent.cli import EXIT_CONFIG, EXIT_FAILED, EXIT_GOOD
from agent.commands.finding import Finding
from agent.commands.output import table_console
from agent.commands.pairing import mismatches
from agent.commands.self_test import self_test
from agent.config.delivery import SinkConfig
from agent.config.load import load_config
from agent.config.paths import prepare_state_dir
from agent.config.schema import AgentConfig, CameraConfig, ServiceConfig
from agent.errors import ConfigError, RecognizerError, TransientError
from agent.health.probes import Probes
from agent.mqtt.client import MqttClient
from agent.mqtt.topics import Topics
from agent.net import check_free
from agent.observe.logging import mask_text
from agent.outbox.history import EventArchive
from agent.plugins import installed
from agent.recognition import create_classifier, create_estimator
from agent.sinks.build import build_sink

MQTT_WAIT_S = 5.0
SERVICE_USER, SERVICE_STATE = "recognizer", Path("/var/lib/recognizer")
"""Whom the installed unit runs as, and where alone its sandbox lets it write (systemd/recognizer-agent.service)."""


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """All checks; exit code 1 when one is bad, 78 when the configuration cannot be read."""
    try:
        config = load_config(args.config, env=env)
    except ConfigError as error:
        findings = [Finding("configuration", "bad", str(problem)) for problem in error.problems]
        _print(findings, as_json=args.json)
        return EXIT_CONFIG
    findings = list(examine(config))
    if args.self_test:
        findings += self_test(config)
    _print(findings, as_json=args.json)
    return EXIT_FAILED if any(finding.state == "bad" for finding in findings) else EXIT_GOOD


def examine(config: AgentConfig) -> Iterator[Finding]:
    """The findings, one check after the other; none of them stops the next."""
    yield Finding(
        "agent", "good", f"{__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )
    yield Finding("configuration", "good", f"device {config.device_id}, {len(config.cameras)} cameras")
    yield _checked("state folder", lambda: _state_folder(config))
    yield _checked("event database", lambda: _database(config))
    yield _checked("gpu", lambda: _gpu(config))
    yield _checked("onnxruntime", _onnxruntime)
    yield Finding("plug-ins", "good", ", ".join(f"{plugin.group.name.lower()}:{plugin}" for plugin in installed()))
    yield _checked("pose model", lambda: _pose(config))
    for name, service in config.services.items():
        if service.enabled:
            yield _checked(f"service {name}", partial(_service, name, service))
    for warning in mismatches(config):
        yield Finding("models", "warn", warning)
    for camera in config.cameras:
        if camera.enabled:
            yield _checked(f"camera {camera.id}", partial(_camera, camera))
    if config.mqtt.enabled:
        yield _checked("mqtt", lambda: _mqtt(config))
    for name, sink in config.sinks.items():
        yield _checked(f"sink {name}", partial(_sink, name, sink, config))
    if config.http.enabled:
        yield _checked("http", lambda: _http(config))


Outcome = tuple[str, str]


def _checked(name: str, check: Callable[[], Outcome]) -> Finding:
    try:
        state, text = check()
    except (RecognizerError, OSError) as error:
        state, text = "bad", str(error)
    except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and to say so is what a doctor is for
        state, text = "bad", f"{type(error).__name__}: {error}"
    text = mask_text(text)  # a library's message may hold the URL that we gave it
    return Finding(name, state, text)


def _good(model: object) -> Outcome:
    name = str(getattr(model, "name", model))
    close = getattr(model, "close", None)
    if callable(close):
        close()
    return "good", name


def _state_folder(config: AgentConfig) -> Outcome:
    folder, uid = config.state_dir, _service_uid()
    if not folder.exists():  # whoever makes it owns it: that is for the agent
        return _missing_folder(folder, for_service=uid is not None)
    prepare_state_dir(folder)
    if uid not in {None, folder.stat().st_uid}:
        return "warn", f"{folder}: not of the service's user (hint: chown -R {SERVICE_USER}: {folder})"
    free = shutil.disk_usage(config.state_dir).free
    text = f"{config.state_dir}, {free / 1e9:.1f} GB free"
    return ("good" if free >= config.health.disk_min_free_bytes else "warn"), text


def _missing_folder(folder: Path, *, for_service: bool) -> Outcome:
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        hint = "set state_dir to a folder that the agent's user may write"
        return "bad", f"{folder}: cannot be made in {above} (hint: {hint})"
    if for_service and not folder.is_relative_to(SERVICE_STATE):
        hint = f"mistyped? Outside {SERVICE_STATE} the service needs a ReadWritePaths= of yours: operations.md, The sandbox"
        return "warn", f"{folder}: not there, and not the service's to make (hint: {hint})"
    return "good", f"{folder}: not there yet, the agent makes it at its start"


def _service_uid() -> int | None:
    """The id of the service's user, where root asks in its place; anybody else asks for an agent of their own."""
    try:
        return pwd.getpwnam(SERVICE_USER).pw_uid if os.geteuid() == 0 else None
    except KeyError:
        return None


def _database(config: AgentConfig) -> Outcome:
    path = config.state_dir / config.outbox.file
    if not path.exists():
        return "good", "none yet; made at the first start"
    with EventArchive(path) as archive:
        waiting, dead = sum(archive.pending().values()), len(archive.dead_letters())
    text = f"{path.name}, {path.stat().st_size / 1e6:.1f} MB, {waiting} messages wait, {dead} refused by the broker"
    return ("warn" if dead else "good"), text


def _gpu(config: AgentConfig) -> Outcome:
    probes = Probes.open(config.state_dir)
    try:
        gpus = asyncio.run(probes.sample()).gpus
    finally:
        probes.close()
    if not gpus:
        return "warn", "none found: models run on the CPU"
    return "good", "; ".join(f"{gpu.gpu_id} {gpu.name} {gpu.temperature_c} C" for gpu in gpus)


def _onnxruntime() -> Outcome:
    try:
        import onnxruntime
    except ImportError:
        return "bad", "not installed (hint: pip install 'recognizer-agent[cpu]' or '[gpu]')"
    return "good", f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"


def _pose(config: AgentConfig) -> Outcome:
    return _good(create_estimator(config))


def _service(name: str, service: ServiceConfig) -> Outcome:
    return _good(create_classifier(name, service))


def _camera(camera: CameraConfig) -> Outcome:
    source = build_source(camera).source
    try:
        info = source.open()
        picture = source.read()
    finally:
        source.close()
    if picture is None:
        return "bad", f"{redact(camera.source)}: opened, but holds no picture"
    return "good", f"{info.width}x{info.height} at {info.fps:.1f} frames/s"


def _mqtt(config: AgentConfig) -> Outcome:
    return asyncio.run(_try_mqtt(config))


async def _try_mqtt(config: AgentConfig) -> Outcome:
    where = f"{config.mqtt.host}:{config.mqtt.port}"
    trial = config.mqtt.model_copy(update={"client_id": f"recognizer-{config.device_id}-doctor"})
    client = MqttClient(trial, Topics(config.mqtt.base_topic, f"{config.device_id}-doctor"[-64:].lstrip("-_")))
    try:
        async with asyncio.timeout(MQTT_WAIT_S):
            await client.try_connecting()
    except TimeoutError:
        return "bad", f"{where}: no answer (events are kept until it answers)"
    except TransientError as error:
        return "bad", f"{error} (events are kept until it answers)"
    return "good", f"{where}, protocol {config.mqtt.protocol}"


def _sink(name: str, sink: SinkConfig, config: AgentConfig) -> Outcome:
    build_sink(name, sink, state_dir=config.state_dir)
    return "good", f"{sink.type}, its configuration and files can be used"


def _http(config: AgentConfig) -> Outcome:
    try:
        check_free(config.http.host, config.http.port)
    except OSError as error:
        hint = " (is the agent running already?)" if error.errno == errno.EADDRINUSE else ""
        return "warn", f"{config.http.host}:{config.http.port}: {error.strerror}{hint}"
    return "good", f"{config.http.host}:{config.http.port} is free"


def _print(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
        return
    table = Table("check", "", "finding", box=None, pad_edge=False)
    colours = {"good": "green", "warn": "yellow", "bad": "red"}
    for finding in findings:
        table.add_row(finding.check, f"[{colours[finding.state]}]{finding.state}[/]", escape(finding.text))
    table_console().print(table)
