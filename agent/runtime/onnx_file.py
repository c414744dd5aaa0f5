"""What an ONNX file says about itself, read without loading it: operator sets, domains, external files.

onnxruntime tells none of this, and the package `onnx` is no dependency of the agent. The file is walked in protobuf's wire
format (protobuf.dev/programming-guides/encoding) by the field numbers of onnx.proto3; weights are stepped over, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from agent.errors import ModelError

MIN_OPSET = 11
_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})
"""What onnxruntime brings along; any other operator would need a library of its own."""
_MAX_DEPTH = 16
"""Graphs inside graphs (If, Loop); files of exporters have two or three."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

# Field numbers of onnx.proto3.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTIONS = 7, 8, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_SPARSE_PARTS = (1, 2)
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 7, 10

Field = tuple[int, int, memoryview]
"""Field number, value of a varint (else 0), bytes of a length-delimited field (else empty)."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """opsets: version of each domain imported, "" = ONNX's own; operators: all that are used, as (domain, type), those of the
    file's own functions left out; external_files: where weights lie that are not in the file, as it says."""

    opsets: dict[str, int]
    operators: frozenset[tuple[str, str]]
    external_files: frozenset[str]


def read_graph_facts(file: Path) -> GraphFacts:
    """Walk `file`. Raises ModelError (unreadable, not protobuf, no graph in it)."""
    try:
        with file.open("rb") as stream:
            content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelError(f"{file}: cannot be read: {error}") from error
    return _Walk(file).model(content)


def graph_problems(model: Path, facts: GraphFacts, *, any_domain: bool = False) -> Iterator[str]:
    """Why the graph in the file `model` must not be loaded: operators, opset, weights outside its folder.

    any_domain: let operators pass that onnxruntime does not bring along."""
    opset = facts.opsets.get("", 0)
    if opset < MIN_OPSET:
        yield f"{model}: opset {opset}, needs {MIN_OPSET} or newer (hint: export it again with a higher opset_version)"
    foreign = sorted(f"{domain}::{kind}" for domain, kind in facts.operators if domain not in _DOMAINS)
    if foreign and not any_domain:
        names = ", ".join(foreign)
        yield f"{model}: operators that onnxruntime does not have: {names} (hint: export it for plain onnxruntime)"
    folder = model.parent.resolve()
    for name in sorted(facts.external_files):
        place = PurePosixPath(name)
        try:
            inside = (folder / place).resolve().is_relative_to(folder)
            there = inside and (folder / place).is_file()
        except (OSError, RuntimeError, ValueError):  # too long a name; links in a circle; a NUL in it
            inside = there = False
        if place.is_absolute() or "\\" in name or not inside:
            yield f"{model}: takes weights from {name!r}, which is outside its folder"
        elif not there:
            yield f"{model}: its weights should be in {name}, which is missing"


@dataclass(slots=True)
class _Walk:
    file: Path
    opsets: dict[str, int] = field(default_factory=dict)
    operators: set[tuple[str, str]] = field(default_factory=set)
    own: set[tuple[str, str]] = field(default_factory=set)
    external: set[str] = field(default_factory=set)

    def model(self, content: memoryview) -> GraphFacts:
        graphs = 0
        for number, _, value in self._fields(content):
            if number == _MODEL_GRAPH:
                graphs += 1
                self._graph(value, 0)
            elif number == _MODEL_OPSET:
                self._opset(value)
            elif number == _MODEL_FUNCTIONS:
                self._function(value)
        if not graphs:
            raise self._error("has no graph")
        return GraphFacts(self.opsets, frozenset(self.operators - self.own), frozenset(self.external))

    def _opset(self, content: memoryview) -> None:
        domain, version = "", 0
        for number, integer, value in self._fields(content):
            if number == _OPSET_DOMAIN:
                domain = self._text(value)
            elif number == _OPSET_VERSION:
                version = integer
        self.opsets["" if domain == "ai.onnx" else domain] = version

    def _function(self, content: memoryview) -> None:
        name = domain = ""
        for number, _, value in self._fields(content):
            if number == _FUNCTION_NAME:
                name = self._text(value)
            elif number == _FUNCTION_DOMAIN:
                domain = self._text(value)
            elif number == _FUNCTION_NODE:
                self._node(value, 0)
        self.own.add((domain, name))

    def _graph(self, content: memoryview, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self._error("nests graphs too deeply")
        for number, _, value in self._fields(content):
            if number == _GRAPH_NODE:
                self._node(value, depth)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(value)
            elif number == _GRAPH_SPARSE:
                self._sparse(value)

    def _node(self, content: memoryview, depth: int) -> None:
        kind = domain = ""
        for number, _, value in self._fields(content):
            if number == _NODE_OP_TYPE:
                kind = self._text(value)
            elif number == _NODE_DOMAIN:
                domain = self._text(value)
            elif number == _NODE_ATTRIBUTE:
                self._attribute(value, depth)
        self.operators.add(("" if domain == "ai.onnx" else domain, kind))

    def _attribute(self, content: memoryview, depth: int) -> None:
        for number, _, value in self._fields(content):
            if number in _ATTRIBUTE_TENSORS:
                self._tensor(value)
            elif number in _ATTRIBUTE_GRAPHS:
                self._graph(value, depth + 1)
            elif number in _ATTRIBUTE_SPARSE:
                self._sparse(value)

    def _sparse(self, content: memoryview) -> None:
        for number, _, value in self._fields(content):
            if number in _SPARSE_PARTS:
                self._tensor(value)

    def _tensor(self, content: memoryview) -> None:
        for number, _, value in self._fields(content):
            if number == _TENSOR_EXTERNAL:
                entry = {key: self._text(text) for key, _, text in self._fields(value)}
                if entry.get(_ENTRY_KEY) == "location":
                    self.external.add(entry.get(_ENTRY_VALUE, ""))

    # --- wire format --------------------------------------------------------------------------------------------------

    def _fields(self, content: memoryview) -> Iterator[Field]:
        position = 0
        while position < len(content):
            tag, position = self._varint(content, position)
            kind, integer, length = tag & 7, 0, 0
            if kind == _VARINT:
                integer, position = self._varint(content, position)
            elif kind == _BYTES:
                length, position = self._varint(content, position)
            elif kind in {_FIXED64, _FIXED32}:
                length = 8 if kind == _FIXED64 else 4
            else:
                raise self._error("is not an ONNX file")
            if position + length > len(content):
                raise self._error("is cut short, or not an ONNX file")
            yield tag >> 3, integer, content[position : position + length]
            position += length

    def _varint(self, content: memoryview, position: int) -> tuple[int, int]:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if position + index >= len(content):
                break
            byte = content[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise self._error("is cut short, or not an ONNX file")

    def _text(self, value: memoryview) -> str:
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError:
            raise self._error("is not an ONNX file: a name is not UTF-8") from None

    def _error(self, problem: str) -> ModelError:
        return ModelError(f"{self.file}: {problem}")
