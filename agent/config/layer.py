"""A configuration that came over the air, laid over the operator's: only what a reload applies may stand in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from agent.config.documents import Layer, Location, Place, problem_of, sections_in
from agent.config.schema import AgentConfig
from agent.errors import ConfigError, ConfigProblem

KEPT_HERE = frozenset({"cameras", "update", "commands"})
"""Sections that belong to the device: what it looks at, whom it obeys, and where its updates come from."""
MAX_BYTES = 262_144


def lay_over(config: AgentConfig, file: Path) -> AgentConfig:
    """`config` with the keys of `file`. Variables of the environment are not filled in.

    Raises ConfigError with every problem: what `check-config` would find, and every key that needs a restart or belongs to the device.
    """
    layer = Layer(file, {})
    if file.is_file() and file.stat().st_size > MAX_BYTES:
        raise ConfigError([ConfigProblem(f"larger than {MAX_BYTES:,} bytes", file=str(file))])
    tree = layer.read()
    problems = [*layer.problems, *_forbidden(tree, config, layer.places)]
    if problems:
        raise ConfigError(problems)
    try:
        return AgentConfig.model_validate(_merged(config.model_dump(), tree))
    except ValidationError as error:
        found = [problem_of(item, layer.places, AgentConfig) for item in error.errors(include_url=False)]
        raise ConfigError(found) from error


def _forbidden(
    tree: Mapping[str, Any], config: AgentConfig, places: Mapping[Location, Place]
) -> Iterator[ConfigProblem]:
    for path, why in _walk(tree, AgentConfig, config, ()):
        place = places.get(path, Place("", 0))
        yield ConfigProblem(why, place.file, place.line, ".".join(path), "docs/ota.md says which keys may be sent")


def _walk(
    tree: Mapping[str, Any], section: type[BaseModel], current: object, where: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in tree.items():
        path, info = (*where, str(key)), section.model_fields.get(str(key))
        if info is None:
            continue  # validation says what it could have meant
        if not where and key in KEPT_HERE:
            yield path, "belongs to the device and cannot be set over the air"
            continue
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("live"):
            continue
        inner, now = next(sections_in(info.annotation), None), getattr(current, str(key), None)
        if inner is None or not isinstance(value, dict) or now is None:
            yield path, "needs a restart and cannot be set over the air"
        elif isinstance(now, dict):
            yield from _walk_named(value, now, path)
        else:
            yield from _walk(value, type(now) if isinstance(now, BaseModel) else inner, now, path)


def _walk_named(
    tree: Mapping[str, Any], current: Mapping[str, Any], where: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, value in tree.items():
        section = current.get(name)
        if not isinstance(section, BaseModel) or not isinstance(value, dict):
            known = ", ".join(sorted(current)) or "none"
            yield (*where, str(name)), f"this device has no such entry (it has: {known})"
        else:
            yield from _walk(value, type(section), section, (*where, str(name)))


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    return above
