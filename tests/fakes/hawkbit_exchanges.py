"""Exchanges of hawkBit's Direct Device Integration API, written after its documentation (https://eclipse.dev/hawkbit/rest-api/ddi/).

A contract for both sides: the agent's client has to understand every answer here, and our server's answers have to have every member
of them, of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HOST = "https://updates.example.com"
CONTROLLER = "CONTROLLER_ID"
BASE = "/DEFAULT/controller/v1/CONTROLLER_ID"
ACTION = 8
MODULE = 11
TARGET = "pose/pose-nano-0.7.0.tar.zst"
FILE = "pose-nano-0.7.0.tar.zst"


@dataclass(frozen=True, slots=True)
class Exchange:
    """path: below BASE, with its query; request, answer: JSON, None = no body; headers: of the request.

    state: what the action is in before it (a word of `ActionState`), empty = there is none.
    """

    name: str
    method: str
    path: str
    status: int
    request: Any = None
    answer: Any = None
    state: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def _href(path: str) -> dict[str, str]:
    return {"href": f"{HOST}{BASE}{path}"}


def _feedback(
    execution: str, finished: str, *details: str, code: int | None = None, progress: dict[str, int] | None = None
) -> dict[str, Any]:
    result: dict[str, Any] = {"finished": finished}
    if progress is not None:
        result["progress"] = progress
    status: dict[str, Any] = {"execution": execution, "result": result, "details": list(details)}
    if code is not None:
        status["code"] = code
    return {"timestamp": 1627997501890, "status": status}


POLLING = {"config": {"polling": {"sleep": "12:00:00"}}}
CHUNK: dict[str, Any] = {
    "part": "pose",
    "version": "0.7.0",
    "name": "pose-nano",
    "artifacts": [
        {
            "filename": FILE,
            "hashes": {
                "sha1": "2d86c2a659e364e9abba49ea6ffcd53dd5559f05",
                "md5": "0d1b08c34858921bc7c662b228acb7ba",
                "sha256": "a03b221c6c6eae7122ca51695d456d5222e524889136394944b2f9763b483615",
            },
            "size": 1103,
            "_links": {
                "download-http": _href(f"/softwaremodules/{MODULE}/artifacts/{FILE}"),
                "md5sum-http": _href(f"/softwaremodules/{MODULE}/artifacts/{FILE}.MD5SUM"),
            },
        }
    ],
    "metadata": [{"key": "tuf.target", "value": TARGET}],
}
DEPLOYMENT: dict[str, Any] = {"download": "attempt", "update": "attempt", "chunks": [CHUNK]}

POLLS = (
    Exchange("poll, nothing to do", "GET", "", 200, answer=POLLING),
    Exchange(
        "poll, first contact", "GET", "", 200, state="asked",
        answer=POLLING | {"_links": {"configData": _href("/configData")}},
    ),
    Exchange(
        "poll, deployment", "GET", "", 200, state="pending",
        answer=POLLING | {"_links": {"deploymentBase": _href(f"/deploymentBase/{ACTION}?c=-2127183556")}},
    ),
    Exchange(
        "poll, cancellation", "GET", "", 200, state="canceling",
        answer=POLLING | {"_links": {"cancelAction": _href(f"/cancelAction/{ACTION}")}},
    ),
    Exchange(
        "poll, confirmation", "GET", "", 200, state="waiting",
        answer=POLLING | {"_links": {"confirmationBase": _href(f"/confirmationBase/{ACTION}?c=-2122565939")}},
    ),
    Exchange(
        "poll, installed", "GET", "", 200, state="finished",
        answer=POLLING | {"_links": {
            "installedBase": _href(f"/installedBase/{ACTION}"), "configData": _href("/configData")
        }},
    ),
)  # fmt: skip

RESOURCES = (
    Exchange(
        "deployment", "GET", f"/deploymentBase/{ACTION}?c=-2127183556", 200, state="pending",
        answer={"id": "8", "deployment": DEPLOYMENT},
    ),
    Exchange(
        "deployment with history", "GET", f"/deploymentBase/{ACTION}?actionHistory=10", 200, state="running",
        answer={
            "id": "8", "deployment": DEPLOYMENT,
            "actionHistory": {"status": "RUNNING", "messages": ["Reboot", "Write firmware", "Download done"]},
        },
    ),
    Exchange(
        "deployment, forced", "GET", f"/deploymentBase/{ACTION}", 200, state="forced",
        answer={"id": "8", "deployment": DEPLOYMENT | {"download": "forced", "update": "forced"}},
    ),
    Exchange(
        "cancellation", "GET", f"/cancelAction/{ACTION}", 200, state="canceling",
        answer={"id": "8", "cancelAction": {"stopId": "8"}},
    ),
    Exchange(
        "installed", "GET", f"/installedBase/{ACTION}", 200, state="finished",
        answer={"id": "8", "deployment": DEPLOYMENT},
    ),
    Exchange(
        "confirmation base", "GET", "/confirmationBase", 200, state="waiting",
        answer={
            "autoConfirm": {"active": False},
            "_links": {
                "activateAutoConfirm": _href("/confirmationBase/activateAutoConfirm"),
                "confirmationBase": _href(f"/confirmationBase/{ACTION}?c=-2122565939"),
            },
        },
    ),
    Exchange(
        "confirmation of an action", "GET", f"/confirmationBase/{ACTION}", 200, state="waiting",
        answer={"id": "8", "confirmation": DEPLOYMENT},
    ),
    Exchange(
        "artifacts", "GET", f"/softwaremodules/{MODULE}/artifacts", 200, state="pending", answer=CHUNK["artifacts"]
    ),
    Exchange("deployment of nobody", "GET", "/deploymentBase/4711", 404, state="pending"),
    Exchange("deployment being cancelled", "GET", f"/deploymentBase/{ACTION}", 404, state="canceling"),
    Exchange("deployment to be confirmed", "GET", f"/deploymentBase/{ACTION}", 404, state="waiting"),
    Exchange("cancellation of nothing", "GET", f"/cancelAction/{ACTION}", 404, state="running"),
    Exchange("installed, but it is not", "GET", f"/installedBase/{ACTION}", 404, state="running"),
)  # fmt: skip

_DEPLOYED = f"/deploymentBase/{ACTION}/feedback"
_CANCELED = f"/cancelAction/{ACTION}/feedback"
_CONFIRMED = f"/confirmationBase/{ACTION}/feedback"
REPORTS = (
    *(
        Exchange(f"feedback {execution}", "POST", _DEPLOYED, 200, state="retrieved",
                 request=_feedback(execution, "none", "text of the device", progress={"cnt": 2, "of": 5}))
        for execution in ("proceeding", "scheduled", "rejected", "resumed", "download", "downloaded")
    ),
    Exchange("feedback canceled", "POST", _DEPLOYED, 200, _feedback("canceled", "success"), state="retrieved"),
    Exchange("feedback success", "POST", _DEPLOYED, 200, _feedback("closed", "success", code=200), state="running"),
    Exchange("feedback failure", "POST", _DEPLOYED, 200, _feedback("closed", "failure", "no space"), state="running"),
    Exchange("feedback on a closed action", "POST", _DEPLOYED, 410, _feedback("closed", "success"), state="canceled"),
    Exchange("feedback to be confirmed", "POST", _DEPLOYED, 404, _feedback("proceeding", "none"), state="waiting"),
    Exchange("feedback without result", "POST", _DEPLOYED, 400, {"status": {"execution": "closed"}}, state="running"),
    Exchange("feedback of another kind", "POST", _DEPLOYED, 400, _feedback("begun", "none"), state="running"),
    Exchange("cancel done", "POST", _CANCELED, 200, _feedback("closed", "success"), state="canceling"),
    Exchange("cancel failed", "POST", _CANCELED, 200, _feedback("closed", "failure"), state="canceling"),
    Exchange("cancel rejected", "POST", _CANCELED, 200, _feedback("rejected", "failure", "too late"), state="canceling"),
    Exchange("cancel of nothing", "POST", _CANCELED, 405, _feedback("closed", "success"), state="running"),
    Exchange("confirmed", "POST", _CONFIRMED, 200, {"confirmation": "confirmed", "code": 200, "details": ["yes"]},
             state="waiting"),
    Exchange("denied", "POST", _CONFIRMED, 200, {"confirmation": "denied", "details": ["not now"]}, state="waiting"),
    Exchange("confirmation nobody waits for", "POST", _CONFIRMED, 404, {"confirmation": "confirmed"}, state="running"),
    Exchange("confirmation of a closed action", "POST", _CONFIRMED, 410, {"confirmation": "confirmed"},
             state="canceled"),
    Exchange("attributes", "PUT", "/configData", 200, {"mode": "merge", "data": {"VIN": "JH4TB", "hwRevision": "2"}}),
    Exchange("attributes, all new", "PUT", "/configData", 200, {"mode": "replace", "data": {"VIN": "JH4TB"}}),
    Exchange("attributes, away", "PUT", "/configData", 200, {"mode": "remove", "data": {"VIN": ""}}),
    Exchange("attributes without mode", "PUT", "/configData", 200, {"data": {"VIN": "JH4TB"}}),
    Exchange("attributes, unknown mode", "PUT", "/configData", 400, {"mode": "add", "data": {"VIN": "JH4TB"}}),
    Exchange("yes to everything", "POST", "/confirmationBase/activateAutoConfirm", 200,
             {"initiator": "exampleUserId", "remark": "exampleRemark"}),
    Exchange("no longer", "POST", "/confirmationBase/deactivateAutoConfirm", 200),
    Exchange("installed by hand", "PUT", "/installedBase", 201, {"name": "pose-nano", "version": "0.7.0"}),
)  # fmt: skip

ALL = (*POLLS, *RESOURCES, *REPORTS)


def differences(expected: Any, found: Any, where: str = "answer") -> list[str]:
    """What `found` lacks of `expected`, or has of another kind; texts and numbers may be others, further members too."""
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return [f"{where}: {type(found).__name__} instead of an object"]
        missing = [f"{where}.{key} is missing" for key in expected.keys() - found.keys()]
        both = expected.keys() & found.keys()
        return missing + [text for key in both for text in differences(expected[key], found[key], f"{where}.{key}")]
    if isinstance(expected, list):
        if not isinstance(found, list) or bool(expected) != bool(found):
            return [f"{where}: {found!r} instead of a list like {expected!r}"]
        return [text for n, item in enumerate(found) for text in differences(expected[0], item, f"{where}[{n}]")]
    return [] if type(found) is type(expected) else [f"{where}: {found!r} instead of something like {expected!r}"]
