"""Model bundles: a folder with a manifest that says what the model is and proves that its bytes are the released ones.

    <name>/
      manifest.json   a `Manifest` (agent.runtime.manifest) as JSON
      model.onnx      and whatever else it needs (external weights)
      golden.npz      inputs with the outputs the model must give for them; whole numbers 0-255 may be kept as uint8
      CARD.md         for people; documents are not sealed, so that a spelling can be mended

`python -m agent.runtime.bundle FOLDER` checks the checksums of a bundle, `--seal` writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from agent.errors import ModelError, RecognizerError, TrustError
from agent.runtime.manifest import GOLDEN, Agreement, FileInfo, Golden, Manifest
from agent.runtime.people import Tolerance, compare_people

MANIFEST = "manifest.json"
_DOCUMENTS = frozenset({".md", ".txt"})
_CHUNK_BYTES = 1 << 20
_REDUCED_PRECISION_ATOL = 2e-2
_REDUCED_PRECISION_SCORE = 0.05
_REDUCED_PRECISION_PX = 4.0
"""TF32 (the default of CUDA and TensorRT) and FP16 keep three decimal digits; sound engines stay within these."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified model. manifest: None for a bare model file, which proves nothing about itself."""

    path: Path
    model: Path
    model_sha256: str
    manifest: Manifest | None

    @property
    def title(self) -> str:
        """Name for reports: `fight 0.3.0`, or the file's stem."""
        return f"{self.manifest.name} {self.manifest.version}" if self.manifest else self.model.stem


class GoldenError(ModelError):
    """The model does not answer as its bundle says it must."""


class Runnable(Protocol):
    """The part of an inference session that a golden check needs."""

    @property
    def device(self) -> str:
        """`cpu`, `cuda:0`, `tensorrt:0`."""
        ...

    @property
    def output_names(self) -> Sequence[str]: ...

    def run(self, feeds: Mapping[str, Array]) -> list[Array]: ...


def load_bundle(path: Path) -> Bundle:
    """Read and verify the bundle folder `path`; a bare `.onnx` file is taken as it is.

    Raises ModelError (missing, unreadable, wrong manifest), TrustError (a checksum, an unlisted file, a path that
    leaves the folder).
    """
    bundle = read_bundle(path)
    for problem in seal_problems(bundle):
        raise problem
    return bundle


def read_bundle(path: Path) -> Bundle:
    """As `load_bundle`, but what the manifest says about the files is taken on trust. Raises ModelError."""
    if path.is_file() and path.suffix == ".onnx":
        return Bundle(path, path, sha256_of(path), None)
    if not path.exists():
        raise ModelError(f"{path}: no such model (hint: give a bundle folder with {MANIFEST}, or an .onnx file)")
    manifest = _read_manifest(path)
    return Bundle(path, path / manifest.model, manifest.files[manifest.model].sha256, manifest)


def seal_problems(bundle: Bundle) -> Iterator[RecognizerError]:
    """Everything in which the folder is not what was sealed, as the errors that `load_bundle` raises."""
    if bundle.manifest is None:
        return
    for name, info in bundle.manifest.files.items():
        try:
            _verify(bundle.path, name, info)
        except (ModelError, TrustError) as problem:
            yield problem
    # A graph may load weights from files beside it: what is not listed must not be there.
    extra = [name for name in _sealed_names(bundle.path) if name not in bundle.manifest.files]
    if extra:
        yield TrustError(f"{bundle.path}: not in the manifest: {', '.join(extra)}")


def check_golden(bundle: Bundle, session: Runnable, *, reduced_precision: bool = False) -> None:
    """Run the golden inputs and compare. Nothing to do for a bundle without golden data.

    reduced_precision: the session computes in TF32 or FP16; an error of 0.02, and of 4 px for people, is forgiven unless
    the manifest has figures for the session's provider.
    Raises GoldenError that names the output and the largest difference; ModelError when golden.npz cannot be read.
    """
    manifest = bundle.manifest
    if manifest is None or manifest.golden is None:
        return
    inputs, expected = read_golden(bundle, manifest)
    agreement = agreement_of(manifest.golden, session.device, reduced_precision=reduced_precision)
    found = dict(zip(session.output_names, session.run(inputs), strict=True))
    for name, want in expected.items():
        if name not in found:
            raise GoldenError(
                f"{bundle.title}: golden output {name!r} should have shape {want.shape}, found no such output"
            )
    people = people_outputs(manifest, expected)
    if people:
        dets, keypoints = people
        tolerance = Tolerance(agreement.min_score, agreement.score, agreement.position_px)
        known, seen = (expected[dets], expected[keypoints]), (found[dets], found[keypoints])
        if difference := compare_people(known, seen, tolerance):
            raise GoldenError(f"{bundle.title}: golden {difference}")
    for name in expected.keys() - set(people):
        _compare(f"{bundle.title}: ", name, expected[name], found[name], agreement)


def agreement_of(golden: Golden, device: str, *, reduced_precision: bool) -> Agreement:
    """How far answers of `device` may be off. reduced_precision: see `check_golden`."""
    kind = device.partition(":")[0]
    for provider, agreement in golden.providers.items():
        if provider == kind:
            return agreement
    if not reduced_precision:
        return golden
    return Agreement(
        rtol=golden.rtol,
        atol=max(golden.atol, _REDUCED_PRECISION_ATOL),
        min_score=golden.min_score,
        score=max(golden.score, _REDUCED_PRECISION_SCORE),
        position_px=max(golden.position_px, _REDUCED_PRECISION_PX),
    )


