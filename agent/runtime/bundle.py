"""Model bundles: a folder with a manifest that says what the model is and proves that its bytes are the released ones.

    <name>/
      manifest.json   this module's `Manifest`, as JSON
      model.onnx      and whatever else it needs (external weights)
      golden.npz      inputs with the outputs the model must give for them
      CARD.md         for people; documents are not sealed, so that a spelling can be mended

`python -m agent.runtime.bundle FOLDER` checks a bundle, `--seal` writes its checksums anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.errors import ModelError, TrustError

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
_DOCUMENTS = frozenset({".md", ".txt"})
_CHUNK_BYTES = 1 << 20
_REDUCED_PRECISION_ATOL = 2e-2
"""TF32 (the default of CUDA and TensorRT) and FP16 keep three decimal digits; sound engines stay within this."""

Array = NDArray[Any]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Dimension = int | str | None
"""A fixed size, or a name / null for a size that may vary."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LetterboxInput(_Part):
    """Pictures: aspect-preserving resize onto a padded canvas, 0-255, not normalised."""

    kind: Literal["letterbox"] = "letterbox"
    anchor: Literal["top_left", "center"] = "top_left"
    channels: Literal["bgr", "rgb"] = "bgr"
    pad_value: int = Field(default=114, ge=0, le=255)


class SkeletonInput(_Part):
    """Windows of skeletons: which channels, how normalised, at which rate the model was trained."""

    kind: Literal["skeleton"] = "skeleton"
    channels: tuple[Literal["x", "y", "score"], ...] = ("x", "y", "score")
    normalisation: Literal["prenormalize2d"] = "prenormalize2d"
    missing_below_score: float = Field(default=0.01, ge=0, le=1)
    rate_hz: float = Field(default=0.0, ge=0)
    """Time steps per second of the training windows; 0 = one step per frame."""


class InputInfo(_Part):
    """One graph input and what has to happen to the data before it."""

    name: str
    shape: tuple[Dimension, ...]
    dtype: Literal["float32", "float16"] = "float32"
    preprocessing: Annotated[LetterboxInput | SkeletonInput, Field(discriminator="kind")]


class OutputInfo(_Part):
    """One graph output. `logits` become probabilities by softmax(logits / temperature)."""

    name: str
    shape: tuple[Dimension, ...]
    meaning: Literal["logits", "probabilities", "detections", "keypoints"]
    temperature: float = Field(default=1.0, gt=0)
    """Calibration (temperature scaling, Guo et al. 2017)."""


class FileInfo(_Part):
    sha256: Sha256
    bytes: int = Field(ge=0)


class Golden(_Part):
    """Known answers: arrays `input.<name>` and `output.<name>` in an .npz file."""

    file: str = GOLDEN
    rtol: float = Field(default=1e-3, ge=0)
    atol: float = Field(default=1e-3, ge=0)


class Manifest(_Part):
    """What stands in manifest.json; unknown keys are refused."""

    manifest: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9_.+-]{0,63}$")
    task: Literal["pose", "action"]
    description: str = ""
    model: str = "model.onnx"
    inputs: tuple[InputInfo, ...] = Field(min_length=1)
    outputs: tuple[OutputInfo, ...] = Field(min_length=1)
    labels: tuple[str, ...] = ()
    licence: str
    training_data: str
    figures: dict[str, Any] = {}
    """Measured quality and speed, with how it was measured."""
    golden: Golden | None = None
    files: dict[str, FileInfo]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.model not in self.files:
            raise ValueError(f"`files` does not list the model {self.model!r}")
        if self.golden and self.golden.file not in self.files:
            raise ValueError(f"`files` does not list the golden file {self.golden.file!r}")
        if self.task == "action" and len(set(self.labels)) < 2:
            raise ValueError("an action model needs two or more distinct labels")
        return self


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


