"""`recognizer-agent check-config FILE...`"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial

from agent.cli import EXIT_CONFIG, EXIT_GOOD
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
    for warning in (*_too_rare(config), *refused):
        print(f"warning: {mask_text(warning)}", file=sys.stderr)
    services = [name for name, service in config.services.items() if service.enabled]
    if args.json:
        print(json.dumps({"ok": True, "problems": [], "cameras": [c.id for c in config.cameras], "services": services}))
        return EXIT_GOOD
    cameras = ", ".join(camera.id for camera in config.cameras) or "none"
    print(f"good: cameras: {cameras}; services: {', '.join(services)}; pose estimator: {config.pose.estimator}")
    return EXIT_GOOD


def _tried(config: AgentConfig, places: Places) -> list[str]:
    """What would keep the agent from watching its cameras with its models here. Nothing is opened.

    Raises ConfigError for options of models that are wrong on any machine.
    """
    cameras = [camera for camera in config.cameras if camera.enabled]
    if not cameras:
        return []
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
    if wrong := [problem for problem in found if ".options." in problem.path]:
        raise ConfigError(wrong)
    models = {"pose.model": config.pose.model, "pose.cpu_model": config.pose.cpu_model}
    models |= {f"services.{name}.model": service.model for name, service in services.items()}
    missing = [key for key, path in models.items() if path is not None and not path.exists()]
    found += [located(ConfigProblem(f"{models[key]} is not there", path=key), places) for key in missing]
    return [f"would be refused on this machine: {problem}" for problem in found]


def _problems(path: str, check: Callable[[], None]) -> Iterator[ConfigProblem]:
    try:
        check()
    except ConfigError as error:
        yield from error.problems
    except ModelError as error:
        yield ConfigProblem(str(error), path=path)


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
