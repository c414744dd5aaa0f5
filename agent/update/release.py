"""What a signed target says about itself: the `custom` part of TUF's targets metadata. Written by the release tools, read by the
device before it downloads anything."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.runtime.manifest import Dimension, Sha256

SLOT = r"^(pose|configuration|action/[a-z][a-z0-9_-]{0,31})$"
Slot = Annotated[str, Field(pattern=SLOT)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(_Part):
    """One input or output of the graph as the slot's user sees it. meaning: of an output; the pre-processing's kind of an input."""

    name: str
    shape: tuple[Dimension, ...]
    meaning: str


class Contract(_Part):
    """What a slot's model takes and gives: a device refuses one that does not fit before it downloads it."""

    task: Literal["pose", "action"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...] = ()


class Minimum(_Part):
    """What the release must reach on the device, measured there; None = not asked for.

    latency_ms: median of one picture or window; latency_ratio: the same in times of the running model's; memory_mb: growth of the
    probing process; agreement: share of people or verdicts of the shadow run on which both models agree, 0-1.
    """

    latency_ms: float | None = Field(default=None, gt=0)
    latency_ratio: float = Field(default=1.5, gt=0)
    memory_mb: float | None = Field(default=None, gt=0)
    agreement: float | None = Field(default=None, ge=0, le=1)


class Release(_Part):
    """One release of a model or a configuration.

    number: rises with every release of a slot; a device never goes below the highest it has committed, but for the one version it
    keeps to go back to. manifest_sha256: of manifest.json (or the configuration file) inside the archive; unpacked_bytes: sum of its
    files, what extraction may take at most.
    """

    format: Literal[1] = 1
    slot: Slot
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9_.+-]{0,63}$")
    number: int = Field(ge=1, le=2**53)
    min_agent: str = Field(default="0.0.0", pattern=r"^\d+\.\d+\.\d+$")
    runtimes: tuple[Literal["cpu", "cuda", "tensorrt"], ...] = ("cpu", "cuda", "tensorrt")
    contract: Contract | None = None
    manifest_sha256: Sha256
    unpacked_bytes: int = Field(ge=1)
    minimum: Minimum = Minimum()

    @model_validator(mode="after")
    def _models_have_contracts(self) -> Self:
        if (self.slot == "configuration") != (self.contract is None):
            raise ValueError("a model's release has a contract, a configuration's has none")
        return self

    @property
    def title(self) -> str:
        """`fight-stgcn 0.4.0`"""
        return f"{self.name} {self.version}"

    @property
    def path(self) -> str:
        """Target path in the repository: `action-fight/fight-stgcn-0.4.0.tar.zst`."""
        return f"{self.slot.replace('/', '-')}/{self.name}-{self.version}.tar.zst"
