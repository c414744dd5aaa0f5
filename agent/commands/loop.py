"""The event loop of commands that run until they are told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import uvloop

from agent.causes import first_cause, leaves
from agent.cli import EXIT_GOOD
from agent.errors import RecognizerError

_log = structlog.get_logger(__name__)


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
