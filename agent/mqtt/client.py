"""The agent's MQTT client: stays connected, publishes with acknowledgement, keeps retained state up to date."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog
from paho.mqtt.enums import MQTTProtocolVersion

from agent.backoff import full_jitter
from agent.config.schema import MqttConfig, TlsConfig
from agent.errors import ConfigError, ConfigProblem, RejectedError, TransientError
from agent.mqtt.connection import Connection, LoginRefusedError, Target, TlsSocket
from agent.mqtt.topics import Topics

log = structlog.get_logger(__name__)

_ONLINE, _OFFLINE = b"online", b"offline"
_GOODBYE_S = 2.0
_STABLE_S = 5.0
"""A connection that lasted this long was a good one: the next wait is short again."""


class LinkState(StrEnum):
    """Where the client stands. REFUSED: the broker or its certificate says no; tried again rarely."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class MqttStatus:
    """The client at one moment. error: why it is not connected; connects: since the start."""

    state: LinkState
    error: str
    connects: int
    in_flight: int
    receive_maximum: int


class MqttClient:
    """Implements `Publisher` (and the relay's `Link`) over paho, MQTT 5 or 3.1.1. Lives on one event loop.

    `run` connects and reconnects with full-jitter waits, each time with a fresh paho client, so that nothing which timed
    out can be sent later. The retained `status` topic says `online`, or `offline` by the last will or before a clean end.
    `retain` keeps the newest payload of each retained topic in memory and sends it whenever it changed or the link is new.
    """

    def __init__(self, config: MqttConfig, topics: Topics) -> None:
        """Raises ConfigError when the password or certificate files cannot be used."""
        self._config = config
        self._topics = topics
        self._target()  # finds unusable files now
        self._connection: Connection | None = None
        self._up = asyncio.Event()
        self._state = LinkState.STOPPED
        self._error = ""
        self._connects = 0
        self._failures = 0
        self._retained: dict[str, bytes] = {}
        self._unsent: dict[str, None] = {}
        self._unsent_some = asyncio.Event()
        self._on_connected: list[Callable[[], None]] = []
        self._on_disconnected: list[Callable[[], None]] = []

    # --- what the others use ------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a publish has a chance now."""
        return self._connection is not None

    @property
    def receive_maximum(self) -> int:
        """How many publishes may be unacknowledged: the configured bound or the broker's, whichever is lower."""
        theirs = self._connection.receive_maximum if self._connection is not None else self._config.max_in_flight
        return min(self._config.max_in_flight, theirs)

    def status(self) -> MqttStatus:
        """The client at this moment."""
        in_flight = self._connection.in_flight if self._connection is not None else 0
        return MqttStatus(self._state, self._error, self._connects, in_flight, self.receive_maximum)

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the event loop whenever a connection stands."""
        self._on_connected.append(callback)

    def on_disconnected(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the event loop whenever a connection is gone or could not be made."""
        self._on_disconnected.append(callback)

    async def wait_connected(self) -> None:
        """Return once connected."""
        await self._up.wait()

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Returns once the broker has acknowledged with a good reason code; sends before it first waits.

        Raises TransientError (not connected, connection lost before the acknowledgement, quota), RejectedError (not
        authorised, invalid topic or payload, larger than the broker's limit). MQTT 3.1.1 has no reason codes: there a
        broker acknowledges what it throws away.
        """
        if self._connection is None:
            raise TransientError(f"not connected to the broker: {self._error or self._state.value}")
        await self._connection.publish(topic, payload, qos=qos, retain=retain)

    def retain(self, topic: str, payload: bytes) -> None:
        """Make `payload` the retained message of `topic` as soon as possible. Offline, the newest one wins."""
        if self._retained.get(topic) != payload:
            self._retained[topic] = payload
            self._unsent[topic] = None
            self._unsent_some.set()

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until cancelled, then say `offline` and disconnect within two seconds."""
        try:
            while True:
                self._state = LinkState.CONNECTING
                error: TransientError | ConfigError
                try:
                    error = await self._connected_once()
                except (TransientError, ConfigError) as problem:
                    error = problem
                wait_s = self._note_failure(error)
                for callback in self._on_disconnected:
                    callback()
                await asyncio.sleep(wait_s)
        finally:
            self._state = LinkState.STOPPED

    async def _connected_once(self) -> TransientError:
        """One connection from its start to its end; returns why it ended. Raises what kept it from standing."""
        connection = await Connection.open(self._target())
        since_s = asyncio.get_running_loop().time()
        self._state, self._error = LinkState.CONNECTED, ""
        self._connection = connection
        self._connects += 1
        self._unsent = dict.fromkeys(self._retained)
        self._up.set()
        log.info("mqtt_connected", host=self._config.host, port=self._config.port, receive_maximum=self.receive_maximum)
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send_retained(connection), name="mqtt-retained")
                for callback in self._on_connected:
                    callback()
                error = await connection.wait_ended()
                sender.cancel()
        finally:
            self._connection = None
            self._up.clear()
            await self._say_goodbye(connection)
        if asyncio.get_running_loop().time() - since_s >= _STABLE_S:
            self._failures = 0
        return error

    async def _send_retained(self, connection: Connection) -> None:
        """`online` first, then whatever changed, one at a time."""
        await self._send_state(connection, self._topics.status, _ONLINE)
        while connection.open_now:
            while self._unsent:
                topic = next(iter(self._unsent))
                del self._unsent[topic]
                await self._send_state(connection, topic, self._retained[topic])
            self._unsent_some.clear()
            await self._unsent_some.wait()

    async def _send_state(self, connection: Connection, topic: str, payload: bytes) -> None:
        """Send until it is acknowledged, refused for good, or the connection has ended."""
        failures = 0
        while connection.open_now:
            try:
                await connection.publish(topic, self._retained.get(topic, payload), retain=True)
            except TransientError:
                failures += 1
                await asyncio.sleep(self._jitter_s(failures))
            except RejectedError as error:
                log.warning("mqtt_state_refused", topic=topic, error=str(error))
                return
            else:
                return

    async def _say_goodbye(self, connection: Connection) -> None:
        """`offline` before a clean disconnect, because that suppresses the will."""
        if not connection.open_now:
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await connection.publish(self._topics.status, _OFFLINE, retain=True)
        except (TimeoutError, TransientError, RejectedError) as error:
            log.info("mqtt_goodbye_failed", error=str(error))
            connection.drop("stopped")  # the will says it instead
        connection.disconnect()

    def _note_failure(self, error: TransientError | ConfigError) -> float:
        """Remember why there is no connection; returns how long to wait."""
        self._error = str(error)
        self._failures += 1
        if isinstance(error, LoginRefusedError | ConfigError):
            self._state = LinkState.REFUSED
            longest_s = self._config.reconnect.max_s
            wait_s = random.uniform(longest_s / 2, longest_s)  # noqa: S311 - jitter, not a secret
        else:
            self._state = LinkState.WAITING
            wait_s = self._jitter_s(self._failures)
        log.warning("mqtt_disconnected", state=self._state.value, error=self._error, retry_in_s=round(wait_s, 1))
        return wait_s

    def _jitter_s(self, failures: int) -> float:
        """The wait after so many failures (1 or more) in a row."""
        backoff = self._config.reconnect
        return full_jitter(failures - 1, backoff.initial_s, backoff.max_s, random.random)

    def _target(self) -> Target:
        """Built for each connection, so that renewed passwords and certificates count. Raises ConfigError."""
        config = self._config
        return Target(
            host=config.host,
            port=config.port,
            protocol=MQTTProtocolVersion.MQTTv5 if config.protocol == "5" else MQTTProtocolVersion.MQTTv311,
            client_id=config.client_id or f"recognizer-{self._topics.device}",
            keepalive_s=config.keepalive_s,
            username=config.username,
            password=_password(config),
            tls=_tls_context(config.tls) if config.tls is not None else None,
            will_topic=self._topics.status,
            will_payload=_OFFLINE,
            ack_timeout_s=config.publish_timeout_s,
        )


def _password(config: MqttConfig) -> str:
    if config.password_file is None:
        return config.password
    try:
        return config.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([ConfigProblem(f"cannot read the password: {error}", path="mqtt.password_file")]) from error


def _tls_context(tls: TlsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except OSError as error:
        raise ConfigError([ConfigProblem(f"{tls.ca_file}: {error}", path="mqtt.tls.ca_file")]) from error
    context.sslsocket_class = TlsSocket
    context.check_hostname = tls.verify_hostname
    if tls.cert_file is not None:
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file)
        except OSError as error:
            message = f"{tls.cert_file}, {tls.key_file}: {error}"
            hint = "a PEM certificate with its unencrypted PEM key"
            raise ConfigError([ConfigProblem(message, path="mqtt.tls.cert_file", hint=hint)]) from error
    return context
