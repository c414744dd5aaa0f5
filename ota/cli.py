"""The command line `recognizer-fleet`: arguments in, exit code out. The work is in `ota.commands`.

Exit codes: 0 good, 1 it ran and something failed, 2 usage, 78 configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from agent import __version__
from agent.cli import run_command
from agent.config.schema import LogConfig
from agent.observe.logging import configure_logging

COMMANDS = ("keys", "sign", "publish", "serve", "rollout", "devices", "users")
"""Modules of `ota.commands`. Each has `add_parser(commands)`, which imports nothing heavy, and `run(args, env) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    args = build_parser().parse_args(argv)
    configure_logging(LogConfig(level="warning"))
    return run_command(f"ota.commands.{args.command}", args)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="recognizer-fleet", description="Signs models and configurations, and lets them out to the devices."
    )
    parser.add_argument("--version", action="version", version=f"recognizer-fleet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"ota.commands.{name}").add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
