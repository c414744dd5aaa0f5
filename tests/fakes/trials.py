"""The port `Trials` without models: what a bundle does on trial stands in its manifest.

`figures: {"fake": {"validate": "slower", "shadow": "worse", "install": "crash", "watch": "unhealthy"}}`: the step that refuses and its
reason; the value `die` kills the process there, `hang` never ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import ModelError
from agent.update.trials import Candidate, Figures, Ready, Refusal, Tell


class FakeTrials:
    """configured: what the configuration names, by slot; served: what serves in its place from the start.

    step_s: how long each step takes. blocked, blocked_while_loaded: what `not_now` says; unwell: the same, but for a way back.
    calls: every call, in order.
    given_up: candidates that were loaded and freed before their change. spent_s: what each step was told of its earlier lives.
    """

    def __init__(
        self, configured: Mapping[str, Path], served: Mapping[str, Path] | None = None, *, step_s: float = 0.0
    ) -> None:
        self._configured = dict(configured)
        self._running = dict(self._configured)
        self.begin(served or {})
        self.step_s = step_s
        self.blocked = self.blocked_while_loaded = self.unwell = ""
        self._loaded = False
        self.given_up = 0
        self.calls: list[tuple[str, str]] = []
        self.spent_s: list[tuple[str, float]] = []

    def begin(self, served: Mapping[str, Path]) -> None:
        """What serves in place of the configured, from the start; one that does not load is left aside, as the agent does."""
        self._running |= {slot: path for slot, path in served.items() if not behaviour(path).get("install")}

    def leave_aside(self, slot: str) -> None:
        """As the agent does at a start with a model that cannot be loaded."""
        self._running[slot] = self._configured[slot]

    def not_now(self, *, back: bool = False) -> str:
        return self.blocked or ("" if back else self.unwell) or (self.blocked_while_loaded if self._loaded else "")

    def running(self, slot: str) -> Path | None:
        return self._running.get(slot)

    async def validate(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        return await self._step("validate", candidate, tell, {"latency_ms": 3.5, "device": "cpu"})

    async def shadow(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        return await self._step("shadow", candidate, tell, {"agreement": 0.97})

    async def watch(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        return await self._step("watch", candidate, tell, {"watched_s": self.step_s})

    async def install(self, slot: str, path: Path | None, ready: Ready | None = None) -> Figures:
        wanted = self._configured.get(slot) if path is None else path
        self.calls.append(("install", slot))
        if wanted is None or not wanted.exists():
            raise ModelError(f"{wanted}: no such model")
        if behaviour(wanted).get("install"):
            raise ModelError(f"{wanted.name}: does not load")
        if self._running.get(slot) == wanted:
            return {}
        await asyncio.sleep(self.step_s / 4)
        self._loaded = True
        try:
            if ready is not None:
                await ready()
        except BaseException:
            self.given_up += 1
            raise
        finally:
            self._loaded = False
        self._running[slot] = wanted
        return {"gap_ms": 4.0}

    def let_go(self, slot: str) -> None:
        self.calls.append(("let_go", slot))

    async def _step(self, step: str, candidate: Candidate, tell: Tell, figures: Figures) -> Figures | Refusal:
        self.calls.append((step, candidate.release.slot))
        self.spent_s.append((step, candidate.spent_s))
        wish = behaviour(candidate.path).get(step, "")
        tell(step, 0.0)
        await asyncio.sleep(self.step_s)
        if wish == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if wish == "hang":
            await asyncio.Event().wait()
        tell(step, 1.0)
        return Refusal(wish, f"{step} says {wish}", figures) if wish else figures


def behaviour(path: Path) -> dict[str, Any]:
    """What the bundle at `path` wants to do."""
    manifest = path / "manifest.json"
    figures = json.loads(manifest.read_bytes()).get("figures", {}) if manifest.is_file() else {}
    fake: dict[str, Any] = figures.get("fake", {})
    return fake