def people_outputs(manifest: Manifest, expected: Mapping[str, Array]) -> tuple[str, ...]:
    """Names of boxes and key points where golden.npz has both, else nothing."""
    named = {output.meaning: output.name for output in manifest.outputs if output.name in expected}
    pair = (named.get("detections"), named.get("keypoints"))
    return tuple(name for name in pair if name) if all(pair) else ()


def _compare(where: str, name: str, want: Array, have: Array, agreement: Agreement) -> None:
    if have.shape != want.shape:
        raise GoldenError(f"{where}golden output {name!r} should have shape {want.shape}, found shape {have.shape}")
    if not np.allclose(have, want, rtol=agreement.rtol, atol=agreement.atol):
        worst = float(np.max(np.abs(have.astype(np.float64) - want.astype(np.float64))))
        raise GoldenError(
            f"{where}output {name!r} differs from the golden one by up to {worst:.3g} "
            f"(allowed: {agreement.atol:g} + {agreement.rtol:g} x value)"
        )


def write_golden(file: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Write known answers for `check_golden`; names are those of the graph."""
    arrays = {f"input.{name}": value for name, value in inputs.items()}
    arrays |= {f"output.{name}": value for name, value in outputs.items()}
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # the stub takes keywords for `allow_pickle`


def seal_bundle(folder: Path, fields: Mapping[str, Any]) -> Manifest:
    """Hash every file of `folder` (documents aside), write manifest.json, return it.

    fields: the manifest without `files`; `golden` is filled in when golden.npz lies there and nothing is said.
    Raises ModelError when the fields do not make a manifest.
    """
    files = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in _sealed_names(folder)
    }
    content = dict(fields) | {"files": files}
    if GOLDEN in files and content.get("golden") is None:
        content["golden"] = {}
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise ModelError(f"{folder}: {_explain(error)}") from error
    temporary = folder / f".{MANIFEST}.new"
    temporary.write_text(json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    temporary.replace(folder / MANIFEST)
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror} (hint: a bundle is a folder with it)") from error
    except ValidationError as error:
        unsealed = any(problem["loc"] == ("files",) and problem["type"] == "missing" for problem in error.errors())
        hint = f" (hint: `python -m agent.runtime.bundle --seal {folder}` writes `files`)" if unsealed else ""
        raise ModelError(f"{file}: {_explain(error)}{hint}") from error


def _explain(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'manifest'}: {problem['msg']}"
        for problem in error.errors()
    )


def _verify(folder: Path, name: str, info: FileInfo) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise TrustError(f"{folder}: the manifest lists {name!r}, which is outside the bundle")
    file = folder / relative
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
        found = sha256_of(file) if inside else ""
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{file}: listed in the manifest, but cannot be read: {why}") from error
    if not inside:
        raise TrustError(f"{folder}: {name!r} is a link that leaves the bundle")
    if found != info.sha256:
        raise TrustError(f"{file}: sha256 is {found}, the manifest says {info.sha256}")


def _sealed_names(folder: Path) -> list[str]:
    names = []
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and not hidden and relative.name != MANIFEST and file.suffix not in _DOCUMENTS:
            names.append(relative.as_posix())
    return names


def read_golden(bundle: Bundle, manifest: Manifest) -> tuple[dict[str, Array], dict[str, Array]]:
    """Golden inputs and outputs by name, batch first. Raises ModelError when the file cannot be used."""
    file = bundle.path / (manifest.golden.file if manifest.golden else GOLDEN)
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            inputs = {name.removeprefix("input."): data[name] for name in data.files if name.startswith("input.")}
            outputs = {name.removeprefix("output."): data[name] for name in data.files if name.startswith("output.")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{file}: not a readable .npz file: {error}") from error
    if not inputs or not outputs:
        raise ModelError(f"{file}: needs arrays named input.<name> and output.<name>")
    for name, value in outputs.items():
        if value.dtype.kind not in "biuf":
            raise ModelError(f"{file}: output.{name} is of type {value.dtype}, expected numbers")
    dtypes = {info.name: info.dtype for info in manifest.inputs}
    for name, value in inputs.items():
        if value.dtype == np.uint8 and name in dtypes:  # a picture, kept small
            inputs[name] = value.astype(dtypes[name])
    return inputs, outputs


def sha256_of(file: Path) -> str:
    """Checksum of a file as hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def main(arguments: Sequence[str]) -> int:
    """The command of the module's docstring; returns its exit code."""
    seal = "--seal" in arguments
    folders = [Path(argument) for argument in arguments if not argument.startswith("-")]
    if not folders:
        sys.stderr.write("usage: python -m agent.runtime.bundle [--seal] FOLDER...\n")
        return 2
    for folder in folders:
        try:
            if seal:
                fields = json.loads((folder / MANIFEST).read_bytes())
                fields.pop("files", None)
                seal_bundle(folder, fields)
            bundle = load_bundle(folder)
        except (ModelError, TrustError, OSError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        more = f"`recognizer-agent models verify {folder}` asks for the golden answers, too"
        sys.stdout.write(f"{bundle.title}: good checksums, sha256 {bundle.model_sha256}; {more}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
