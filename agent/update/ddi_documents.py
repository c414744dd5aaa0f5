"""What a server says in hawkBit's device protocol, read with care: only what is needed, and an error names what is wrong. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.errors import DataError
from agent.update.machine import Report

TARGET_KEY = "tuf.target"
"""Key of a software module's metadata that names the target path."""
_MOST_DEPTH = 20
_MOST_CHUNKS = 32
_SLEEP = re.compile(r"^(\d{1,3}):([0-5]\d):([0-5]\d)$")
_ACTION_ID = re.compile(r"^[A-Za-z0-9_-]{1,64}$")
_MAX_VALUE = 128

Text = Annotated[str, Field(max_length=1024)]


class _Part(BaseModel):
    """Members that nobody here needs are passed over: servers add some with every version."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Link(_Part):
    href: str = Field(max_length=4096)


class _Polling(_Part):
    sleep: Text


class _Settings(_Part):
    polling: _Polling | None = None


class _Poll(_Part):
    config: _Settings = _Settings()
    links: Mapping[str, _Link] = Field(default={}, alias="_links")


class _Metadata(_Part):
    key: Text
    value: Annotated[str, Field(max_length=8192)] | None = None


class _Chunk(_Part):
    part: Text
    name: Text
    version: Text
    metadata: tuple[_Metadata, ...] = Field(default=(), max_length=100)


class _Deployment(_Part):
    download: Text = "attempt"
    update: Text = "attempt"
    maintenance_window: Text = Field(default="available", alias="maintenanceWindow")
    chunks: tuple[_Chunk, ...] = Field(max_length=_MOST_CHUNKS)


class _DeploymentBase(_Part):
    id: Text
    deployment: _Deployment


class _ConfirmationBase(_Part):
    id: Text
    confirmation: _Deployment


class _Cancel(_Part):
    stop_id: Text = Field(alias="stopId")


class _CancelAction(_Part):
    id: Text
    cancel: _Cancel = Field(alias="cancelAction")


D = TypeVar("D", bound=_Part)


@dataclass(frozen=True, slots=True)
class Reference:
    """A link of the poll: which action (empty: a link to all of the kind), and the query that tells the server which version of it
    we mean."""

    action_id: str
    query: str = ""


@dataclass(frozen=True, slots=True)
class Poll:
    """What there is to do. sleep_s: until the server wants to be asked again, None = it does not say."""

    sleep_s: float | None = None
    config_data: bool = False
    deployment: Reference | None = None
    cancel: Reference | None = None
    confirmation: Reference | None = None
    installed: Reference | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One software module. target: path in the TUF repository, empty = the server names none."""

    part: str
    name: str
    version: str
    target: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """One action. may_install: the server does not ask to hold the swap back (its own maintenance window); forced: the swap does not
    wait for the device's."""

    action_id: str
    chunks: tuple[Chunk, ...]
    may_download: bool = True
    may_install: bool = True
    forced: bool = False


def read_poll(body: bytes) -> Poll:
    """The answer to a poll. Raises DataError."""
    document = _read(body, _Poll, "poll")
    polling, links = document.config.polling, document.links

    def reference(name: str) -> Reference | None:
        return _reference(links[name].href, name) if name in links else None

    return Poll(
        sleep_s=_seconds(polling.sleep) if polling is not None else None,
        config_data="configData" in links,
        deployment=reference("deploymentBase"),
        cancel=reference("cancelAction"),
        confirmation=reference("confirmationBase"),
        installed=reference("installedBase"),
    )


def read_deployment(body: bytes) -> Deployment:
    """A deployment, or one that has been installed. Raises DataError."""
    document = _read(body, _DeploymentBase, "deployment")
    return _deployment(document.id, document.deployment)


def read_confirmation(body: bytes) -> Deployment:
    """A deployment that waits to be confirmed. Raises DataError."""
    document = _read(body, _ConfirmationBase, "confirmation")
    return _deployment(document.id, document.confirmation)


def read_confirmation_base(body: bytes) -> Reference | None:
    """Which action waits to be confirmed, if any does. Raises DataError."""
    links = _read(body, _Poll, "confirmation base").links
    return _reference(links["confirmationBase"].href, "confirmationBase") if "confirmationBase" in links else None


def read_cancel(body: bytes) -> tuple[str, str]:
    """Ids of the cancel action and of the action that shall stop. Raises DataError."""
    document = _read(body, _CancelAction, "cancel action")
    return _checked_id(document.id, "cancel action"), _checked_id(document.cancel.stop_id, "cancel action")


def feedback_body(action_id: str, report: Report, now_ms: int) -> dict[str, Any]:
    """The body of a feedback."""
    result = {"finished": report.finished}
    status = {"execution": report.execution, "result": result, "code": 0, "details": list(report.details)}
    return {"id": action_id, "timestamp": now_ms, "status": status}


def confirmation_body(report: Report) -> dict[str, Any]:
    """The body of a confirmation: a rejected one is denied."""
    denied = report.execution == "rejected"
    return {
        "confirmation": "denied" if denied else "confirmed",
        "code": -1 if denied else 1,
        "details": list(report.details),
    }


def config_data_body(attributes: Mapping[str, str]) -> dict[str, Any]:
    """The body of a configData request; values are cut to what servers take."""
    return {"mode": "replace", "data": {name: value[:_MAX_VALUE] for name, value in attributes.items()}}


def _deployment(action_id: str, found: _Deployment) -> Deployment:
    chunks = tuple(
        Chunk(one.part, one.name, one.version, next((m.value or "" for m in one.metadata if m.key == TARGET_KEY), ""))
        for one in found.chunks
    )
    install = found.update != "skip" and found.maintenance_window != "unavailable"
    return Deployment(
        _checked_id(action_id, "deployment"), chunks, may_download=found.download != "skip", may_install=install,
        forced=found.update == "forced",
    )  # fmt: skip


def _read(body: bytes, model: type[D], what: str) -> D:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the server's {what} is no JSON: {error}") from error
    if _deeper_than(document, _MOST_DEPTH):
        raise DataError(f"the server's {what} is nested deeper than {_MOST_DEPTH} levels")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataError(f"the server's {what}: {place}: {first['msg']}") from error


def _deeper_than(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper_than(one, levels - 1) for one in inner)


def _reference(href: str, name: str) -> Reference:
    """Only the id and the query of an address are used: a token must not follow a link to another host."""
    try:
        parts = urlsplit(href)
    except ValueError as error:
        raise DataError(f"the server's poll: {name}: {error}") from error
    last = unquote(parts.path.rstrip("/").rpartition("/")[2])
    return Reference("" if last == name else _checked_id(last, name), parts.query)


def _checked_id(text: str, where: str) -> str:
    if not _ACTION_ID.fullmatch(text):
        raise DataError(f"the server's {where}: {text[:80]!r} is no id of an action")
    return text


def _seconds(text: str) -> float:
    match = _SLEEP.fullmatch(text)
    if match is None:
        raise DataError(f"the server's poll: config.polling.sleep: expected HH:MM:SS, got {text[:80]!r}")
    hours, minutes, seconds = (int(part) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)
