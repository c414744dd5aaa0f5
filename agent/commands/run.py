"""`recognizer-agent run --config FILE`: the daemon."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog
import uvloop

from agent.app import Agent
from agent.causes import first_cause, leaves
from agent.cli import EXIT_FAILED, EXIT_GOOD
from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.errors import RecognizerError
from agent.memory import limit_arenas
from agent.observe.logging import configure_logging

_log = structlog.get_logger(__name__)


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Until SIGTERM or SIGINT. A bug in a core part ends it with exit code 1: systemd restarts the process."""

    def load() -> AgentConfig:
        return load_config(args.config, env=env)

    config = load()
    configure_logging(config.log)
    limit_arenas()
    try:
        return run_loop(lambda: Agent(config, environ=env, load=load).run())
    except RecognizerError:
        raise  # has a message for the user
    except Exception:  # noqa: BLE001 - the last frame: systemd sees the exit code, people the log
        _log.exception("agent_failed")  # through the log, where secrets are masked, not by the interpreter
        return EXIT_FAILED


def run_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run the coroutine that `main` makes on uvloop; a group of errors leaves as the one that caused the others."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main())
        except BaseExceptionGroup as group:
            cause = first_cause(group)
            for error in leaves(group):
                if error is not cause and not isinstance(error, RecognizerError):
                    _log.error("also_failed", exc_info=error)
            raise cause from group
    return EXIT_GOOD
