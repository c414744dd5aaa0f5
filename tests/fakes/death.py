"""Ends a process, or what stands for one, at a chosen moment of an update's life: everything that reaches the disk can be the last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from agent.update.journal import Journal

STEPS = ("fsync", "replace", "rename", "symlink", "unlink")


@dataclass
class Death:
    """die: ends it, and must not return. at: the n-th step that reaches the disk (before and after a rename, link, unlink, fsync or
    commit), 0 = none. phase, before: when an update enters this phase, right before or after that is on the disk; empty = none.

    Once dead it stays so: every further step dies too.
    """

    die: Callable[[], None]
    at: int = 0
    phase: str = ""
    before: bool = False
    count: int = 0
    dead: bool = False

    def step(self) -> None:
        self.count += 1
        if self.dead or (self.at and self.count >= self.at):
            self.end()

    def end(self) -> None:
        self.dead = True
        self.die()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """From now on, in this process."""
        with contextlib.ExitStack() as stack:
            for name in STEPS:
                stack.enter_context(mock.patch.object(os, name, self._around(getattr(os, name))))
            stack.enter_context(mock.patch.object(Journal, "_writing", self._commits(Journal._writing)))
            stack.enter_context(mock.patch.object(Journal, "_update", self._notes(Journal._update)))
            yield

    def _around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            self.step()
            result = work(*args, **more)
            self.step()
            return result

        return counted

    def _commits(self, writing: Callable[[Journal], Any]) -> Callable[[Journal], Any]:
        @contextlib.contextmanager
        def counted(journal: Journal) -> Iterator[Any]:
            self._entered = ""
            with writing(journal) as connection:
                yield connection
                if self.phase and self._entered == self.phase and self.before:
                    self.end()
                self.step()
            if self.phase and self._entered == self.phase:
                self.end()
            self.step()

        return counted

    def _notes(self, update: Callable[..., None]) -> Callable[..., None]:
        """Which phase the transaction under way writes."""

        def noted(journal: Journal, connection: Any, action: Any) -> None:
            self._entered = action.phase.value
            update(journal, connection, action)

        return noted

    _entered: str = ""
