"""What a new configuration changes: which keys apply live, which wait for a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from agent.config.schema import AgentConfig

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """effective: the running configuration with every live change applied; the rest keeps its old value.

    live, restart: dotted paths of changed keys of either kind. `cameras` are matched by id and are live as a whole:
    one that changed is closed and opened again, the others go on.
    """

    effective: AgentConfig
    live: tuple[str, ...]
    restart: tuple[str, ...]


def compare(old: AgentConfig, new: AgentConfig) -> ConfigChange:
    """Pure: decides, applies nothing."""
    live: list[str] = []
    restart: list[str] = []
    effective = _combine(old, new, "", live, restart)
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
        elif name == "services" and isinstance(before, dict) and before.keys() == after.keys():
            update[name] = {key: _combine(before[key], after[key], f"{path}.{key}.", live, restart) for key in before}
        else:
            restart.append(path)
    return old.model_copy(update=update)
