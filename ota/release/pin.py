"""The newest root that the holder of a key has seen, kept beside the key: a repository comes from a server, and servers fall.

Without it a thief who has the server could bring a chain of roots of his own that names the operator's targets key, and have a
list signed that began with what he had put there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from agent.durable import write_durably
from agent.errors import DataError, TrustError

NAME = "trusted-root.json"


class Pin:
    """`trusted-root.json` in the folder of keys; nothing is kept where no folder is named."""

    def __init__(self, folder: Path | None) -> None:
        self.file = folder / NAME if folder is not None else None

    @classmethod
    def beside(cls, keys: Sequence[Path]) -> Pin:
        """keys: files and folders, as they were named; the first folder counts. One that is not there yet is a folder to be made."""
        folders = [place.parent if place.is_file() else place for place in keys]
        return cls(folders[0] if folders else None)

    def read(self) -> Metadata[Root] | None:
        """None: this is the first time. Raises DataError."""
        if self.file is None:
            return None
        try:
            return Metadata[Root].from_bytes(self.file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, RepositoryError) as error:
            hint = "bring it back from a backup, or delete it if you know that the repository is yours"
            raise DataError(f"{self.file}: no root metadata: {error} (hint: {hint})") from error

    def keep(self, root: Metadata[Root]) -> bool:
        """Remember `root`, unless a newer one is known; True: it is the first. Raises DataError, OSError."""
        known = self.read()
        if self.file is None or (known is not None and known.signed.version >= root.signed.version):
            return False
        write_durably(self.file, root.to_bytes())
        return known is None

    def require(self, known: Metadata[Root], root: Metadata[Root] | None) -> Metadata[Root]:
        """`root`, which is `known`, of which another copy may have more signatures; None = there is none. Raises TrustError."""
        if root is not None and root.signed_bytes == known.signed_bytes:
            return root
        what = (
            f"root {known.signed.version} is not the one" if root is not None else f"lacks root {known.signed.version}"
        )
        hint = "somebody has exchanged the repository: bring back a copy. Keys that serve two repositories need a folder for each"
        raise TrustError(f"{what} that {self.file} remembers (hint: {hint})")
