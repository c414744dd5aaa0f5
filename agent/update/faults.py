"""Why something that came over the air is not believed."""

from __future__ import annotations

from typing import Literal

from agent.errors import TrustError

Reason = Literal[
    "clock", "expired", "rollback", "mix-and-match", "signature", "length", "hash", "format", "archive", "manifest", "content", "release",
]  # fmt: skip
"""clock: of this device; expired: metadata too old, or held back (freeze); rollback: older than what was seen before; mix-and-match:
files that do not belong together; signature: too few good ones; length: more bytes than allowed (endless data); hash: other bytes
than signed; format: not TUF's; archive: not a plain archive of plain files; manifest: not the signed one; content: a file that is
no mere data; release: the bundle is not what its signed description says."""


class UntrustedError(TrustError):
    """Metadata, archive or bundle refused. reason: one word for machines."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
