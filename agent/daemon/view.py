"""What the HTTP pages show of the running agent."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.daemon.monitor import camera_report
from agent.errors import DataError
from agent.http.server import EventFilter
from agent.observe.metrics import CONTENT_TYPE
from agent.outbox.history import EventQuery
from agent.overlay import Mode
from agent.timeparse import parse_time

if TYPE_CHECKING:
    from agent.app import Agent


class View:
    """Implements `http.server.AgentView` over an `Agent`."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def health(self) -> dict[str, Any]:
        return self._agent.health.snapshot().as_dict() | {"degradation_step": self._agent.monitor.step}

    def ready(self) -> bool:
        return self._agent.ready

    def state(self) -> dict[str, Any]:
        agent = self._agent
        statuses = agent.cameras.statuses() if agent.cameras is not None else []
        return {
            "device": agent.config.device_id,
            "version": __version__,
            "ready": agent.ready,
            "live_fps": agent.config.http.live_fps,
            "health": agent.monitor.report(),
            "mqtt": {
                "enabled": agent.config.mqtt.enabled,
                "connected": agent.delivery is not None and agent.delivery.connected,
            },
            "cameras": [
                camera_report(status) | {"live": agent.live.camera_state(status.camera_id)} for status in statuses
            ],
            "active": agent.live.active_incidents,
            "events": agent.live.recent_events,
            "models": agent.models,
            "drift": agent.drift.report(),
            "updates": agent.updates.report(),
        }

    def metrics(self) -> tuple[bytes, str]:
        return self._agent.metrics.render(), CONTENT_TYPE

    def camera_ids(self) -> list[str]:
        return [camera.id for camera in self._agent.config.cameras]

    async def events(self, query: EventFilter) -> list[dict[str, Any]]:
        try:
            since, until = parse_time(query.since), parse_time(query.until)
        except (ValueError, OverflowError) as error:
            raise DataError(str(error)) from error
        wanted = EventQuery(
            since=since, until=until, kind=query.kind, camera_id=query.camera, limit=query.limit, newest_first=True
        )
        rows = await self._agent.store.events(wanted)
        return [row.as_json() for row in rows]

    async def picture(self, camera_id: str, mode: str) -> bytes | None:
        return await self._agent.live.picture(camera_id, Mode(mode))

    def pictures(self, camera_id: str, mode: str) -> AsyncGenerator[bytes, None]:
        return self._agent.live.pictures(camera_id, Mode(mode))

    def request_done(self, method: str, route: str, status: int, seconds: float) -> None:
        self._agent.metrics.observe_request(method, route, status, seconds)

    def session(self, change: int) -> None:
        if change > 0:
            self._agent.metrics.session_opened()
        else:
            self._agent.metrics.session_closed()
