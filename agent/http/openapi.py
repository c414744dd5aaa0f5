"""The interface's own description."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from agent.events.cloudevents import load_schema

_MESSAGES = {"HealthReport": "health", "CameraState": "camera"}
"""Parts of the state that are messages as well: their schemas are published once."""


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1: openapi.yaml with the schemas of messages in it."""
    text = files("agent.http").joinpath("openapi.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    loaded["components"]["schemas"] |= {title: _embedded(title, name) for title, name in _MESSAGES.items()}
    return loaded


def _embedded(title: str, name: str) -> dict[str, Any]:
    """Its references lead to itself; more members may stand beside its own."""
    schema = {
        key: value for key, value in load_schema(name).items() if key not in {"$schema", "$id", "additionalProperties"}
    }
    text = json.dumps(schema).replace('"#/$defs/', f'"#/components/schemas/{title}/$defs/')
    made: dict[str, Any] = json.loads(text)
    return made
