"""`docs/asyncapi.yaml` as something that messages can be held against."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema
import yaml

LEVEL = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
FILE = Path(__file__).resolve().parents[2] / "docs" / "asyncapi.yaml"


class ContractError(AssertionError):
    """A message that the contract does not know, or not like this."""


class _Loader(yaml.SafeLoader):
    """Times stay text, as in JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Contract:
    """The channels, and for each topic the messages that may come on it."""

    def __init__(self, file: Path = FILE) -> None:
        self.file = file
        self.document: dict[str, Any] = yaml.load(file.read_text(encoding="utf-8"), _Loader)

    def resolve(self, node: Any) -> Any:
        """What a `$ref` stands for, followed to its end; anything else as it is. Raises ContractError."""
        while isinstance(node, dict) and "$ref" in node:
            place, _, pointer = node["$ref"].partition("#")
            try:
                target: Any = json.loads((self.file.parent / place).read_text()) if place else self.document
                for key in pointer.split("/")[1:]:
                    target = target[key.replace("~1", "/").replace("~0", "~")]
            except (OSError, KeyError, TypeError) as error:
                raise ContractError(f"{node['$ref']} leads nowhere: {error!r}") from error
            node = target
        return node

    def references(self) -> Iterator[dict[str, str]]:
        """Every `$ref` of the document."""
        yield from self._references(self.document)

    def _references(self, node: Any) -> Iterator[dict[str, str]]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node
            for inner in node.values():
                yield from self._references(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from self._references(inner)

    @cached_property
    def patterns(self) -> dict[str, re.Pattern[str]]:
        """What the topics of a channel look like, by its name."""
        return {
            name: re.compile("".join(
                f"(?P<{part[1:-1]}>{LEVEL})" if part.startswith("{") else re.escape(part)
                for part in re.split(r"({[a-z]+})", channel["address"])
            ))
            for name, channel in self.document["channels"].items()
        }  # fmt: skip

    def channel_of(self, topic: str) -> str:
        """The name of the one channel that `topic` belongs to. Raises ContractError."""
        names = [name for name, pattern in self.patterns.items() if pattern.fullmatch(topic)]
        if len(names) != 1:
            raise ContractError(f"{topic}: of no channel" if not names else f"{topic}: of several channels: {names}")
        return names[0]

    def messages_of(self, channel: str) -> dict[str, dict[str, Any]]:
        """The messages of a channel, by name."""
        return {name: self.resolve(node) for name, node in self.document["channels"][channel]["messages"].items()}

    def check(self, topic: str, payload: bytes) -> tuple[str, str]:
        """Channel and message that `payload` on `topic` is one of, exactly. Raises ContractError."""
        channel, complaints, found = self.channel_of(topic), [], []
        for name, message in self.messages_of(channel).items():
            try:
                self.validator(message).validate(self.decode(message, payload))
                found.append(name)
            except (ValueError, jsonschema.ValidationError) as error:
                complaints.append(f"  no {name}: {str(error).splitlines()[0]}")
        if len(found) != 1:
            raise ContractError("\n".join([f"{topic}: {payload[:300]!r} is {found or 'no message'}", *complaints]))
        self._match_topic(topic, channel, payload)
        return channel, found[0]

    def decode(self, message: dict[str, Any], payload: bytes) -> Any:
        """The payload as its content type has it. Raises ValueError."""
        content_type = message.get("contentType", self.document["defaultContentType"])
        if content_type == "image/jpeg":
            if not payload.startswith(b"\xff\xd8\xff"):
                raise ValueError("no JPEG")
            return payload.decode("latin-1")
        text = payload.decode("utf-8")
        return text if content_type in ("text/plain", "application/jwt") else json.loads(text, parse_constant=_refuse)

    def validator(self, message: dict[str, Any]) -> jsonschema.Draft202012Validator:
        """For the payload of a message."""
        schema = self.resolve(message["payload"])
        return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())

    def _match_topic(self, topic: str, channel: str, payload: bytes) -> None:
        """What a payload says of device, camera and kind is what its topic says."""
        match = self.patterns[channel].fullmatch(topic)
        if match is None or channel not in ("cameraState", "cameraEvents", "deviceEvents"):
            return
        document = json.loads(payload)
        body = document.get("data", document)
        said = {key: body[key] for key in ("device", "camera", "kind") if key in body}
        expected = {"camera": "", **match.groupdict()} if channel == "deviceEvents" else match.groupdict()
        differs = {key: value for key, value in said.items() if value != expected[key]}
        if differs:
            raise ContractError(f"{topic}: the payload says {differs}")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
