"""The command `replay-events`: ask a device to send a range of its sequence again, and wait for its answer."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from agent.client.tracker import Range
from agent.errors import DataError, TransientError

COMMAND = "replay-events"
MOST_NUMBERS = 100_000
"""That a device sends again for one command."""


class CommandLink(Protocol):
    """A way to the devices' commands."""

    def send(self, topic: str, payload: bytes, *, answer_to: str, correlation: bytes) -> None:
        """Publish with QoS 1, without waiting. Raises TransientError."""
        ...


@dataclass(frozen=True, slots=True)
class ReplayAnswer:
    """state: done, refused, expired or failed. sent: events on their way again. missing: what the device has no more."""

    state: str
    detail: str = ""
    sent: int = 0
    missing: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose name commands are given in: a client of the agents' configuration (docs/commands.md)."""

    client: str
    key: bytes = field(repr=False)

    def sign(self, device_id: str, request_id: str, arguments: dict[str, int], expires_utc: datetime) -> bytes:
        """The request as a token."""
        from agent.mqtt.commands import sign_command

        return sign_command(
            COMMAND, request_id, arguments, device=device_id, client=self.client, key=self.key, expires_utc=expires_utc
        )


class Replays:
    """Requests that wait for their answers, matched by id. base_topic: what all topics start with; signer: None = unsigned."""

    def __init__(self, base_topic: str, *, timeout_s: float = 20.0, signer: Signer | None = None) -> None:
        self._base_topic = base_topic
        self._timeout_s = timeout_s
        self._signer = signer
        self._waiting: dict[str, asyncio.Future[ReplayAnswer]] = {}

    def answer_topic(self, device_id: str) -> str:
        """Where a device's answers come; `+` for all devices."""
        return f"{self._base_topic}/{device_id}/cmd/{COMMAND}/result"

    async def request(self, link: CommandLink, device_id: str, run: Range, request_id: str = "") -> ReplayAnswer:
        """request_id: of a request that is repeated, which the device does once; empty = a new one.

        Raises TransientError: no connection, or no answer in time.
        """
        request_id = request_id or new_id()
        answer: asyncio.Future[ReplayAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        topic = f"{self._base_topic}/{device_id}/cmd/{COMMAND}"
        try:
            link.send(
                topic,
                self._payload(device_id, request_id, run),
                answer_to=self.answer_topic(device_id),
                correlation=request_id.encode(),
            )
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError as error:
            raise TransientError(f"{topic}: no answer within {self._timeout_s:g} s") from error
        finally:
            del self._waiting[request_id]

    def _payload(self, device_id: str, request_id: str, run: Range) -> bytes:
        arguments = {"first": run[0], "last": run[1]}
        expires_utc = datetime.now(UTC) + timedelta(seconds=self._timeout_s)
        if self._signer is not None:
            return self._signer.sign(device_id, request_id, arguments, expires_utc)
        expires = expires_utc.isoformat(timespec="milliseconds")
        return json.dumps({"id": request_id, "expires": expires, "arguments": arguments}).encode()

    def take(self, payload: bytes) -> bool:
        """An answer has come; False when it is nobody's here. Raises DataError."""
        request_id, answer = parse_answer(payload)
        waiting = self._waiting.get(request_id)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(answer)
        return True


def new_id() -> str:
    """For a request."""
    return str(uuid.uuid4())


def joined(runs: Sequence[Range]) -> Range:
    """The latest of rising `runs` that one command reaches. What lies between has come, and is dropped when it comes again."""
    last = runs[-1][1]
    lowest = last - MOST_NUMBERS + 1
    return min(max(lowest, run[0]) for run in runs if run[1] >= lowest), last


def parse_answer(payload: bytes) -> tuple[str, ReplayAnswer]:
    """Id of the command and what came of it. Raises DataError."""
    try:
        document = json.loads(payload)
        result = document.get("result", {})
        missing = tuple((int(first), int(last)) for first, last in result.get("missing", []))
        answer = ReplayAnswer(
            str(document["state"]), str(document.get("detail", "")), int(result.get("sent", 0)), missing
        )
        return str(document["id"]), answer
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"not an answer to {COMMAND}: {error!r}") from error
