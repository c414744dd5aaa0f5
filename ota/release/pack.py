"""From a bundle folder, or a configuration file, to the archive that travels: the same bytes from the same content."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from pydantic import ValidationError

from agent.errors import ConfigError, ConfigProblem, DataError
from agent.runtime.bundle import MANIFEST, load_bundle, sha256_of
from agent.update.archive import BLOCK, MAX_FILES, RECORD
from agent.update.contents import CONFIGURATION, check_contents
from agent.update.fit import contract_of
from agent.update.release import Minimum, Release

_LEVEL = 19
_WINDOW_LOG = 23
"""8 MiB: what every reader of zstd has to support, and the most that a device takes."""
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the signer decides. slot: empty = of the manifest's task (only `pose`); name, version: of a configuration;
    runtimes: empty = all; minimum: fields of `agent.update.release.Minimum`."""

    slot: str = ""
    name: str = ""
    version: str = ""
    min_agent: str = "0.0.0"
    runtimes: tuple[str, ...] = ()
    minimum: Mapping[str, float | None] = field(default_factory=dict)
    allow_custom_ops: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """An archive with its description. file: its bytes; length: of them."""

    file: Path
    release: Release
    length: int
    sha256: str


def pack(source: Path, folder: Path, number: Mapping[str, int], wishes: Wishes) -> Packed:
    """`source` as an archive in `folder`. source: a bundle folder, or a YAML file, which makes a `configuration`.

    number: highest given out so far, by slot. The bundle is checked as the device will check it.
    Raises ModelError, TrustError (the bundle), ConfigError (a wish that does not fit), DataError, OSError.
    """
    if source.is_dir():
        files = _files(source)
        release = _release(_of_bundle(source, wishes), files, number, wishes)
        check_contents(source, release, allow_custom_ops=wishes.allow_custom_ops)
    elif source.is_file() and source.suffix in {".yaml", ".yml"}:
        _require_configuration(source)
        files = {CONFIGURATION: source}
        release = _release(_of_configuration(source, wishes), files, number, wishes)
    else:
        raise DataError(f"{source}: neither a bundle folder nor a YAML file")
    archive = folder / f"{release.name}-{release.version}.tar.zst"
    with archive.open("wb") as out:
        write_archive(files, out)
        out.flush()
        os.fsync(out.fileno())
    return Packed(archive, release, archive.stat().st_size, sha256_of(archive))


def write_archive(files: Mapping[str, Path], out: BinaryIO) -> None:
    """ustar in zstd, by name, without times, owners and rights of their own."""
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=_WINDOW_LOG, write_checksum=True)
    size = 0
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False) as packed:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mode = files[name].stat().st_size, _MODE
            packed.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
            with files[name].open("rb") as content:
                while chunk := content.read(1 << 20):
                    packed.write(chunk)
            packed.write(bytes(-info.size % BLOCK))
            size += BLOCK + info.size + (-info.size % BLOCK)
        packed.write(bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD))


def _files(folder: Path) -> dict[str, Path]:
    """Every file of a bundle by its name in it. Raises DataError for what no device would take."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise DataError(f"{path}: links and special files do not travel")
        if path.is_file():
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                raise DataError(f"{path}: hidden files do not travel (hint: delete it)")
            found[name] = path
    if len(found) > MAX_FILES:
        raise DataError(f"{folder}: {len(found)} files, {MAX_FILES} are allowed")
    return found


def _of_bundle(folder: Path, wishes: Wishes) -> dict[str, Any]:
    manifest = load_bundle(folder).manifest
    if manifest is None:
        raise DataError(f"{folder}: no bundle")
    slot = wishes.slot or ("pose" if manifest.task == "pose" else "")
    if not slot:
        raise ConfigError([ConfigProblem("which service is it for?", path="--slot", hint="--slot action/fight")])
    return {
        "slot": slot, "name": manifest.name, "version": manifest.version, "contract": contract_of(manifest),
        "manifest_sha256": sha256_of(folder / MANIFEST),
    }  # fmt: skip


def _of_configuration(file: Path, wishes: Wishes) -> dict[str, Any]:
    for option, value in (("--name", wishes.name), ("--version", wishes.version)):
        if not value:
            raise ConfigError([ConfigProblem("a configuration has no name and version of its own", path=option)])
    return {"slot": "configuration", "name": wishes.name, "version": wishes.version, "manifest_sha256": sha256_of(file)}


def _require_configuration(file: Path) -> None:
    """Whether it names what a device has of its own (its services), only the device can say; all else is looked at here."""
    from agent.config.layer import lay_over
    from agent.config.load import load_config

    try:
        lay_over(load_config(env={}, need_pulled_models=False), file)
    except ConfigError as error:
        problems = [
            problem for problem in error.problems if not problem.message.startswith("this device has no such entry")
        ]
        if problems:
            raise ConfigError(problems) from error


def _release(
    fields: Mapping[str, Any], files: Mapping[str, Path], number: Mapping[str, int], wishes: Wishes
) -> Release:
    slot = fields["slot"]
    given: dict[str, Any] = {"runtimes": wishes.runtimes} if wishes.runtimes else {}
    try:
        return Release(
            **fields, **given, number=number.get(slot, 0) + 1, min_agent=wishes.min_agent,
            unpacked_bytes=sum(file.stat().st_size for file in files.values()),
            minimum=Minimum.model_validate({key: value for key, value in wishes.minimum.items() if value is not None}),
        )  # fmt: skip
    except ValidationError as error:
        raise ConfigError(_problems(error)) from error


def _problems(error: ValidationError) -> Sequence[ConfigProblem]:
    return [
        ConfigProblem(problem["msg"], path=".".join(str(part) for part in problem["loc"])) for problem in error.errors()
    ]
