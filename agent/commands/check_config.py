"""`recognizer-agent check-config FILE...`"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial

from agent.capture.files import VIDEO_SUFFIXES
from agent.capture.sources import recorded_path
from agent.cli import EXIT_CONFIG, EXIT_GOOD
from agent.commands.pairing import mismatches
from agent.config.load import Places, load_with_places, located
from agent.config.schema import AgentConfig
from agent.daemon.cameras import check_sources
from agent.errors import ConfigError, ConfigProblem, ModelError
from agent.masking import mask_text
from agent.plugins import check_action_classifier, check_pose_estimator


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print the outcome; with --json as `{"ok": ..., "problems": [...]}`. What is allowed and hardly meant, and what the agent would
    refuse on this machine and perhaps not on the one that the file is for, goes to stderr."""
    try:
        config, places = load_with_places(args.file, env=env)
        refused = _tried(config, places)
    except ConfigError as error:
        if not args.json:
            raise
        print(json.dumps({"ok": False, "problems": [asdict(problem) for problem in error.problems]}))
        return EXIT_CONFIG
    for warning in (*_too_rare(config), *_compressed(config), *refused, *_absent(config, places), *mismatches(config)):
        print(f"warning: {mask_text(warning)}", file=sys.stderr)
    services = [name for name, service in config.services.items() if service.enabled]
    if args.json:
        print(json.dumps({"ok": True, "problems": [], "cameras": [c.id for c in config.cameras], "services": services}))
        return EXIT_GOOD
    cameras = ", ".join(camera.id for camera in config.cameras) or "none"
    print(f"good: cameras: {cameras}; services: {', '.join(services)}; pose estimator: {config.pose.estimator}")
    return EXIT_GOOD


def _tried(config: AgentConfig, places: Places) -> list[str]:
    """What would keep the agent from watching its cameras with its models here, or the first camera that it is given. Nothing is opened.

    Raises ConfigError for options of models that are wrong on any machine, if there is a camera.
    """
    cameras = [camera for camera in config.cameras if camera.enabled]
    services = {name: service for name, service in config.services.items() if service.enabled}
    found: list[ConfigProblem] = [
        *_problems("cameras", partial(check_sources, cameras)),
        *_problems("pose.estimator", partial(check_pose_estimator, config.pose)),
        *(
            problem
            for name, service in services.items()
            for problem in _problems(f"services.{name}.classifier", partial(check_action_classifier, name, service))
        ),
    ]
    found = [located(problem, places) for problem in found]
    wrong = [problem for problem in found if ".options." in problem.path]
    if wrong and cameras:  # without one the agent idles
        raise ConfigError(wrong)
    models = {"pose.model": config.pose.model, "pose.cpu_model": config.pose.cpu_model}
    models |= {f"services.{name}.model": service.model for name, service in services.items()}
    missing = [key for key, path in models.items() if path is not None and not path.exists()]
    found += [located(ConfigProblem(f"{models[key]} is not there", path=key), places) for key in missing]
    when = "" if cameras else ", with its first camera"
    return [f"would be refused on this machine{when}: {problem}" for problem in found]


def _problems(path: str, check: Callable[[], None]) -> Iterator[ConfigProblem]:
    try:
        check()
    except ConfigError as error:
        yield from error.problems
    except ModelError as error:
        yield ConfigProblem(str(error), path=path)


def _absent(config: AgentConfig, places: Places) -> Iterator[str]:
    """Recordings that are not there; what a camera's address is taken for without its protocol is none either."""
    for number, camera in enumerate(config.cameras):
        path = recorded_path(camera.source) if camera.enabled else None
        if path is None or os.path.exists(os.path.expanduser(path)):  # noqa: PTH110, PTH111  a path's own raise
            continue
        recorded = path.suffix.lower() in VIDEO_SUFFIXES and "@" not in camera.source
        hint = "" if recorded else "an address begins with its protocol, such as rtsp://192.0.2.10/stream1"
        message = f"{path} is not there" if recorded else "taken for a file, and there is none"
        yield str(located(ConfigProblem(message, path=f"cameras.{number}.source", hint=hint), places))


def _too_rare(config: AgentConfig) -> Iterator[str]:
    """Services whose rules take the pause between two verdicts for silence, as far as the configuration says how long that is."""
    for name, service in config.services.items():
        watching = [one for one in config.cameras if one.enabled and (one.services is None or name in one.services)]
        rates_hz = [service.window.rate_hz or camera.max_fps for camera in watching]
        pause_s = max((service.window.stride / rate_hz for rate_hz in rates_hz if rate_hz), default=0.0)
        if service.enabled and pause_s >= service.rules.silence_s:
            yield (
                f"services.{name}: a verdict every {pause_s:g} s, but after {service.rules.silence_s:g} s without one its "
                "incidents end and its alerts are forgotten; raise rules.silence_s or lower window.stride"
            )


def _compressed(config: AgentConfig) -> Iterator[str]:
    """Events that Home Assistant, which is told to read them, cannot read."""
    if config.mqtt.discovery.enabled and config.mqtt.compression != "none":
        yield (
            f"mqtt.compression: {config.mqtt.compression}: with mqtt.discovery.enabled Home Assistant is told to read the events, "
            "and it expects plain JSON; set compression to none, or turn discovery off"
        )
