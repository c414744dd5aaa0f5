"""YAML files with the place of every value, and pydantic's complaints about them with file, line and hint."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from agent.config.paths import LocatedStr
from agent.errors import ConfigError, ConfigProblem
from agent.masking import mask_userinfo

Location = tuple[str | int, ...]
Document = TypeVar("Document", bound=BaseModel)

_VARIABLE = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}|\$\{")
_PRIVATE = re.compile(r"password|secret|\burl$")
"""Keys whose values no message repeats."""
_QUOTES = 'write "${NAME}" in quotes: then it is text, whatever is filled in'
_MAX_VALUES = 100_000
"""In one file. A configuration of a thousand cameras has a tenth of it; a few lines of aliases of aliases have millions."""


class Place(NamedTuple):
    """Where a value stands. filled: its text with variables filled in, where YAML judged what that is; else None."""

    file: str
    line: int
    filled: str | None = None


class _TooManyError(Exception):
    """More values than any configuration has."""


def read_document(path: Path, model: type[Document], *, env: Mapping[str, str]) -> Document:
    """The file as a `model`. Raises ConfigError with every problem where it stands."""
    layer = Layer(path, env)
    tree = layer.read()
    if layer.problems:
        raise ConfigError(layer.problems)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [problem_of(item, layer.places, model) for item in error.errors(include_url=False)]
        raise ConfigError(problems) from error


@dataclass(slots=True)
class Layer:
    """One file: its values with variables filled in, and where each of them stands."""

    path: Path
    env: Mapping[str, str]
    places: dict[Location, Place] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)

    def read(self) -> dict[str, Any]:
        """Its values; what is wrong with them is in `problems`."""
        try:
            return self._read()
        except RecursionError:
            hint = "look for an alias (*name) inside what it stands for (&name)"
            self._fail("nested without end, or too deeply", hint=hint)
        except _TooManyError:
            hint = "look for aliases (*name) of lists that hold aliases themselves"
            self._fail(f"more than {_MAX_VALUES:,} values", hint=hint)
        return {}

    def _read(self) -> dict[str, Any]:
        root = self._compose()
        if root is None:
            self.places[()] = Place(str(self.path), 1)
            return {}
        value = self._build(root, ())
        if isinstance(value, dict):
            return value
        self._fail("the top level must be a mapping (key: value)", root.start_mark.line + 1)
        return {}

    def _compose(self) -> yaml.Node | None:
        try:
            return yaml.compose(self.path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            denied = error.errno == errno.EACCES
            hint = "run the command with sudo" if denied else "give the path of a YAML file"
            self._fail(f"cannot be read: {error.strerror}", hint=hint)
        except UnicodeDecodeError as error:
            self._fail(f"is not UTF-8 text (byte {error.start})")
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            self._fail(f"not valid YAML: {error.problem}", line, hint="check indentation, quotes and colons")
        except yaml.YAMLError as error:
            self._fail(f"not valid YAML: {' '.join(str(error).split())}")
        return None

    def _fail(self, message: str, line: int = 0, *, hint: str = "") -> None:
        self.problems.append(ConfigProblem(message, file=str(self.path), line=line, hint=hint))

    def _build(self, node: yaml.Node, where: Location) -> Any:
        if len(self.places) >= _MAX_VALUES:
            raise _TooManyError
        self.places[where] = Place(str(self.path), node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*where, index)) for index, item in enumerate(node.value)]
        return self._build_scalar(node, where)

    def _build_mapping(self, node: yaml.MappingNode, where: Location) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in built:
                path = _dotted((*where, key))
                self.problems.append(ConfigProblem("given twice", str(self.path), line, path, "keep one of them"))
            built[key] = self._build(value_node, (*where, key))
            self.places[(*where, key)] = self.places[(*where, key)]._replace(line=line)
        return built

    def _build_scalar(self, node: yaml.Node, where: Location) -> Any:
        text = self._substitute(str(node.value), node.start_mark.line + 1, where)
        loader = yaml.SafeLoader("")
        tag, hint = node.tag, ""
        if text != node.value and getattr(node, "style", None) is None:  # plain: what was filled in may be a number
            self.places[where] = self.places[where]._replace(filled=text)
            hint = _QUOTES
            tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        try:
            value = loader.construct_object(yaml.ScalarNode(tag, text, node.start_mark, node.end_mark))
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            told = isinstance(error, yaml.YAMLError | ValueError)  # PyYAML stumbles over the others: `!!bool maybe`
            why = " ".join(str(error).split()) if told else f"{text!r} is no {tag.rpartition(':')[2]}"
            message = f"not a valid value: {why}"
            line = node.start_mark.line + 1
            self.problems.append(ConfigProblem(message, str(self.path), line, _dotted(where), hint))
            return None
        return LocatedStr(value, self.path.absolute().parent) if isinstance(value, str) else value

    def _substitute(self, text: str, line: int, where: Location) -> str:
        def fill(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            if match[0] == "${":
                hint = "write ${NAME} or ${NAME:-default}, and $$ for a dollar sign"
                self.problems.append(
                    ConfigProblem("a ${ that names no variable", str(self.path), line, _dotted(where), hint)
                )
                return ""
            if match[1] in self.env:
                return self.env[match[1]]
            if match[2] is None:
                # Not with the name once more: what follows its colon would be masked where the name is that of a password.
                hint = "set it (for the service: in the .env file beside this one, then restart), or write :-default behind its name"
                message = f"the environment variable {match[1]} is not set"
                self.problems.append(ConfigProblem(message, str(self.path), line, _dotted(where), hint))
            return match[3] or ""

        return _VARIABLE.sub(fill, text) if "$" in text else text


def _dotted(where: Location) -> str:
    return ".".join(str(part) for part in where)


def problem_of(item: Any, places: Mapping[Location, Place], model: type[BaseModel]) -> ConfigProblem:
    """A pydantic error with the place of the nearest key that stands in a file."""
    where, section = _walk([part for part in item["loc"] if part != "[key]"], model)
    known = next((where[:n] for n in range(len(where), -1, -1) if where[:n] in places), None)
    file, line, filled = places[known] if known is not None else Place("", 0)
    message, hint = str(item["msg"]).removeprefix("Value error, "), ""
    if item["type"] == "extra_forbidden":
        message, hint = "unknown key", _suggest(str(where[-1]), section)
    elif item["type"] == "missing":
        message, hint = "required key is missing", "add it"
    elif item["type"] == "shipped_model":
        hint = f"one of {', '.join(item['ctx']['known'])}"
        message = f"{item['input']}: {message}"
    elif item["type"] == "pulled_model":
        hint = item["ctx"].get("hint", "")
        message = f"{item['input']}: {message}"
    else:
        given = item.get("input")
        if item["type"] in {"string_type", "path_type"} and filled is not None:
            given, hint = filled, _QUOTES
        if isinstance(given, str | int | float) and not _PRIVATE.search(_dotted(where)):
            message = f"{message}, got {mask_userinfo(str(given))!r}"
    return ConfigProblem(message, file, line, _dotted(where), hint)


def _suggest(key: str, section: type[BaseModel] | None) -> str:
    if section is None:
        return ""
    names = list(section.model_fields)
    longer = [name for name in names if name.startswith(key)]
    close = longer or difflib.get_close_matches(key, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}"


def _walk(places: Iterable[str | int], root: type[BaseModel]) -> tuple[Location, type[BaseModel] | None]:
    """Where an error is as the file has it, and the section around it.

    pydantic names the chosen one of several sections by its `type`, which no file has as a key.
    """
    where: list[str | int] = []
    section: type[BaseModel] | None = root
    around: type[BaseModel] | None = root
    choices: tuple[type[BaseModel], ...] = ()
    named = False  # the key, then the name that somebody gave it, then the type
    for part in places:
        if named and (chosen := next((choice for choice in choices if type_of(choice) == part), None)):
            section, choices, named = chosen, (), False
            continue
        where.append(part)
        around, named = section, bool(choices)
        if section is not None and str(part) in section.model_fields:
            choices = tuple(sections_in(section.model_fields[str(part)].annotation))
            section, named = (choices[0] if choices else None), False
    return tuple(where), around


def type_of(section: type[BaseModel]) -> str:
    """What `type` has to be for `section`, where there are several to choose from."""
    field = section.model_fields.get("type")
    return str(get_args(field.annotation)[0]) if field is not None else ""


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a key's type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)
