"""The agent's errors, one class per way a caller reacts.

RecognizerError
├── TransientError          try again later (network, camera, busy device)
│   ├── SourceError         a camera or file cannot be opened or read now
│   ├── QuotaError          the broker asks for patience: wait the longest
│   ├── UnexplainedError    the broker refused one message and does not say why: try again, but not for ever
│   ├── BusyError           the other side says when to come again
│   ├── AccessError         the other side does not let us in, or is not there at all: wait the longest, tell a person
│   └── DeviceMemoryError   the accelerator is out of memory: a smaller batch may fit
├── DataError               this one input is unusable: drop it, count it, go on
├── ModelError              a model file, engine or plug-in cannot serve
├── StorageError            the event database cannot be read or written
│   └── StorageFullError    ... because the disk (or its reserve) is full
├── RejectedError           the broker refused this message for good: dead letter
├── ConfigError             the configuration is wrong: say where, exit 78
├── TrustError              a signature or checksum does not hold: refuse
└── FatalError              state that only a fresh process can repair: exit non-zero
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RecognizerError(Exception):
    """Base of every error the agent raises on purpose."""


class TransientError(RecognizerError):
    """Retry later."""


class SourceError(TransientError):
    """A video source cannot be opened or read at the moment."""


class QuotaError(TransientError):
    """The broker takes no more from this client for now."""


class UnexplainedError(TransientError):
    """The broker is there and refused this message without a reason that helps."""

    def __init__(self, message: str, reason_code: int) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class BusyError(TransientError):
    """The other side asks to come again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AccessError(TransientError):
    """Address, rights or certificates do not fit: a person has to mend it, here or there."""


class DeviceMemoryError(TransientError):
    """The accelerator is out of memory."""


class DataError(RecognizerError):
    """One input is unusable; the caller drops it, counts it and goes on."""


class ModelError(RecognizerError):
    """A model, an engine or a plug-in cannot serve."""


class StorageError(RecognizerError):
    """The event database cannot be read or written."""


class StorageFullError(StorageError):
    """The event database has no room."""


class RejectedError(RecognizerError):
    """The broker refused a message for good."""

    def __init__(self, message: str, reason_code: int) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class TrustError(RecognizerError):
    """A signature or checksum does not hold."""


class FatalError(RecognizerError):
    """Only a fresh process can repair this state."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong with the configuration.

    `file` and `line` (from 1) say where it stands, `path` is the dotted key (`cameras.0.source`),
    `message` what is wrong and `hint` what to write instead; any of them may be empty / 0.
    """

    message: str
    file: str = ""
    line: int = 0
    path: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = ":".join(part for part in (self.file, str(self.line or ""), self.path) if part)
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} (hint: {self.hint})" if self.hint else text


class ConfigError(RecognizerError):
    """Every problem found in the configuration, all at once."""

    def __init__(self, problems: Sequence[ConfigProblem] | str) -> None:
        self.problems = (ConfigProblem(problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
