"""An OpenAPI document, by default `ota/server/openapi.yaml`, as something that requests and answers can be held against."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from ota.server.openapi import document

URI = "urn:api"
METHODS = frozenset({"get", "put", "post", "patch", "delete"})


class ContractError(AssertionError):
    """A request or an answer that the document does not know, or not like this."""


class Api:
    """seen: the operations that were answered well, and the statuses of refusals."""

    def __init__(self, given: dict[str, Any] | None = None) -> None:
        self.document = given or document()
        resource: Resource[Any] = Resource.from_contents(self.document, default_specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource(URI, resource)
        self.seen: set[tuple[str, str]] = set()
        self.refused: set[int] = set()

    def operations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By method and path."""
        return {
            (method.upper(), path): operation
            for path, item in self.document["paths"].items()
            for method, operation in item.items()
            if method in METHODS
        }

    def role_of(self, operation: dict[str, Any]) -> str:
        [needs] = operation.get("security", self.document["security"])
        [role] = needs["bearer"]
        return str(role)

    def hold(self, method: str, path: str, body: Any, status: int, content: bytes, content_type: str) -> None:
        """Raises ContractError. body: of the request, None without one; held against the document only when it was accepted."""
        operation_path = self._path(method, path.partition("?")[0])
        if operation_path is None:
            if status < 400:
                raise ContractError(f"{method} {path} is not in the document")
            return
        operation = self.operations()[method, operation_path]
        answers = operation["responses"]
        if str(status) not in answers and status < 400:
            raise ContractError(f"{method} {path}: status {status} is not in the document")
        answer = self._resolve(answers.get(str(status), answers["default"]))
        if "content" not in answer:
            if content:
                raise ContractError(f"{method} {path}: {status} has a body, the document none")
        elif content_type not in answer["content"]:
            raise ContractError(f"{method} {path}: {content_type} is not in the document")
        elif content_type == "application/json":
            self._fits(answer["content"][content_type]["schema"], json.loads(content), f"{method} {path} -> {status}")
        if status >= 400:
            self.refused.add(status)
            return
        self.seen.add((method, operation_path))
        if body is not None:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self._fits(schema, body, f"{method} {path}, request")

    def check_schemas(self) -> None:
        """Every schema is one, and every reference leads somewhere."""
        for schema in self.document["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)
        for name in re.findall(r'"\$ref": "([^"]+)"', json.dumps(self.document)):
            self._resolve({"$ref": name})

    def _path(self, method: str, path: str) -> str | None:
        """A fixed path goes before one with a parameter."""
        fitting = [
            template
            for known, template in self.operations()
            if known == method and re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path)
        ]
        return min(fitting, key=lambda template: template.count("{"), default=None)

    def _resolve(self, node: Any) -> Any:
        while "$ref" in node:
            found = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            node = found
        return node

    def _fits(self, schema: dict[str, Any], value: Any, where: str) -> None:
        absolute = json.loads(json.dumps(schema).replace('"#/', f'"{URI}#/'))
        validator = jsonschema.Draft202012Validator(absolute, registry=self._registry)
        errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
        if errors:
            raise ContractError(f"{where}: {'; '.join(errors[:5])}")
