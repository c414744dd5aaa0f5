"""`recognizer-agent run --config FILE`: the daemon."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import uvloop

from agent.app import Agent
from agent.causes import first_cause
from agent.cli import EXIT_GOOD
from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.observe.logging import configure_logging


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Until SIGTERM or SIGINT. A bug in a core part leaves as an exception: systemd restarts the process."""

    def load() -> AgentConfig:
        return load_config(args.config, env=env)

    config = load()
    configure_logging(config.log)
    return run_loop(lambda: Agent(config, environ=env, load=load).run())


def run_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run the coroutine that `main` makes on uvloop; a group of errors leaves as the one that caused the others."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main())
        except BaseExceptionGroup as group:
            raise first_cause(group) from group
    return EXIT_GOOD
