"""Tokens: random, shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

MIN_LENGTH = 16
"""Of a token that somebody else made up."""


def new_token() -> str:
    """256 random bits, in letters that need no quoting."""
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """What is kept of a token. Plain SHA-256: slow hashes are for secrets that can be guessed."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def matches(token: str, token_hash: str | None) -> bool:
    """Takes as long whatever it is, also when there is nothing to compare with."""
    same = hmac.compare_digest(hash_of(token), token_hash or "0" * 64)
    return same and token_hash is not None


def write_secret(path: Path, text: str) -> None:
    """A new file that its owner alone can read, and on the disk. Raises OSError (also when it is there already)."""
    with secret_file(path) as file:
        file.write(text + "\n")


@contextmanager
def secret_file(path: Path) -> Iterator[TextIO]:
    """As `write_secret`, for a text that is not known yet; no file stays when it does not come. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
