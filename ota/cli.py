"""The command line `recognizer-fleet`: arguments in, exit code out. The work is in `ota.commands`.

Exit codes: 0 good, 1 it ran and something failed, 2 usage, 78 configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from agent import __version__
from agent.config.schema import LogConfig
from agent.errors import ConfigError, RecognizerError
from agent.observe.logging import configure_logging, mask_text

EXIT_GOOD, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG = 0, 1, 2, 78
EXIT_INTERRUPTED = 130

COMMANDS = ("keys", "sign", "publish", "serve", "rollout", "devices")
"""Modules of `ota.commands`. Each has `add_parser(commands)`, which imports nothing heavy, and `run(args, env) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    args = build_parser().parse_args(argv)
    configure_logging(LogConfig(level="warning"))
    try:
        code: int = import_module(f"ota.commands.{args.command}").run(args, dict(os.environ))
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {mask_text(str(problem))}", file=sys.stderr)
        return EXIT_CONFIG
    except RecognizerError as error:
        print(f"error: {mask_text(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:  # what the user named cannot be read or written
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_GOOD
        print(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="recognizer-fleet", description="Signs models and configurations, and lets them out to the devices."
    )
    parser.add_argument("--version", action="version", version=f"recognizer-fleet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        if find_spec(f"ota.commands.{name}"):
            import_module(f"ota.commands.{name}").add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
