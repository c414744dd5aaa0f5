"""The manifest of a model bundle: what stands in manifest.json, as frozen models; unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

GOLDEN = "golden.npz"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Dimension = Annotated[int, Field(gt=0)] | str | None
"""A fixed size, or a name / null for a size that may vary."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LetterboxInput(_Part):
    """Pictures: aspect-preserving resize onto a padded canvas, 0-255, not normalised."""

    kind: Literal["letterbox"] = "letterbox"
    anchor: Literal["top_left", "center"] = "top_left"
    channels: Literal["bgr", "rgb"] = "bgr"
    pad_value: int = Field(default=114, ge=0, le=255)
    side_step: int | None = Field(default=None, ge=1, exclude_if=lambda step: step is None)
    """Height and width may be any multiples of it: the stride of the network's coarsest features. None = those of `shape` alone,
    since a graph that leaves its sides open may hold numbers that fit one size. Not written then: older agents refuse the key."""


class SkeletonInput(_Part):
    """Windows of skeletons: which channels, how normalised, at which rate the model was trained."""

    kind: Literal["skeleton"] = "skeleton"
    channels: tuple[Literal["x", "y", "score", "change"], ...] = ("x", "y", "score")
    normalisation: Literal["prenormalize2d"] = "prenormalize2d"
    missing_below_score: float = Field(default=0.01, ge=0, le=1)
    rate_hz: float = Field(default=0.0, ge=0)
    """Time steps per second of the training windows, which a service's `window.rate_hz` must be; 0 = one step per frame, or not known."""


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


class Agreement(_Part):
    """How far an answer may be from the golden one.

    Outputs that mean `detections` and `keypoints` are compared person by person (min_score, score, position_px, see
    `agent.runtime.people`), all others value by value (rtol, atol).
    """

    rtol: float = Field(default=1e-3, ge=0)
    atol: float = Field(default=1e-3, ge=0)
    min_score: float = Field(default=0.3, ge=0, le=1)
    score: float = Field(default=0.01, ge=0, le=1)
    position_px: float = Field(default=0.5, ge=0)


class Golden(Agreement):
    """Known answers: arrays `input.<name>` and `output.<name>` in an .npz file."""

    file: str = GOLDEN
    origin: Literal["release", "self"] = "release"
    """`release`: given by whoever made the model. `self`: recorded on this machine's CPU when the model came; it shows
    that other providers agree with the CPU, and nothing about the model itself."""
    providers: dict[Literal["cpu", "cuda", "tensorrt"], Agreement] = {}
    """In place of the figures above, where a provider needs others."""


class Provenance(_Part):
    """Where a pulled model came from, and why its bytes are believed.

    trust: `catalogue` = size and sha256 were known beforehand; `first_use` = taken as found, with the user's consent.
    """

    source: str
    revision: str = ""
    trust: Literal["catalogue", "first_use"]


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
    provenance: Provenance | None = None
    """Only of a bundle that `models pull` made from a bare model file."""
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
