"""What a new configuration changes: which keys apply live, which wait for a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from agent.config.schema import AgentConfig, CameraConfig

M = TypeVar("M", bound=BaseModel)

_UNTIL_LOADED = ("pose", "tracking")
"""Sections that nothing has been made of until the models are loaded, with the first camera."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """effective: the running configuration with every live change applied; the rest keeps its old value.

    live, restart: dotted paths of changed keys of either kind. `cameras` are matched by id and are live as a whole:
    one that changed is closed and opened again, the others go on. A service that is new or gone waits for a restart, and
    so does a camera's wish for one that does not run yet: until then it is watched by those of its services that do, or
    by the ones before, never by nobody.
    """

    effective: AgentConfig
    live: tuple[str, ...]
    restart: tuple[str, ...]


def compare(old: AgentConfig, new: AgentConfig, *, models_loaded: bool = True) -> ConfigChange:
    """Pure: decides, applies nothing. models_loaded: else poses and tracks are still free to be made as `new` has it."""
    live: list[str] = []
    restart: list[str] = []
    if not models_loaded:
        live += [name for name in _UNTIL_LOADED if getattr(old, name) != getattr(new, name)]
        old = old.model_copy(update={name: getattr(new, name) for name in _UNTIL_LOADED})
    effective = _combine(old, new, "", live, restart)
    effective = effective.model_copy(update={"cameras": _watched(old, effective, restart)})
    return ConfigChange(effective, tuple(live), tuple(restart))


def _combine(old: M, new: M, prefix: str, live: list[str], restart: list[str]) -> M:
    update: dict[str, Any] = {}
    for name, info in type(old).model_fields.items():
        before, after, path = getattr(old, name), getattr(new, name), f"{prefix}{name}"
        if before == after:
            continue
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("live"):
            live.append(path)
            update[name] = after
        elif isinstance(before, BaseModel) and type(before) is type(after):
            update[name] = _combine(before, after, f"{path}.", live, restart)
        elif name == "services" and isinstance(before, dict):
            update[name] = {
                key: _combine(one, after[key], f"{path}.{key}.", live, restart) if key in after else one
                for key, one in before.items()
            }
            restart += [f"{path}.{key}" for key in sorted(before.keys() ^ after.keys())]
        else:
            restart.append(path)
    return old.model_copy(update=update)


def _watched(old: AgentConfig, effective: AgentConfig, restart: list[str]) -> tuple[CameraConfig, ...]:
    """The cameras of `effective`, each watched by services that run; one nobody could watch stays as it was, or away."""
    before = {camera.id: camera for camera in old.cameras}
    cameras: list[CameraConfig] = []
    for camera in effective.cameras:
        wanted = camera.services
        running = None if wanted is None else tuple(name for name in wanted if name in effective.services)
        if running != wanted:
            restart.append(f"cameras.{camera.id}.services")
        if running or not wanted:
            cameras.append(camera.model_copy(update={"services": running}))
        elif camera.id in before:
            cameras.append(camera.model_copy(update={"services": before[camera.id].services}))
    return tuple(cameras)
