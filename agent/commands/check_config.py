"""`recognizer-agent check-config FILE...`"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from agent.cli import EXIT_CONFIG, EXIT_GOOD
from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.errors import ConfigError


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print the outcome; with --json as `{"ok": ..., "problems": [...]}`. What is allowed and hardly meant goes to stderr."""
    try:
        config = load_config(args.file, env=env)
    except ConfigError as error:
        if not args.json:
            raise
        print(json.dumps({"ok": False, "problems": [asdict(problem) for problem in error.problems]}))
        return EXIT_CONFIG
    for warning in _too_rare(config):
        print(f"warning: {warning}", file=sys.stderr)
    services = [name for name, service in config.services.items() if service.enabled]
    if args.json:
        print(json.dumps({"ok": True, "problems": [], "cameras": [c.id for c in config.cameras], "services": services}))
        return EXIT_GOOD
    cameras = ", ".join(camera.id for camera in config.cameras) or "none"
    print(f"good: cameras: {cameras}; services: {', '.join(services)}; pose estimator: {config.pose.estimator}")
    return EXIT_GOOD


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
