"""A small broker inside the process, for `demo` and for tests without Mosquitto. MQTT 3.1.1 only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Self

from agent.errors import ConfigError, ConfigProblem
from agent.net import free_port, require_free

_QUIET = ("amqtt", "transitions")
_SHUTDOWN_S = 3.0


class EmbeddedBroker:
    """amqtt on `host`:`port` while the context is open; port 0 = any free one. No authentication: loopback only.

    key: what the port is called where it was chosen, for the complaint that it is taken. Entering raises ConfigError for that, and
    when amqtt is not installed.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, key: str = "mqtt.port") -> None:
        self.host = host
        self._key = key
        self.port = port or free_port(host)
        self._broker: Any = None
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        try:
            from amqtt.broker import Broker
            from amqtt.errors import BrokerError
        except ImportError as error:
            problem = ConfigProblem("the embedded broker is not installed", hint="from the checkout: ./install.sh demo")
            raise ConfigError([problem]) from error
        for name in _QUIET:  # it reports every packet and every failed start with a traceback of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)
        require_free(self.host, self.port, self._key)
        settings = {
            "listeners": {"default": {"type": "tcp", "bind": f"{self.host}:{self.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = Broker(settings)
        serve = broker.stream_connected

        async def stream_connected(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
        ) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._connections[task] = writer
                task.add_done_callback(lambda done: self._connections.pop(done, None))
            try:
                await serve(reader, writer, listener_name)
            finally:
                writer.close()

        broker.stream_connected = stream_connected
        try:
            await broker.start()
        except BrokerError as error:
            raise ConfigError(
                [ConfigProblem(f"the embedded broker did not start: {error}", path="mqtt.port")]
            ) from error
        self._broker = broker
        return self

    async def __aexit__(self, *_: object) -> None:
        broker, self._broker = self._broker, None
        if broker is None:
            return
        for server in broker._servers.values():  # noqa: SLF001 - it ends its sessions first, and clients come back at once
            server.instance.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHUTDOWN_S):
                await broker.shutdown()
        await self._hang_up()

    async def _hang_up(self) -> None:
        """End the connections that the shutdown left open; amqtt forgets those of clients that came in meanwhile."""
        connections = dict(self._connections)
        for task, writer in connections.items():
            writer.close()
            task.cancel()
        if connections:
            await asyncio.wait(connections, timeout=_SHUTDOWN_S)
        await asyncio.sleep(0)  # transports close in the next turn
