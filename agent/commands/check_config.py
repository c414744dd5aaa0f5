"""`recognizer-agent check-config FILE...`"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict

from agent.cli import EXIT_CONFIG, EXIT_GOOD
from agent.config.load import load_config
from agent.errors import ConfigError


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print the outcome; with --json as `{"ok": ..., "problems": [...]}`."""
    try:
        config = load_config(args.file, env=env)
    except ConfigError as error:
        if not args.json:
            raise
        print(json.dumps({"ok": False, "problems": [asdict(problem) for problem in error.problems]}))
        return EXIT_CONFIG
    services = [name for name, service in config.services.items() if service.enabled]
    if args.json:
        print(json.dumps({"ok": True, "problems": [], "cameras": [c.id for c in config.cameras], "services": services}))
        return EXIT_GOOD
    cameras = ", ".join(camera.id for camera in config.cameras) or "none"
    print(f"good: cameras: {cameras}; services: {', '.join(services)}; pose estimator: {config.pose.estimator}")
    return EXIT_GOOD
