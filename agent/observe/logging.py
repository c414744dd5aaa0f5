"""Logging: structlog and the standard library through one handler on stderr, secrets masked, level changed live.

`_log.info("camera_connected", camera=..., attempt=...)`: an event name and its facts. JSON under systemd and wherever
stderr is no terminal, coloured text on a terminal. Every record, also those of libraries and tracebacks, passes the
masking processor last, so no secret reaches the output by any way.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from agent.config.schema import LogConfig
from agent.masking import MASK, mask_text

__all__ = ["configure_logging", "mask_text", "mask_value", "set_level"]

_SECRET_KEY = re.compile(
    r"(?i)(^|[_.-])(password|passwd|pwd|passphrase|secret|token|authorization|api[_-]?key|private[_-]?key|cookie"
    r"|credentials?)$",
)
_CHATTY = ("aiohttp.access", "amqtt", "transitions", "asyncio", "tuf", "urllib3")
"""Libraries whose `info` tells an operator nothing; heard in full at level debug."""
_PRIORITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""Syslog priorities; journald takes them from a `<N>` in front of the line."""


def mask_value(value: object, key: str = "") -> object:
    """`value` with every secret in it masked, however deep it lies; under a secret's `key` it is masked whole."""
    if key and _SECRET_KEY.search(key) and value not in (None, ""):
        return MASK
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {name: mask_value(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [mask_value(inner) for inner in value]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return mask_text(str(value))  # text, exceptions, paths, configuration models


def _mask(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        event[key] = mask_value(value, key)
    return event


def _json(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
    ordered = {"time": event.pop("time", ""), "level": event.pop("level", ""), "event": event.pop("event", "")}
    return str(structlog.processors.JSONRenderer(ensure_ascii=False)(None, "", {**ordered, **event}))


def _with_priority(render: Processor) -> Processor:
    def render_for_journal(logger: WrappedLogger, method: str, event: EventDict) -> str:
        priority = _PRIORITY.get(str(event.get("level")), 6)
        line = str(render(logger, method, event))
        return f"<{priority}>{line}"

    return render_for_journal


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """True when `stream` is the one that systemd connected to the journal (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"


def _renderer(config: LogConfig, stream: TextIO, environ: Mapping[str, str]) -> Processor:
    if config.format == "console" or (config.format == "auto" and stream.isatty()):
        return structlog.dev.ConsoleRenderer(colors=stream.isatty() and "NO_COLOR" not in environ, timestamp_key="time")
    return _with_priority(_json) if _is_journal(stream, environ) else _json


def configure_logging(
    config: LogConfig,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Send all logging of the process to `stream` (default stderr) as `config` says. May be called again."""
    stream = stream if stream is not None else sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _mask,  # after tracebacks have become text, before anything is rendered
                _renderer(config, stream, environ),
            ],
        ),
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    set_level(config.level)


def set_level(level: str) -> None:
    """Change the level (`debug`, `info`, `warning`, `error`) of everything from now on."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(number if number <= logging.DEBUG else max(number, logging.WARNING))
