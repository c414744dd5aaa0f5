"""The agent's MQTT client: stays connected, publishes with acknowledgement, keeps retained state up to date."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from agent.backoff import full_jitter
from agent.config.delivery import MqttConfig
from agent.errors import ConfigError, RejectedError, TransientError, UnexplainedError
from agent.mqtt.connection import Connection
from agent.mqtt.inbox import Handler, Inbox, InboxStats, Subscription
from agent.mqtt.refusals import AliasTroubleError, FloodError, LoginRefusedError, RetainRefusedError
from agent.mqtt.spread import share
from agent.mqtt.target import Target, default_client_id, read_password, tls_context
from agent.mqtt.topics import Topics
from agent.mqtt.transport import named
from agent.mqtt.verdicts import FAILURE
from agent.ports import Envelope
from agent.throttle import Throttle

log = structlog.get_logger(__name__)

JSON = Envelope(content_type="application/json", utf8=True)
_TEXT = Envelope(content_type="text/plain", utf8=True)
_ONLINE, _OFFLINE = b"online", b"offline"
_GOODBYE_S = 2.0
_STABLE_S = 5.0
"""A connection that lasted this long was a good one: the next wait is short again."""
_FLOOD_PAUSE_S = 3600.0
"""A second flood within so long is one that the broker retains: for as long nothing is subscribed to."""
_HEAD_BYTES = 16_384
"""What a message to the agent may have in topic and properties, next to its payload."""


class LinkState(StrEnum):
    """Where the client stands. REFUSED: the broker or its certificate says no; tried again rarely."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class MqttStatus:
    """The client at one moment. error: why it is not connected; connects: since the start.

    unheard: publishes since the start that the broker took though nobody has subscribed (MQTT 5); refused: filters that
    are not subscribed to, with the broker's reason or what else speaks against it; inbox: what was sent to the agent.
    """

    state: LinkState
    error: str
    connects: int
    in_flight: int
    receive_maximum: int
    unheard: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    inbox: InboxStats = field(default_factory=InboxStats)


