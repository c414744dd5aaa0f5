"""Is an unpacked bundle mere data, and what its signed description says? Used by the device and, before signing, by `pack`."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from agent.errors import ModelError
from agent.runtime.bundle import MANIFEST, load_bundle, sha256_of
from agent.runtime.manifest import Manifest
from agent.runtime.onnx_file import graph_problems, read_graph_facts
from agent.update.faults import UntrustedError
from agent.update.fit import contract_of
from agent.update.release import Release

CONFIGURATION = "configuration.yaml"
"""The one file of a configuration's archive."""
SUFFIXES = frozenset({".onnx", ".data", ".npz", ".json", ".md", ".txt"})
"""What a bundle may hold: graphs with their weights, arrays, text. No pickle, no library, no script, no engine."""
MAX_ARRAYS_BYTES = 1 << 30
"""Unpacked size of all arrays of one .npz file."""
_MAX_HEADER_BYTES = 4096


def check_contents(folder: Path, release: Release, *, allow_custom_ops: bool = False) -> None:
    """Refuse the folder when it is not what `release` says, or holds more than data.

    allow_custom_ops: take graphs with operators of domains that onnxruntime does not bring along.
    Raises UntrustedError (manifest, content, release), TrustError (a checksum of the manifest), ModelError.
    """
    if release.slot == "configuration":
        _check_configuration(folder, release)
        return
    if not (folder / MANIFEST).is_file():
        raise UntrustedError("manifest", f"{release.title}: holds no {MANIFEST}")
    _check_digest(folder / MANIFEST, release)
    manifest = load_bundle(folder).manifest
    if manifest is None:
        raise UntrustedError("manifest", f"{release.title}: no bundle")
    _check_description(manifest, release)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.suffix not in SUFFIXES:
            raise UntrustedError("content", f"{release.title}: {file.name}: a bundle holds no files of this kind")
        if file.suffix == ".npz":
            _check_arrays(file, release)
        elif file.suffix == ".onnx":
            _check_graph(folder, file, manifest, release, allow_custom_ops)


def _check_configuration(folder: Path, release: Release) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    if names != [CONFIGURATION]:
        raise UntrustedError(
            "content", f"{release.title}: a configuration is one file {CONFIGURATION}, found {', '.join(names)}"
        )
    _check_digest(folder / CONFIGURATION, release)


def _check_digest(file: Path, release: Release) -> None:
    found = sha256_of(file)
    if found != release.manifest_sha256:
        raise UntrustedError(
            "manifest", f"{release.title}: sha256 of {file.name} is {found}, signed is {release.manifest_sha256}"
        )


def _check_description(manifest: Manifest, release: Release) -> None:
    pairs = (
        ("name", manifest.name, release.name), ("version", manifest.version, release.version),
        ("task", manifest.task, release.slot.partition("/")[0]), ("contract", contract_of(manifest), release.contract),
    )  # fmt: skip
    for what, found, signed in pairs:
        if found != signed:
            raise UntrustedError("release", f"{release.title}: its {what} is {found!s}, the signed one {signed!s}")


def _check_graph(folder: Path, file: Path, manifest: Manifest, release: Release, allow_custom_ops: bool) -> None:
    facts = read_graph_facts(file)
    for problem in graph_problems(file, facts, any_domain=allow_custom_ops):
        raise UntrustedError("content", f"{release.title}: {problem}")
    for name in facts.external_files:  # a document is not sealed: weights in it could be changed afterwards
        inside = (file.parent / name).resolve().relative_to(folder.resolve()).as_posix()
        if inside not in manifest.files:
            raise UntrustedError(
                "content", f"{release.title}: {file.name} takes weights from {name!r}, which is not sealed"
            )


def _check_arrays(file: Path, release: Release) -> None:
    """Plain arrays whose sizes are what the zip says: no pickled objects, no zip bomb, no array larger than its bytes."""
    try:
        with zipfile.ZipFile(file) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            if total > MAX_ARRAYS_BYTES:
                raise UntrustedError("content", f"{release.title}: {file.name} unpacks to {total:,} bytes")
            for entry in archive.infolist():
                with archive.open(entry) as stream:
                    problem = _array_problem(stream, entry.file_size)
                if problem:
                    raise UntrustedError("content", f"{release.title}: {file.name}: {entry.filename}: {problem}")
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, MemoryError) as error:
        raise ModelError(f"{release.title}: {file.name}: not a readable .npz file: {error}") from error


def _array_problem(stream: Any, size: int) -> str:
    """Of one .npy file of `size` bytes; empty = plain."""
    header = _BoundedHeader(stream)
    version = np.lib.format.read_magic(header)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        return f"format {version} of NumPy is not known"
    shape, _, dtype = read(header, max_header_size=_MAX_HEADER_BYTES)
    if dtype.hasobject:
        return "holds pickled objects"
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - header.count:
        return f"says {shape} of {dtype}, which is not what it holds"
    return ""


class _BoundedHeader:
    """Lets NumPy read a header, not more."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size:,} bytes")
        content = self._stream.read(size)
        self.count += len(content)
        return content
