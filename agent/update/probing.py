"""Starts `agent.update.probe`, holds it to its limits, and says what its answers, or its death, mean."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import psutil

from agent.update.release import Minimum
from agent.update.trials import Figures, Refusal, Tell

COMMAND = (sys.executable, "-m", "agent.update.probe")
TIMEOUT_S = 600.0
"""Two large models on a small, busy device, at low priority."""
_WATCH_EVERY_S = 0.1
_MAX_LINE_BYTES = 1 << 16
_MAX_LINES = 100
_MAX_TEXT = 400
_TAIL_BYTES = 4096
_INTERPRETER_BYTES = 400 << 20
_ENVIRONMENT = re.compile(
    r"^(PATH|HOME|LANG|LC_\w+|TMPDIR|PYTHONPATH|PYTHONHOME|VIRTUAL_ENV|LD_LIBRARY_PATH|OMP_NUM_THREADS|CUDA_\w+|NVIDIA_\w+"
    r"|RECOGNIZER_MODELS)$"
)
"""What the child gets of the environment: nothing with credentials in it."""
_PATH = re.compile(r"(?<![\w/.:])(?:/[^\s/:'\"<>|,;()\[\]]+)+/([^\s/:'\"<>|,;()\[\]]*)")


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """memory_bytes: growth of the process over an interpreter with all libraries loaded; seconds: until it is killed.

    address_space: let the kernel refuse what is beyond as well (never where there is a GPU: CUDA reserves terabytes).
    """

    memory_bytes: int
    seconds: float = TIMEOUT_S
    address_space: bool = True

    def for_child(self) -> dict[str, float]:
        """What the child has to know of it."""
        return {"memory_bytes": self.memory_bytes, "seconds": self.seconds, "address_space": self.address_space}


async def run_probe(request: Mapping[str, Any], limits: ProbeLimits, tell: Tell) -> Figures | Refusal:
    """The figures of `request` (see `agent.update.probe`), or why there are none. Cancelling it kills the child."""
    with tempfile.TemporaryFile() as stderr:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr,
            env={name: value for name, value in os.environ.items() if _ENVIRONMENT.match(name)},
            start_new_session=True, limit=_MAX_LINE_BYTES,
        )  # fmt: skip
        talk = _Conversation(process, limits, tell)
        try:
            async with asyncio.timeout(limits.seconds):
                outcome = await talk.run({**request, **limits.for_child()})
        except TimeoutError:
            return Refusal("crash", f"no end after {limits.seconds:g} s, while {talk.step}")
        finally:
            _kill(process)
            code = await process.wait()
        return outcome if outcome is not None else talk.epitaph(code, _tail(stderr))


class _Conversation:
    """step: what the child said last that it does; too_large: it was killed for its memory."""

    def __init__(self, process: asyncio.subprocess.Process, limits: ProbeLimits, tell: Tell) -> None:
        self._process = process
        self._limits = limits
        self._tell = tell
        self._ready_bytes = _INTERPRETER_BYTES
        self.step = "starting"
        self.too_large = 0

    async def run(self, request: Mapping[str, Any]) -> Figures | Refusal | None:
        """None: it ended without an answer."""
        watch = asyncio.create_task(self._watch_memory(), name="probe.memory")
        try:
            await self._ask(request)
            return await self._listen()
        finally:
            watch.cancel()

    async def _ask(self, request: Mapping[str, Any]) -> None:
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - opened as a pipe
        try:
            stdin.write(json.dumps(dict(request)).encode())
            await stdin.drain()
            stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died: `_listen` sees the end

    async def _listen(self) -> Figures | Refusal | None:
        assert self._process.stdout is not None  # noqa: S101 - opened as a pipe
        for _ in range(_MAX_LINES):
            try:
                line = await self._process.stdout.readline()
                message = json.loads(line) if line else None
            except ValueError:  # a line without end, or no JSON: the model's doing, our code writes neither
                return Refusal("crash", f"what the probing process said cannot be understood, while {self.step}")
            if message is None:
                return None
            if "figures" in message:
                figures = message["figures"].items()
                return {str(name): clean(value) if isinstance(value, str) else value for name, value in figures}
            if "refused" in message:
                return Refusal(str(message["refused"]), clean(str(message["text"])))
            self._ready_bytes = int(message.get("ready_bytes", self._ready_bytes))
            if "step" in message:
                self.step = str(message["step"])
                self._tell(self.step, float(message["done"]))
        return Refusal("crash", f"the probing process does not stop talking, while {self.step}")

    async def _watch_memory(self) -> None:
        """Its own limit is on address space, and does not hold for GPUs' sake everywhere: this one is on memory in use."""
        try:
            child = psutil.Process(self._process.pid)
            while True:
                used = child.memory_info().rss
                if used > self._ready_bytes + self._limits.memory_bytes:
                    self.too_large = used
                    _kill(self._process)
                    return
                await asyncio.sleep(_WATCH_EVERY_S)
        except psutil.Error:
            return  # it has ended

    def epitaph(self, code: int, last_words: str) -> Refusal:
        """Why a child that gave no answer has ended with `code`, negative = by that signal."""
        words = f": {clean(last_words)}" if last_words else ""
        if self.too_large:
            limit_mb = self._limits.memory_bytes / 1e6
            return Refusal("memory", f"takes more than the {limit_mb:.0f} MB that are left to it, while {self.step}")
        if code < 0:
            return Refusal("crash", f"killed by {signal.Signals(-code).name} while {self.step}{words}")
        return Refusal("crash", f"ended with exit code {code} while {self.step}{words}")


def too_poor(figures: Figures, minimum: Minimum) -> Refusal | None:
    """Why figures of `run_probe` are not good enough; None when they are. Pure."""
    bounds = (
        ("slower", "latency_ratio", minimum.latency_ratio, "times as long as the model in use"),
        ("slower", "latency_ms", minimum.latency_ms, "ms for one"),
        ("memory", "memory_mb", minimum.memory_mb, "MB"),
    )
    for reason, name, limit, unit in bounds:
        value = figures.get(name)
        if limit is not None and isinstance(value, int | float) and value > limit:
            return Refusal(reason, f"takes {value:g} {unit}, at most {limit:g} are allowed", figures)
    return None


def clean(text: str) -> str:
    """One line for people elsewhere: no control characters, no folders of this machine, not too long."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return _PATH.sub(r"\1", line)[:_MAX_TEXT]


def _tail(stream: IO[bytes]) -> str:
    """The last line that says something."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAIL_BYTES))
    lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _kill(process: asyncio.subprocess.Process) -> None:
    """With everything that it has started: it leads a session of its own."""
    if process.returncode is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