class MqttClient:
    """Implements `Publisher` (and the relay's `Link`) over paho, MQTT 5 or 3.1.1. Lives on one event loop.

    `run` connects and reconnects with full-jitter waits, each time with a fresh paho client, so that nothing which timed
    out can be sent later. The retained `status` topic says `online`, or `offline` by the last will or before a clean end.
    `retain` keeps the newest payload of each retained topic in memory and sends it whenever it changed or the link is new.
    `subscribe` has messages to the agent handed to it; with a subscription the broker keeps a session for the agent.
    """

    def __init__(self, config: MqttConfig, topics: Topics, throttle: Throttle | None = None) -> None:
        """throttle: for the retained state; `publish` leaves it to its callers.

        Raises ConfigError when the password or certificate files cannot be used.
        """
        self._config = config
        self._topics = topics
        self._throttle = throttle or Throttle(0.0, time.monotonic)
        self._inbox = Inbox(config.inbound_max_bytes, config.inbound_max_per_s)
        self._refused: dict[str, str] = {}
        self._fresh = False
        self._flood = ""
        self._flood_over_s = 0.0
        self._will_retained = True
        self._aliases = True
        self._unheard = 0
        self._last_packet_id = 0
        self._target()  # finds unusable files now
        self._connection: Connection | None = None
        self._up = asyncio.Event()
        self._state = LinkState.STOPPED
        self._error = ""
        self._connects = 0
        self._failures = 0
        self._retained: dict[str, tuple[bytes, Envelope]] = {}
        self._unsent: dict[str, None] = {}
        self._unsent_some = asyncio.Event()
        self._on_connected: list[Callable[[], None]] = []
        self._on_disconnected: list[Callable[[], None]] = []
        self._on_subscribed: list[Callable[[], None]] = []

    # --- what the others use ------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a publish has a chance now."""
        return self._connection is not None and self._connection.open_now

    @property
    def receive_maximum(self) -> int:
        """How many publishes may be unacknowledged: the configured bound or the broker's, whichever is lower."""
        theirs = self._connection.terms.receive_maximum if self._connection is not None else self._config.max_in_flight
        return min(self._config.max_in_flight, theirs)

    def status(self) -> MqttStatus:
        """The client at this moment."""
        connection = self._connection
        in_flight, unheard = (connection.in_flight, connection.unheard) if connection is not None else (0, 0)
        return MqttStatus(
            self._state, self._error, self._connects, in_flight, self.receive_maximum,
            unheard=self._unheard + unheard, refused=dict(self._refused), inbox=self._inbox.stats,
        )  # fmt: skip

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the event loop whenever a connection stands."""
        self._on_connected.append(callback)

    def on_disconnected(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the event loop whenever a connection is gone or could not be made."""
        self._on_disconnected.append(callback)

    def on_subscribed(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the event loop whenever the subscriptions have an answer; see `status().refused`."""
        self._on_subscribed.append(callback)

    def subscribe(self, filter_: str, handler: Handler, qos: int = 1) -> None:
        """Have `handler` called on the event loop with each message that matches `filter_`; before `run`, for good.

        It must return at once; then the message is acknowledged, also when the handler raised. With several filters that
        match, the first one's is called.
        """
        self._inbox.subscriptions.append(Subscription(filter_, handler, qos))

    async def wait_connected(self) -> None:
        """Return once connected."""
        await self._up.wait()

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, envelope: Envelope | None = None
    ) -> None:
        """Returns once the broker has acknowledged with a good reason code; sends before it first waits.

        Raises TransientError (not connected, connection lost before the acknowledgement), QuotaError, UnexplainedError,
        RejectedError (not authorised, invalid topic or payload, larger than the broker's limit). MQTT 3.1.1 has no reason
        codes: there a broker acknowledges what it throws away.
        """
        if self._connection is None:
            raise TransientError(f"not connected to the broker: {self._error or self._state.value}")
        await self._connection.publish(topic, payload, qos=qos, retain=retain, envelope=envelope)

    def retain(self, topic: str, payload: bytes, envelope: Envelope = JSON) -> None:
        """Make `payload` the retained message of `topic` as soon as possible. Offline, the newest one wins."""
        if self._retained.get(topic) != (payload, envelope):
            self._retained[topic] = payload, envelope
            self._send_soon(topic)

    def renew(self, topic: str) -> None:
        """Send the retained message of `topic` once more, where there is one."""
        if topic in self._retained:
            self._send_soon(topic)

    def _send_soon(self, topic: str) -> None:
        self._unsent[topic] = None
        self._unsent_some.set()

    # --- life ---------------------------------------------------------------------------------------------------------

    async def try_connecting(self) -> None:
        """Connect once in place of `run`, and leave nothing with the broker. Raises TransientError, ConfigError."""
        connection = await self._open()
        connection.disconnect()

    async def run(self) -> None:
        """Stay connected until cancelled, then say `offline` and disconnect within two seconds."""
        try:
            while True:
                self._state = LinkState.CONNECTING
                error: TransientError | ConfigError
                stood = True
                try:
                    error = await self._connected_once()
                except (TransientError, ConfigError) as problem:
                    error, stood = problem, False
                wait_s = self._note_failure(error, stood=stood)
                for callback in self._on_disconnected:
                    callback()
                await asyncio.sleep(wait_s)
        finally:
            self._state = LinkState.STOPPED

    async def _connected_once(self) -> TransientError:
        """One connection from its start to its end; returns why it ended. Raises what kept it from standing."""
        connection = await self._open()
        since_s = asyncio.get_running_loop().time()
        self._state, self._error = LinkState.CONNECTED, ""
        self._connection = connection
        self._connects += 1
        self._fresh = False
        self._will_retained = connection.terms.retains
        self._unsent = dict.fromkeys((self._topics.status, *self._retained))
        self._up.set()
        log.info("mqtt_connected", host=self._config.host, port=self._config.port, receive_maximum=self.receive_maximum)
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send_retained(connection), name="mqtt-retained")
                subscriber = tasks.create_task(self._subscribe(connection), name="mqtt-subscribe")
                for callback in self._on_connected:
                    callback()
                error = await connection.wait_ended()
                sender.cancel()
                subscriber.cancel()
        finally:
            self._connection = None
            self._up.clear()
            await self._say_goodbye(connection)
            self._unheard += connection.unheard
            self._last_packet_id = connection.last_packet_id
        if asyncio.get_running_loop().time() - since_s >= _STABLE_S:
            self._failures = 0
        return error

    async def _open(self) -> Connection:
        """Connect, to a broker that retains nothing with a will that asks for no more. Raises TransientError, ConfigError."""
        while True:
            try:
                return await Connection.open(
                    self._target(), self._inbox.take, aliases=self._aliases, last_packet_id=self._last_packet_id
                )
            except RetainRefusedError:
                if not self._will_retained:
                    raise
                self._will_retained = False

    async def _subscribe(self, connection: Connection) -> None:
        """Ask for everything again. A broker that refuses, floods or does not answer costs commands, and no event."""
        wanted = [(one.filter, one.qos) for one in self._inbox.subscriptions]
        if not wanted:
            return
        if self._flood:
            self._note_refused(dict.fromkeys((name for name, _ in wanted), self._flood))
            await asyncio.sleep(self._flood_over_s - asyncio.get_running_loop().time())
            self._flood = ""
        try:
            async with asyncio.timeout(self._config.publish_timeout_s):
                answers = await connection.subscribe(wanted)
        except TimeoutError:
            self._note_refused(dict.fromkeys((name for name, _ in wanted), "no answer from the broker"))
        except TransientError:
            return  # the next connection asks again
        else:
            pairs = zip(wanted, answers, strict=False)
            self._note_refused({name: named(answer) for (name, _), answer in pairs if answer.value >= FAILURE})

    def _note_refused(self, refused: dict[str, str]) -> None:
        self._refused = refused
        for name, reason in refused.items():
            log.warning("mqtt_subscription_refused", filter=name, reason=reason)
        for callback in self._on_subscribed:
            callback()

    async def _send_retained(self, connection: Connection) -> None:
        """`online` first, then whatever changed, one at a time. What the broker does not take holds up no other topic."""
        refusals: Counter[str] = Counter()
        while connection.open_now:
            while self._unsent:
                topic = next(iter(self._unsent))
                await asyncio.sleep(self._throttle.wait_s(urgent=topic == self._topics.status))
                del self._unsent[topic]
                try:
                    await self._send_state(connection, topic)
                except UnexplainedError:
                    refusals[topic] += 1
                    asyncio.get_running_loop().call_later(self._jitter_s(refusals[topic]), self._send_soon, topic)
                else:
                    del refusals[topic]
            self._unsent_some.clear()
            await self._unsent_some.wait()

    async def _send_state(self, connection: Connection, topic: str) -> None:
        """Send until it is acknowledged, refused for good, or the connection has ended.

        Raises UnexplainedError when the broker refuses it without a reason, which may be about this topic alone.
        """
        failures = 0
        while connection.open_now:
            payload, envelope = self._retained.get(topic, (_ONLINE, _TEXT))  # all but the status are among them
            self._throttle.charge(len(topic) + len(payload), urgent=False)
            try:
                await connection.publish(topic, payload, retain=True, envelope=envelope)
            except UnexplainedError:
                raise
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
                await connection.publish(self._topics.status, _OFFLINE, retain=True, envelope=_TEXT)
        except (TimeoutError, TransientError, RejectedError) as error:
            log.info("mqtt_goodbye_failed", error=str(error))
            connection.drop("stopped")  # the will says it instead
        connection.disconnect()

    def _note_failure(self, error: TransientError | ConfigError, *, stood: bool) -> float:
        """Remember why there is no connection (any more, when one `stood`); returns how long to wait."""
        self._error = str(error)
        self._failures += 1
        if isinstance(error, AliasTroubleError):
            self._aliases = False
        if isinstance(error, FloodError):
            self._fresh = True  # the session would only bring the same again
            now_s = asyncio.get_running_loop().time()
            self._flood = str(error) if now_s < self._flood_over_s else ""
            self._flood_over_s = now_s + _FLOOD_PAUSE_S
        if isinstance(error, LoginRefusedError | ConfigError):
            self._state = LinkState.REFUSED
            longest_s = self._config.reconnect.max_s
            wait_s = random.uniform(longest_s / 2, longest_s)  # noqa: S311 - jitter, not a secret
        else:
            self._state = LinkState.WAITING
            own_s = self._config.spread_s * share(self._topics.device) if stood else 0.0
            wait_s = own_s + self._jitter_s(self._failures)
        log.warning("mqtt_disconnected", state=self._state.value, error=self._error, retry_in_s=round(wait_s, 1))
        return wait_s

    def _jitter_s(self, failures: int) -> float:
        """The wait after so many failures (1 or more) in a row."""
        backoff = self._config.reconnect
        return full_jitter(failures - 1, backoff.initial_s, backoff.max_s, random.random)

    def _target(self) -> Target:
        """Built for each connection, so that renewed passwords and certificates count. Raises ConfigError."""
        config = self._config
        session_expiry_s = config.session_expiry_s if self._inbox.subscriptions else 0
        return Target(
            host=config.host,
            port=config.port,
            v5=config.protocol == "5",
            client_id=config.client_id or default_client_id(self._topics),
            keepalive_s=config.keepalive_s,
            username=config.username,
            password=read_password(config),
            tls=tls_context(config.tls) if config.tls is not None else None,
            will_topic=self._topics.status,
            will_payload=_OFFLINE,
            ack_timeout_s=config.publish_timeout_s,
            dead_after_s=config.dead_after_s,
            session_expiry_s=session_expiry_s,
            fresh=self._fresh or not session_expiry_s,
            max_inbound_bytes=config.inbound_max_bytes + _HEAD_BYTES,
            will_retained=self._will_retained,
        )
