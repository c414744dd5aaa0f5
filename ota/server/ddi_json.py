"""Answers of the device interface as JSON objects. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ota.store.polls import Due, Poll
from ota.store.rows import Action, ActionState, Device, FeedbackRow, ReleaseRow

TUF_TARGET = "tuf.target"
"""Key of the metadata that names the target path in the TUF repository."""
_STATUS_NAMES = {
    ActionState.WAITING: "WAIT_FOR_CONFIRMATION",
    ActionState.PENDING: "RUNNING",
}


class Links:
    """Addresses below one device. base: scheme, host and what a proxy puts before our paths."""

    def __init__(self, base: str, tenant: str, controller_id: str) -> None:
        self.device = f"{base}/{quote(tenant, safe='')}/controller/v1/{quote(controller_id, safe='')}"
        self._secure = base.startswith("https:")

    def to(self, path: str) -> dict[str, str]:
        return {"href": f"{self.device}/{path}"}

    def action(self, kind: str, action_id: int, state: ActionState, *, forced: bool) -> dict[str, str]:
        """`c` changes with the action, so that a cached answer does not hide that."""
        mark = zlib.crc32(f"{action_id}:{state is ActionState.WAITING}:{forced}".encode()) & 0x7FFFFFFF
        return self.to(f"{kind}/{action_id}?c={mark}")

    def artifact(self, release: ReleaseRow) -> dict[str, Any]:
        """hawkBit's names for both schemes."""
        path = f"softwaremodules/{release.id}/artifacts/{quote(release.file_name, safe='')}"
        suffix = "" if self._secure else "-http"
        return {f"download{suffix}": self.to(path), f"md5sum{suffix}": self.to(f"{path}.MD5SUM")}


def poll(links: Links, sleep: str, answer: Poll) -> dict[str, Any]:
    """What there is to do, and when to ask again (HH:MM:SS)."""
    found: dict[str, dict[str, str]] = {}
    if answer.due is not None:
        found |= _due(links, answer.due)
    if answer.installed_action_id is not None:
        found["installedBase"] = links.to(f"installedBase/{answer.installed_action_id}")
    if answer.device.ask_attributes:
        found["configData"] = links.to("configData")
    body: dict[str, Any] = {"config": {"polling": {"sleep": sleep}}}
    return body | {"_links": found} if found else body


def _due(links: Links, due: Due) -> dict[str, dict[str, str]]:
    if due.state is ActionState.CANCELING:
        return {"cancelAction": links.to(f"cancelAction/{due.action_id}")}
    kind = "confirmationBase" if due.state is ActionState.WAITING else "deploymentBase"
    return {kind: links.action(kind, due.action_id, due.state, forced=due.forced)}


def deployment(links: Links, action: Action, release: ReleaseRow, history: Sequence[FeedbackRow]) -> dict[str, Any]:
    """`deploymentBase`, `installedBase` and `confirmationBase` of one action."""
    handling = "forced" if action.forced else "attempt"
    body: dict[str, Any] = {
        "id": str(action.id),
        "deployment": {"download": handling, "update": handling, "chunks": [chunk(links, release)]},
    }
    if history:
        messages = [text for row in history for text in (row.details or (f"Device reported {row.execution}",))]
        body["actionHistory"] = {"status": _STATUS_NAMES.get(action.state, action.state.upper()), "messages": messages}
    return body


def chunk(links: Links, release: ReleaseRow) -> dict[str, Any]:
    """A release is one chunk of one artifact; which target of the repository it is stands in the metadata."""
    return {
        "part": release.slot, "version": release.version, "name": release.name,
        "artifacts": [artifact(links, release)], "metadata": [{"key": TUF_TARGET, "value": release.target}],
    }  # fmt: skip


def artifact(links: Links, release: ReleaseRow) -> dict[str, Any]:
    return {
        "filename": release.file_name,
        "hashes": {"sha1": release.sha1, "md5": release.md5, "sha256": release.sha256},
        "size": release.length,
        "_links": links.artifact(release),
    }


def cancellation(action_id: int) -> dict[str, Any]:
    return {"id": str(action_id), "cancelAction": {"stopId": str(action_id)}}


def confirmation(links: Links, device: Device, due: Due | None) -> dict[str, Any]:
    """`confirmationBase`: whether the device says yes to everything, and what waits for its yes."""
    state: dict[str, Any] = {"active": device.auto_confirm is not None}
    if device.auto_confirm is not None:
        state |= {
            "initiator": device.auto_confirm.by or None, "remark": device.auto_confirm.remark,
            "activatedAt": device.auto_confirm.at_ms,
        }  # fmt: skip
    switch = "deactivateAutoConfirm" if device.auto_confirm is not None else "activateAutoConfirm"
    found = {switch: links.to(f"confirmationBase/{switch}")}
    if due is not None and due.state is ActionState.WAITING:
        found |= _due(links, due)
    return {"autoConfirm": state, "_links": found}
