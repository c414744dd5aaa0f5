"""Wishes of people at this device, by files: the command line lays one into `requests/`, the agent that runs answers beside it.

Only who may write into the state folder can do that, and nothing has to listen on a port. `<id>.json` holds the wish,
`<id>.answer` what became of it; both come by a rename, so nobody reads half of one. A wish that is being seen to is `<id>.taken`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from agent.durable import give, sync
from agent.errors import StorageError

What = Literal["rollback", "check", "server"]
_MAX_AGE_S = 60.0
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """what: to do (server: say how the fleet server takes us, as JSON); slot: of a rollback; by: who wants it."""

    what: What
    slot: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """text: for people."""

    good: bool
    text: str


class RequestFolder:
    """`<state_dir>/updates/requests`. Both sides block for moments."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(
        self, request: Request, wait_s: float, done_s: float = 0.0, on_taken: Callable[[], None] = lambda: None
    ) -> Answer:
        """Lay down `request` and wait for the answer. Raises StorageError when none comes.

        wait_s: for the agent to take it; done_s: from then on, if that is longer; on_taken: is told when it has.
        """
        name = uuid.uuid4().hex
        question, taken, answer = (self._folder / f"{name}.{kind}" for kind in ("json", "taken", "answer"))
        seen = False
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True)
                give(self._folder, self._folder.parent)
            _write(question, asdict(request))
            deadline_s = time.monotonic() + wait_s
            while time.monotonic() < deadline_s:
                if answer.exists():
                    return Answer(**json.loads(answer.read_bytes()))
                if not seen and taken.exists():
                    seen, deadline_s = True, max(deadline_s, time.monotonic() + done_s)
                    on_taken()
                time.sleep(0.1)
        except OSError as error:
            hint = "run it as the agent's user, or as root"
            raise StorageError(f"{self._folder}: {error.strerror} (hint: {hint})") from error
        except (ValueError, TypeError) as error:
            raise StorageError(f"{answer}: not an answer: {error}") from error
        finally:
            for file in (question, taken, answer):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
        if seen:
            hint = "`ota status` shows what serves; to ask again when it is done is to go forth again"
            raise StorageError(f"the agent is at it, and not done within {max(wait_s, done_s):g} s (hint: {hint})")
        raise StorageError(f"the agent has not answered within {wait_s:g} s (hint: is update.enabled true there?)")

    def waiting(self) -> list[tuple[str, Request]]:
        """Names and wishes that came and are not too old. What is no wish is removed, and answers that nobody waits for any more."""
        if not self._folder.is_dir():
            return []
        for left in (*self._folder.glob("*.answer"), *self._folder.glob("*.taken")):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _MAX_AGE_S:
                    left.unlink(missing_ok=True)
        found = []
        for file in sorted(self._folder.glob("*.json")):
            try:
                found.append((file.stem, _request(file)))
            except (OSError, ValueError, TypeError):
                file.unlink(missing_ok=True)
        return found

    def take(self, name: str) -> None:
        """The wish `name` is seen to now, and not again after a death: to go back twice is to stay."""
        with contextlib.suppress(FileNotFoundError):  # nobody waits any more
            (self._folder / f"{name}.json").rename(self._folder / f"{name}.taken")
        sync(self._folder)

    def answer(self, name: str, answer: Answer) -> None:
        """What became of the wish `name`."""
        _write(self._folder / f"{name}.answer", asdict(answer))


def _request(file: Path) -> Request:
    status = file.stat()
    if time.time() - status.st_mtime > _MAX_AGE_S or status.st_size > _MAX_BYTES:
        raise ValueError("too old, or too large")
    request = Request(**json.loads(file.read_bytes()))
    if request.what not in get_args(What) or not all(isinstance(part, str) for part in (request.slot, request.by)):
        raise ValueError("no request")
    return request


def _write(file: Path, document: dict[str, object]) -> None:
    fresh = file.with_name(f".{file.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        json.dump(document, opened)
    give(fresh, file.parent)
    fresh.replace(file)
