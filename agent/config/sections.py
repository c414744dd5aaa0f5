"""What all sections of the configuration are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]

_LARGEST = 1e9


def _bounded(value: float) -> float:
    """What is endless or beyond all use overflows clocks and counters, at the latest in microseconds."""
    if value > _LARGEST:
        raise ValueError(f"expected a number up to {_LARGEST:.0f}")
    return value


Positive = Annotated[float, Field(gt=0), AfterValidator(_bounded)]
NonNegative = Annotated[float, Field(ge=0), AfterValidator(_bounded)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""A name that is safe in topics, file names and metric labels."""

LIVE: dict[str, Any] = {"live": True}
"""Marks a key that a reload applies without a restart."""


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class BackoffConfig(Section):
    """Full-jitter exponential backoff: the n-th wait is uniform in (0, min(max_s, initial_s * 2**n))."""

    initial_s: Positive = 1.0
    max_s: Positive = 30.0
