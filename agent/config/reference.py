"""`python -m agent.config.reference`: every key of the configuration as Markdown, made from the schema itself.

Its output is `docs/configuration.md`; a test keeps the two in step.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from agent.config.documents import sections_in, type_of
from agent.config.schema import AgentConfig

_HEAD = """# Configuration

Made from `agent/config/schema.py` by `python -m agent.config.reference > docs/configuration.md`; do not edit by hand.

The shipped `configs/default.yaml` comes first, the files given with `--config` are laid over it in their order, and what
none of them names has the default below. Mappings are merged key by key; lists are replaced whole. `${NAME}` and
`${NAME:-default}` stand for environment variables, `$$` for a dollar sign; write `"${NAME}"` in quotes where a text is
wanted, or digits, `yes` and nothing at all are what YAML takes them for. Relative paths start at the folder of the file
that names them. Unknown keys are errors. `recognizer-agent check-config FILE` names every problem with file and line.

**Unit**: lengths of time in s or ms, fractions from 0 to 1, as the last part of a key says.
**Reload** (`systemctl reload recognizer-agent`, SIGHUP): *live* keys apply at once; *camera* keys too, the camera that
changed is closed and opened again while the others go on; *restart* keys wait for a restart, and the agent says so. A
configuration with an error is not applied at all. A service that is new or taken out waits for a restart; a camera that
names a new one is watched by its other services until then, or by those before.
A **name** has 1 to 64 letters, digits, `_` and `-` and starts with a letter or digit.
"""
_UNITS = {
    "s": "s", "ms": "ms", "px": "px", "bytes": "bytes", "c": "°C", "days": "days", "hz": "1/s", "fps": "frames/s",
    "frames": "frames", "rows": "rows",
}  # fmt: skip
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def render() -> str:
    """The whole page."""
    definitions = AgentConfig.model_json_schema(by_alias=False)
    parts = [_HEAD, *_sections(AgentConfig, "", definitions, "restart", set())]
    return "\n".join(parts)


def _sections(
    model: type[BaseModel], path: str, schema: Mapping[str, Any], reload: str, shown: set[tuple[str, type[BaseModel]]]
) -> Iterator[str]:
    """The table of `model`, then the tables of the sections in it; what several sections share is shown once."""
    if (path, model) in shown:
        return
    shown.add((path, model))
    about, notes = " ".join(inspect.cleandoc(model.__doc__ or "").split()), _notes(model)
    definition = schema if model is AgentConfig else schema["$defs"][model.__name__]
    rows, inner = [], []
    for key, info in model.model_fields.items():
        found = definition["properties"][key]
        live = "live" if found.get("live") else reload
        sections = tuple(sections_in(info.annotation))
        if not sections:
            default = "required" if info.is_required() else _default(found)
            text = notes.get(key, "")
            rows.append(f"| `{key}` | {_type(found)} | {_unit(key)} | {default} | {_limits(found)} | {live} | {text} |")
        else:
            kind = found.get("type")
            tail = {"array": f"{key}[]", "object": f"{key}.NAME"}.get(str(kind), key)
            inner += [(section, f"{path}{tail}", "camera" if key == "cameras" else live) for section in sections]
    title = f"`{path.removesuffix('.')}`" if path else "Top level"
    title += f" with `type: {kind}`" if (kind := type_of(model)) else ""
    yield f"\n## {title}\n\n{about}\n"
    if rows:
        yield "| key | type | unit | default | limits | reload | meaning |\n|---|---|---|---|---|---|---|"
        yield from rows
    for section, inner_path, inner_reload in inner:
        yield from _sections(section, f"{inner_path}.", schema, inner_reload, shown)


def _notes(model: type[BaseModel]) -> dict[str, str]:
    """The strings that stand below the keys in the source of `model`, and of the sections that it builds on."""
    above = [base for base in model.__bases__ if issubclass(base, BaseModel) and base is not BaseModel]
    notes = {key: note for base in above for key, note in _notes(base).items()}
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - what a class's source parses to
    for key, note in zip(body.body, body.body[1:], strict=False):
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(note, ast.Expr):
            text = ast.literal_eval(note.value)
            notes[key.target.id] = " ".join(text.split()).replace("|", "\\|")
    return notes


def _unit(key: str) -> str:
    if key.endswith("bytes_per_s"):
        return "bytes/s"
    return "px²" if key.endswith("_area_px") else _UNITS.get(key.rsplit("_", 1)[-1], "")


def _given(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What stands there when it is not null."""
    return next((choice for choice in found.get("anyOf", ()) if choice.get("type") != "null"), found)


def _type(found: Mapping[str, Any]) -> str:
    found = _given(found)
    if "enum" in found or "const" in found:
        return "choice"
    if found["type"] == "array":
        return f"list of {_type(found['items'])}s"
    if found["type"] == "object":
        inner = found.get("additionalProperties")
        return f"mapping to {_type(inner)}" if isinstance(inner, dict) and inner else "mapping"
    plain = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true / false"}
    special = {_NAME: "name", "path": "path"}.get(found.get("pattern") or found.get("format", ""))
    return special or plain[found["type"]]


def _limits(found: Mapping[str, Any]) -> str:
    found = _given(found)
    values = found.get("enum", [found["const"]] if "const" in found else [])
    if values:
        return ", ".join(f"`{value}`" for value in values)
    if found.get("type") == "array" and "enum" in found["items"]:
        return _limits(found["items"])
    if found.get("type") == "object":
        keys = found.get("propertyNames", {}).get("enum", ())
        return ", ".join(f"`{key}`" for key in keys)
    if "pattern" in found and found["pattern"] != _NAME:
        return f"`{found['pattern']}`".replace("|", "\\|")
    return ", ".join(f"{sign} {found[name]:,}".replace(",", " ") for name, sign in _BOUNDS if name in found)


def _default(found: Mapping[str, Any]) -> str:
    value = found.get("default")
    if value is None:
        return "none"
    return f"`{json.dumps(value, ensure_ascii=False)}`" if value != "" else "empty"


if __name__ == "__main__":
    sys.stdout.write(render())
