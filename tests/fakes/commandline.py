"""The command line called in this process: quick enough for many cases. Signals and TLS settings need a process of their own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import pytest
import structlog

from agent.cli import main


@contextlib.contextmanager
def plain_logging() -> Iterator[None]:
    """Gives the test run its own logging back: a command sends all of it to its stderr."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure = structlog.configure
    freely = {"cache_logger_on_first_use": False}  # else the loggers of modules keep what they got first
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(structlog, "configure", lambda **given: configure(**given | freely))
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
        structlog.reset_defaults()


def call(
    folder: Path, arguments: list[str], environment: Mapping[str, str], main: Callable[[list[str]], int] = main
) -> subprocess.CompletedProcess[str]:
    """`recognizer-agent ARGUMENTS` (or another `main`) in `folder`; environment: all variables there are."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ, environment, clear=True), plain_logging(),
        contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr),
    ):  # fmt: skip
        patch.chdir(folder)
        try:
            code = main(arguments)
        except SystemExit as end:  # how argparse ends
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())
