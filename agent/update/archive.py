"""Unpacks what came over the air: a `.tar.zst` of plain files, read as a stream, and nothing it says is taken on trust.

Only the plainest archives are known: ustar headers, regular files, names of letters, digits and `_.+-`. All that makes archives
dangerous (links, devices, sparse files, extended headers, absolute or climbing names, names that differ by case alone) is not
handled with care but not handled at all. Python's `tarfile` decodes a header; it extracts nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import zstandard

from agent.durable import sync
from agent.update.contents import check_contents
from agent.update.faults import UntrustedError
from agent.update.release import Release

MAX_FILES = 256
MAX_DEPTH = 4
MAX_WINDOW_BYTES = 1 << 23
"""Of zstd: what decompression takes in memory. 8 MiB is what its format asks every reader to support."""
BLOCK = 512
RECORD = 20 * BLOCK
"""Archives are padded to it."""
_CHUNK_BYTES = 1 << 20
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755


def unpack(file: Path, folder: Path, release: Release, *, allow_custom_ops: bool = False) -> None:
    """The archive `file` as the bundle `folder` (absent, or empty), checked, each file and folder flushed to the disk.

    Not more than `release.unpacked_bytes` is written. On any error the folder is left empty.
    Raises UntrustedError with its `reason` (archive, manifest, content, release), ModelError (what no agent could load), OSError.
    """
    folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder}: not empty")
    try:
        with file.open("rb") as packed:
            _extract(packed, folder, release.unpacked_bytes, file.name)
        check_contents(folder, release, allow_custom_ops=allow_custom_ops)
        for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            sync(inner)
        sync(folder)
    except BaseException:
        _empty(folder)
        raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _extract(packed: BinaryIO, folder: Path, limit_bytes: int, title: str) -> None:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    left = limit_bytes
    try:
        with decompressor.stream_reader(packed, read_size=_CHUNK_BYTES, closefd=False) as stream:
            members = _Members(stream, title)
            for name, size in members:
                left -= size
                if left < 0:
                    raise UntrustedError(
                        "archive", f"{title}: unpacks to more than the {limit_bytes:,} bytes it may have"
                    )
                _write(folder, name, members.content(size))
            members.expect_end()
    except zstandard.ZstdError as error:
        raise UntrustedError("archive", f"{title}: not readable as zstd: {error}") from error


def _write(folder: Path, name: PurePosixPath, chunks: Iterator[bytes]) -> None:
    target = folder / name
    target.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(target, flags, _FILE_MODE), "wb") as out:
        os.fchmod(out.fileno(), _FILE_MODE)
        for chunk in chunks:
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())


class _Members:
    """The files of a tar stream, in order: name and size; read a file's `content` before the next."""

    def __init__(self, stream: BinaryIO, title: str) -> None:
        self._stream = stream
        self._title = title
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def __iter__(self) -> Iterator[tuple[PurePosixPath, int]]:
        while True:
            header = self._exactly(BLOCK)
            if not any(header):
                return
            if len(self._files) >= MAX_FILES:
                raise self._refused(f"has more than {MAX_FILES} files")
            yield self._member(header)

    def content(self, size: int) -> Iterator[bytes]:
        """`size` bytes in chunks, and the padding after them."""
        left = size
        while left:
            chunk = self._exactly(min(left, _CHUNK_BYTES))
            left -= len(chunk)
            yield chunk
        if any(self._exactly(-size % BLOCK)):
            raise self._refused("has something between its files")

    def expect_end(self) -> None:
        """Nothing but zeros, and not more than a record of them, may follow the first empty block."""
        rest = self._upto(RECORD + 1)
        if len(rest) < BLOCK or len(rest) > RECORD or any(rest):
            raise self._refused("does not end where it should")

    def _member(self, header: bytes) -> tuple[PurePosixPath, int]:
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._refused(f"has a header that cannot be read: {error}") from error
        if header[257:265] != b"ustar\x0000":
            raise self._refused("is no ustar archive")
        if info.type != tarfile.REGTYPE or info.linkname:
            raise self._refused(f"holds {info.name!r}, which is no plain file")
        if info.size < 0:
            raise self._refused(f"gives {info.name!r} a size below 0")
        return self._name(info.name), info.size

    def _name(self, name: str) -> PurePosixPath:
        path = PurePosixPath(name)
        if (
            str(path) != name
            or not 1 <= len(path.parts) <= MAX_DEPTH
            or not all(_PART.fullmatch(part) for part in path.parts)
        ):
            raise self._refused(f"holds the name {name!r}, which is not allowed")
        key, folders = name.casefold(), {str(parent).casefold() for parent in path.parents} - {"."}
        if key in self._files or key in self._folders or folders & self._files:
            raise self._refused(f"holds {name!r} twice, or as a file and a folder")
        self._files.add(key)
        self._folders |= folders
        return path

    def _exactly(self, size: int) -> bytes:
        content = self._upto(size)
        if len(content) < size:
            raise self._refused("is cut short")
        return content

    def _upto(self, size: int) -> bytes:
        parts = []
        while size and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _refused(self, problem: str) -> UntrustedError:
        return UntrustedError("archive", f"{self._title}: {problem}")