class Runnable(Protocol):
    """The part of an inference session that a golden check needs."""

    @property
    def output_names(self) -> Sequence[str]: ...

    def run(self, feeds: Mapping[str, Array]) -> list[Array]: ...


def load_bundle(path: Path) -> Bundle:
    """Read and verify the bundle folder `path`; a bare `.onnx` file is taken as it is.

    Raises ModelError (missing, unreadable, wrong manifest), TrustError (a checksum, an unlisted file, a path that
    leaves the folder).
    """
    if path.is_file() and path.suffix == ".onnx":
        return Bundle(path, path, _sha256(path), None)
    if not path.exists():
        raise ModelError(f"{path}: no such model (hint: give a bundle folder with {MANIFEST}, or an .onnx file)")
    manifest = _read_manifest(path)
    for name, info in manifest.files.items():
        _verify(path, name, info)
    _refuse_unlisted(path, manifest)
    return Bundle(path, path / manifest.model, manifest.files[manifest.model].sha256, manifest)


def check_golden(bundle: Bundle, session: Runnable, *, reduced_precision: bool = False) -> None:
    """Run the golden inputs and compare. Nothing to do for a bundle without golden data.

    reduced_precision: the session computes in TF32 or FP16, so an absolute error of 0.02 is forgiven.
    Raises ModelError that names the output and the largest difference.
    """
    golden = bundle.manifest.golden if bundle.manifest else None
    if golden is None:
        return
    inputs, expected = _read_golden(bundle.path / golden.file)
    atol = max(golden.atol, _REDUCED_PRECISION_ATOL) if reduced_precision else golden.atol
    found = dict(zip(session.output_names, session.run(inputs), strict=True))
    for name, want in expected.items():
        have = found.get(name)
        if have is None or have.shape != want.shape:
            shape = "no such output" if have is None else f"shape {have.shape}"
            raise ModelError(f"{bundle.title}: golden output {name!r} should have shape {want.shape}, found {shape}")
        if not np.allclose(have, want, rtol=golden.rtol, atol=atol):
            worst = float(np.max(np.abs(have.astype(np.float64) - want.astype(np.float64))))
            raise ModelError(
                f"{bundle.title}: output {name!r} differs from the golden one by up to {worst:.3g} "
                f"(allowed: {atol:g} + {golden.rtol:g} x value)"
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
        name: {"sha256": _sha256(folder / name), "bytes": (folder / name).stat().st_size}
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
        raise ModelError(f"{file}: {_explain(error)}") from error


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
    if not file.resolve().is_relative_to(folder.resolve()):
        raise TrustError(f"{folder}: {name!r} is a link that leaves the bundle")
    try:
        found = _sha256(file)
    except OSError as error:
        raise ModelError(f"{file}: listed in the manifest, but cannot be read: {error.strerror}") from error
    if found != info.sha256:
        raise TrustError(f"{file}: sha256 is {found}, the manifest says {info.sha256}")


def _refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    """A graph may load weights from files beside it: what is not listed must not be there."""
    extra = [name for name in _sealed_names(folder) if name not in manifest.files]
    if extra:
        raise TrustError(f"{folder}: not in the manifest: {', '.join(extra)}")


def _sealed_names(folder: Path) -> list[str]:
    names = []
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and not hidden and relative.name != MANIFEST and file.suffix not in _DOCUMENTS:
            names.append(relative.as_posix())
    return names


def _read_golden(file: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            inputs = {name.removeprefix("input."): data[name] for name in data.files if name.startswith("input.")}
            outputs = {name.removeprefix("output."): data[name] for name in data.files if name.startswith("output.")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{file}: not a readable .npz file: {error}") from error
    if not inputs or not outputs:
        raise ModelError(f"{file}: needs arrays named input.<name> and output.<name>")
    return inputs, outputs


def _sha256(file: Path) -> str:
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
        sys.stdout.write(f"{bundle.title}: good, sha256 {bundle.model_sha256}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
