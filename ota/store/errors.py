"""What may be wrong with a request to the store; the HTTP side gives each its status."""

from __future__ import annotations

from agent.errors import DataError


class MissingError(DataError):
    """There is no such row. 404"""


class ConflictError(DataError):
    """It does not fit the state that the row is in. 409"""


class ClosedError(DataError):
    """The action is at its end. 410"""


class LimitError(DataError):
    """More than one device (or action) may take of the store. 403"""
