"""Takes commands from the broker, one at a time: understood, allowed, recorded, carried out, answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from agent.config.delivery import CommandsConfig
from agent.errors import RecognizerError, RejectedError, StorageError, TransientError
from agent.mqtt.commands import Client, Command, RefusedError, authorise, read_command, render_answer
from agent.mqtt.topics import Topics
from agent.outbox.audit import CommandEntry, refused_id
from agent.ports import Envelope, Received
from agent.throttle import Allowance

_log = structlog.get_logger(__name__)

_WAITING = 16
_MAX_NAME = 128
_LONGEST_S = 60.0
"""A command that takes longer has failed; an answer that cannot be sent for so long is not sent."""
_ANSWER_AGAIN_S = 1.0

Handler = Callable[[dict[str, Any], Command], Awaitable[dict[str, Any]]]
"""Arguments and the command to its result. Raises RecognizerError: failed."""


class CommandStore(Protocol):
    """The audit record, which also tells what was done already."""

    async def accept_command(
        self, command_id: str, name: str, client: str, role: str, arguments: str
    ) -> CommandEntry | None: ...

    async def finish_command(self, command_id: str, state: str, answer: bytes) -> None: ...


class Out(Protocol):
    """The way back."""

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, envelope: Envelope | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    command_id: str
    state: str
    payload: bytes


class CommandDesk:
    """`receive` is called by the MQTT client and returns at once; `run` does the work.

    handlers: by the command's name. clients: by name, with their keys. At most `_WAITING` commands wait; more, and more than
    `max_per_minute`, are dropped without an answer: their sender asks again.
    """

    def __init__(
        self,
        config: CommandsConfig,
        *,
        topics: Topics,
        store: CommandStore,
        out: Out,
        handlers: Mapping[str, Handler],
        clients: Mapping[str, Client],
    ) -> None:
        self._config = config
        self._topics = topics
        self._store = store
        self._out = out
        self._handlers = handlers
        self._clients = clients
        self._queue: asyncio.Queue[Received] = asyncio.Queue(_WAITING)
        self._allowance = Allowance(config.max_per_minute / 60.0, float(config.max_per_minute), time.monotonic)
        self.dropped = 0

    def receive(self, message: Received) -> None:
        """A message under `cmd/`. A retained one is no command: it would be carried out at every connection."""
        if message.retain:
            _log.warning("command_ignored", topic=message.topic, reason="it is retained")
        elif not self._allowance.take() or self._queue.full():
            self.dropped += 1
            _log.warning("command_dropped", topic=message.topic, reason="too many")
        else:
            self._queue.put_nowait(message)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            message = await self._queue.get()
            try:
                answer = await self._answer(message)
            except Exception:  # noqa: BLE001 - what comes from outside must not stop the commands of others
                _log.exception("command_failed", topic=message.topic)
                continue
            if answer is not None:
                await self._send(message, answer)

    async def _answer(self, message: Received) -> _Answer | None:
        """None: nobody knows whom to answer."""
        name = message.topic.rpartition("/")[2][:_MAX_NAME]
        try:
            command = read_command(
                message.payload, name, device=self._topics.device, clients=self._clients, config=self._config,
                now_utc=datetime.now(UTC),
            )  # fmt: skip
            authorise(command, self._config, self._handlers)
        except RefusedError as refusal:
            return await self._refuse(name, refusal)
        try:
            return await self._carry_out(command)
        except StorageError as error:  # without a record it is not done: it might be done twice
            return _answer(command.command_id, "failed", f"cannot be recorded: {error}")

    async def _refuse(self, name: str, refusal: RefusedError) -> _Answer | None:
        """Recorded under an id of its own: a stranger must not be able to use up the ids of others."""
        _log.warning(
            "command_refused", command=name, command_id=refusal.command_id, client=refusal.client, reason=str(refusal)
        )
        answer = _answer(refusal.command_id, refusal.state, str(refusal))
        try:
            record = refused_id(refusal.command_id)
            arguments = json.dumps(refusal.arguments)
            await self._store.accept_command(record, name, refusal.client, refusal.role, arguments)
            await self._store.finish_command(record, refusal.state, answer.payload)
        except StorageError as error:
            _log.error("command_not_recorded", error=str(error))
        return answer if refusal.command_id else None

    async def _carry_out(self, command: Command) -> _Answer:
        known = await self._store.accept_command(
            command.command_id, command.name, command.client, command.role, json.dumps(command.arguments)
        )
        if known is not None:
            if (known.name, known.client) != (command.name, command.client):
                return _answer(command.command_id, "refused", "the id was used for another command")
            if known.answer is not None:
                _log.info("command_repeated", command=command.name, command_id=command.command_id)
                return _Answer(command.command_id, known.state, known.answer)
        answer = await self._do(command)
        _log.info(
            "command", command=command.name, command_id=command.command_id, client=command.client, role=command.role,
            state=answer.state,
        )  # fmt: skip
        try:
            await self._store.finish_command(command.command_id, answer.state, answer.payload)
        except StorageError as error:  # done all the same; as after a crash, the same id would do it again
            _log.error("command_not_recorded", command_id=command.command_id, error=str(error))
        return answer

    async def _do(self, command: Command) -> _Answer:
        try:
            async with asyncio.timeout(_LONGEST_S):
                result = await self._handlers[command.name](command.arguments, command)
        except RefusedError as refusal:
            return _answer(command.command_id, "refused", str(refusal))
        except TimeoutError:
            return _answer(command.command_id, "failed", f"not done within {_LONGEST_S:g} s")
        except RecognizerError as error:
            return _answer(command.command_id, "failed", str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one command must not stop the others
            _log.exception("command_failed", command=command.name, command_id=command.command_id)
            return _answer(command.command_id, "failed", f"an error of the agent: {type(error).__name__}")
        return _answer(command.command_id, "done", result=result)

    async def _send(self, message: Received, answer: _Answer) -> None:
        """To the response topic if there is a sensible one that the broker lets us write; tried for a while, then the sender has
        to ask again."""
        topic, own = self._answer_topic(message), _own_topic(message)
        envelope = Envelope("application/json", utf8=True, correlation_data=message.correlation_data)
        deadline_s = time.monotonic() + _LONGEST_S
        while True:
            try:
                await self._out.publish(topic, answer.payload, envelope=envelope)
            except TransientError as error:
                if time.monotonic() > deadline_s:
                    _log.warning("command_not_answered", command_id=answer.command_id, error=str(error))
                    return
                await asyncio.sleep(_ANSWER_AGAIN_S)
            except RejectedError as error:
                _log.warning("command_not_answered", command_id=answer.command_id, topic=topic, error=str(error))
                if topic == own:
                    return
                topic = own
            else:
                return

    def _answer_topic(self, message: Received) -> str:
        """A response topic must not make the agent talk to itself, nor write where it writes for everybody."""
        wanted, own = message.response_topic, _own_topic(message)
        if not wanted or any(sign in wanted for sign in "+#\x00") or wanted.startswith("$"):
            return own
        return own if wanted.startswith(f"{self._topics.root}/") else wanted


def _own_topic(message: Received) -> str:
    return message.topic + "/result"


def _answer(command_id: str, state: str, detail: str = "", result: dict[str, Any] | None = None) -> _Answer:
    return _Answer(command_id, state, render_answer(command_id, state, detail, result))
