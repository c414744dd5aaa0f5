"""Whether a write-ahead log holds commits that SQLite does not believe, because something damaged them.

SQLite reads a log up to the first frame whose checksum is wrong and drops the rest without a word: right for a transaction that a
crash cut off, silent loss for those behind a damaged page. Frames of the present generation carry the salts of the log's header
(https://www.sqlite.org/fileformat2.html, section 4), and the last frame of a commit says how large the database is then.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIIIII")
_MAGIC = 0x377F0682  # its lowest bit: checksums over big-endian words
_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class LogState:
    """What a log says about itself. commits_end: frames up to the last one that closes a commit of this generation; before_last: up
    to the last but one; readable: False when the log has frames and its header is damaged, so that SQLite takes none of them."""

    commits_end: int
    before_last: int = 0
    readable: bool = True

    def lost(self, recovered: int) -> bool:
        """Whether commits were lost that had been synced. recovered: frames that SQLite found good.

        With FULL a commit begins once the one before it is synced, so a power loss can take one at most.
        """
        return not self.readable or self.before_last > recovered

    def cut_off(self, recovered: int) -> bool:
        """Whether there is one commit beyond the good ones: cut off by a power loss, or damaged, which looks the same."""
        return self.readable and self.before_last <= recovered < self.commits_end


def inspect(log: Path) -> LogState:
    """Look at the log before SQLite opens it, which drops what it does not believe. No file is an empty log. Raises OSError."""
    try:
        with log.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return LogState(0)
            magic, _, page, _, *salts, first, second = _HEADER.unpack(header)
            if magic & ~1 != _MAGIC or _checksum(header[:24], big=bool(magic & 1)) != (first, second):
                return LogState(0, readable=not file.read(_FRAME.size))
            ends, number = (0, 0), 0
            while len(frame := file.read(_FRAME.size)) == _FRAME.size:
                number += 1
                _, size_after, *frame_salts, _, _ = _FRAME.unpack(frame)
                if size_after and frame_salts == salts:
                    ends = (ends[1], number)
                file.seek(page, 1)
            whole = (log.stat().st_size - _HEADER.size) // (_FRAME.size + page)
            return LogState(min(ends[1], whole), min(ends[0], whole))
    except FileNotFoundError:
        return LogState(0)


def _checksum(data: bytes, *, big: bool) -> tuple[int, int]:
    """SQLite's sums over pairs of 32-bit words."""
    words = struct.unpack(f"{'>' if big else '<'}{len(data) // 4}I", data)
    first = second = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _WORD
        second = (second + odd + first) & _WORD
    return first, second
