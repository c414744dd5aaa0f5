"""Builds one TensorRT engine in a process of its own: `python -m agent.runtime.builder`, the request as JSON on stdin.

A build takes minutes and gigabytes, can crash in native code and cannot be interrupted: a child process returns the
memory, dies alone, and can be killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import ModelError, RecognizerError
from agent.runtime.backend import build_engine
from agent.runtime.engines import Build, CancelledBuildError, Report

COMMAND = (sys.executable, "-m", "agent.runtime.builder")
_POLL_S = 0.1
_REPORT_EVERY_S = 30.0
_KILL_AFTER_S = 5.0
_NICENESS = 10
_PR_SET_PDEATHSIG = 1


def process_build(request: Mapping[str, Any], command: Sequence[str] = COMMAND) -> Build:
    """A `Build` that runs `command` with `request` plus `folder` as JSON on its stdin.

    The process fills the folder and exits 0; else the last line of its stderr becomes the ModelError's reason.
    """

    def build(folder: Path, cancelled: threading.Event, report: Report) -> None:
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
            stdin.write(json.dumps({**request, "folder": str(folder)}).encode())
            stdin.seek(0)
            process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=stderr)  # noqa: S603 - own interpreter, no shell
            try:
                code = _wait(process, cancelled, report)
            finally:
                _end(process)
            if code:
                stderr.seek(0)
                raise ModelError(f"the engine build failed: {_last_line(stderr.read(), code)}")

    return build


def _wait(process: subprocess.Popen[bytes], cancelled: threading.Event, report: Report) -> int:
    started_s = reported_s = time.monotonic()
    while (code := process.poll()) is None:
        if cancelled.wait(_POLL_S):
            raise CancelledBuildError("cancelled")
        now_s = time.monotonic()
        if now_s - reported_s >= _REPORT_EVERY_S:
            reported_s = now_s
            report(f"building for {now_s - started_s:.0f} s")
    return code


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(output: bytes, code: int) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    status = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{lines[-1].strip()} ({status})" if lines else status


def die_with_parent() -> None:
    """Be killed when the parent ends: a killed agent must not leave a child behind that holds the GPU for minutes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _main() -> int:
    die_with_parent()
    os.nice(_NICENESS)
    try:
        build_engine(json.loads(sys.stdin.read()))
    except RecognizerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
