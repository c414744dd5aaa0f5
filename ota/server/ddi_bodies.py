"""What devices send, as hawkBit's DDI documents it. Keys that we do not know are passed over, long texts are cut: a report is never
lost for its form where its meaning is clear."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ota.store import feedback
from ota.store.rows import Report

MAX_DETAILS, MAX_DETAIL = 50, 1024
MAX_KEY, MAX_VALUE = 128, 1024
_INT32 = 2**31


def _as_list(value: Any) -> Any:
    """Some clients send null or one text."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _counts(value: Any) -> Any:
    """`cnt` and `of`; what else a client puts there is left out."""
    if not isinstance(value, dict):
        return {}
    return {
        key: value[key] for key in ("cnt", "of")
        if isinstance(value.get(key), int) and not isinstance(value[key], bool) and abs(value[key]) < _INT32
    }  # fmt: skip


Details = Annotated[list[str], BeforeValidator(_as_list)]
Code = Annotated[int, Field(ge=-_INT32, lt=_INT32)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Result(_Body):
    finished: Literal["success", "failure", "none"]
    progress: Annotated[dict[str, int], BeforeValidator(_counts)] = Field(default_factory=dict)


class Status(_Body):
    execution: Literal["closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download"]
    result: Result
    code: Code | None = None
    details: Details = Field(default_factory=list)


class ActionFeedback(_Body):
    """`id`, `time` and `timestamp` of older and newer clients are not needed: the path and our clock say it."""

    status: Status

    def report(self, kind: str) -> Report:
        status = self.status
        return Report(
            kind, status.execution, status.result.finished, status.code, cut(status.details), status.result.progress
        )


class ConfirmationFeedback(_Body):
    confirmation: Literal["confirmed", "denied"]
    code: Code | None = None
    details: Details = Field(default_factory=list)

    def report(self) -> Report:
        return Report(feedback.CONFIRMATION, self.confirmation, "none", self.code, cut(self.details), {})


class ConfigData(_Body):
    data: dict[
        Annotated[str, Field(min_length=1, max_length=MAX_KEY)], Annotated[str, Field(max_length=MAX_VALUE)] | None
    ]
    mode: Literal["merge", "replace", "remove"] | None = None

    @property
    def values(self) -> dict[str, str]:
        return {clean(key): clean(value or "") for key, value in self.data.items()}


class AutoConfirmation(_Body):
    initiator: Annotated[str, Field(max_length=64)] | None = None
    remark: Annotated[str, Field(max_length=512)] | None = None


class InstalledVersion(_Body):
    """A release that came onto the device by another way."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    version: Annotated[str, Field(min_length=1, max_length=64)]


def cut(details: list[str]) -> tuple[str, ...]:
    """At most MAX_DETAILS texts of MAX_DETAIL characters."""
    return tuple(clean(text[:MAX_DETAIL]) for text in details[:MAX_DETAILS])


def clean(text: str) -> str:
    """Without the one character that PostgreSQL's text cannot hold."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
