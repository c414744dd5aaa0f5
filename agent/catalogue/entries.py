"""The catalogue: models that do not ship but can be pulled, with everything that is known about them beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agent.config.paths import resource_dir
from agent.errors import ModelError
from agent.runtime.manifest import FileInfo, InputInfo, OutputInfo, Provenance

FILE = "catalogue.json"
MODEL = "model.onnx"
UNVERIFIED = "+unverified"
"""Ends the version of a bundle whose model came without a known checksum."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Source(_Part):
    """One place that has the model.

    member: the model's name inside a zip archive, empty = the address serves the model itself; max_bytes: limit for an
    archive, whose size is not known.
    """

    name: str = Field(pattern=_NAME)
    url: str
    revision: str = ""
    member: str = ""
    max_bytes: int = Field(default=1_000_000_000, gt=0)

    @field_validator("url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
            raise ValueError("must be an http(s) address without user and password")
        return value

    @property
    def same_file(self) -> bool:
        """Does this place serve the very file whose checksum the catalogue has? An archive may hold another export."""
        return not self.member


class Entry(_Part):
    """One model of the catalogue. `file`: size and sha256 of the model itself; inputs, outputs: the contract it has to keep."""

    name: str = Field(pattern=_NAME)
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9_.-]{0,63}$")
    task: Literal["pose", "action"]
    description: str
    licence: str
    training_data: str
    figures: dict[str, Any] = {}
    labels: tuple[str, ...] = ()
    file: FileInfo
    sources: tuple[Source, ...] = Field(min_length=1)
    inputs: tuple[InputInfo, ...] = Field(min_length=1)
    outputs: tuple[OutputInfo, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("two sources have the same name")
        return self

    def source(self, name: str) -> Source:
        """The source called `name`. Raises ModelError that names those there are."""
        for source in self.sources:
            if source.name == name:
                return source
        known = ", ".join(source.name for source in self.sources)
        raise ModelError(
            f"{self.name} has no source {name!r} (hint: its sources are {known}; or give an http(s) address)"
        )

    def manifest_fields(self, provenance: Provenance) -> dict[str, Any]:
        """What `seal_bundle` needs to make a bundle of the model, wherever it came from."""
        fields = self.model_dump(mode="json", exclude={"file", "sources"})
        if provenance.trust != "catalogue":  # another file: it must not pass for the one that the catalogue knows
            fields["version"] = self.version + UNVERIFIED
        return fields | {"model": MODEL, "provenance": provenance.model_dump(mode="json")}


class Catalogue(_Part):
    """What stands in catalogue.json; unknown keys are refused."""

    catalogue: Literal[1]
    models: tuple[Entry, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [entry.name for entry in self.models]
        if len(set(names)) < len(names):
            raise ValueError("two models have the same name")
        return self

    def find(self, name: str) -> Entry | None:
        """The entry called `name`."""
        return next((entry for entry in self.models if entry.name == name), None)


def load_catalogue(file: Path | None = None) -> Catalogue:
    """The catalogue in `file`; by default the one that comes with the agent. Raises ModelError that names file, key and remedy."""
    path = file or resource_dir("models") / FILE
    hint = "leave out --catalogue to use the shipped one" if file else "install the agent again, or give a --catalogue"
    try:
        content = path.read_bytes()
        if not content.strip():
            raise ModelError(f"{path}: the catalogue is empty (hint: {hint})")
        return Catalogue.model_validate_json(content)
    except OSError as error:
        raise ModelError(f"{path}: the catalogue cannot be read: {error.strerror} (hint: {hint})") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'catalogue'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ModelError(f"{path}: not a catalogue of models: {problems} (hint: {hint})") from error
