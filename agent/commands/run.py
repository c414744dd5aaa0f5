"""`recognizer-agent run --config FILE`: the daemon."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import structlog

from agent.cli import EXIT_FAILED
from agent.config.load import load_config, load_with_places, located
from agent.config.schema import AgentConfig
from agent.errors import ConfigError, RecognizerError
from agent.memory import limit_arenas
from agent.observe.logging import configure_logging

_log = structlog.get_logger(__name__)


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Until SIGTERM or SIGINT. A bug in a core part ends it with exit code 1: systemd restarts the process."""

    def load() -> AgentConfig:
        return load_config(args.config, env=env)

    config, places = load_with_places(args.config, env=env)
    configure_logging(config.log)
    limit_arenas()
    from agent.app import Agent  # heavy: what is wrong with the configuration is said before
    from agent.commands.loop import run_loop

    try:
        return run_loop(lambda: Agent(config, environ=env, load=load).run())
    except ConfigError as error:
        raise ConfigError([located(problem, places) for problem in error.problems]) from error
    except RecognizerError:
        raise  # has a message for the user
    except Exception:  # noqa: BLE001 - the last frame: systemd sees the exit code, people the log
        _log.exception("agent_failed")  # through the log, where secrets are masked, not by the interpreter
        return EXIT_FAILED
