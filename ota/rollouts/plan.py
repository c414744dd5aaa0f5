"""What an operator asks for: groups with thresholds, and how the release is put to the devices."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from ota.rollouts import filters

Percent = Annotated[float, Field(ge=0, le=100)]


def _known_filter(text: str) -> str:
    try:
        return filters.parse(text).text
    except filters.FilterError as error:
        raise ValueError(str(error)) from None


FilterText = Annotated[str, Field(max_length=filters.MAX_CHARACTERS), AfterValidator(_known_filter)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GroupPlan(_Part):
    """One group, by what it takes of the rollout's devices: `percent` of all, `count`, or (both None) what is left.

    filter: only these; success_percent: the next group begins when so many of this one's devices run the release well;
    error_percent: the rollout stops when so many failed (0: at the first failure); wait_s: after the group before has got there, how
    long nothing happens; approval: a person has to say yes before it begins.
    """

    name: str = Field(min_length=1, max_length=64)
    percent: float | None = Field(default=None, gt=0, le=100)
    count: int | None = Field(default=None, ge=1)
    filter: FilterText = ""
    success_percent: Percent = 90.0
    error_percent: Percent = 20.0
    wait_s: float = Field(default=0.0, ge=0, le=90 * 86400)
    approval: bool = False

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.percent is not None and self.count is not None:
            raise ValueError("percent or count, not both")
        return self

    @property
    def takes_the_rest(self) -> bool:
        return self.percent is None and self.count is None and not self.filter


CANARY = (GroupPlan(name="canary", percent=10, error_percent=10.0), GroupPlan(name="rest"))
"""The default: one device in ten first (one at least), then the others."""


class Plan(_Part):
    """How a rollout goes.

    roll_back: when a group fails, who gets the version before again: the devices of the group, all devices, or none (it pauses then).
    forced: the device need not wait for its maintenance window; confirmation: somebody at the device has to agree (DDI confirmation).
    start_at: begin by itself then; None: when told to.
    """

    groups: tuple[GroupPlan, ...] = Field(default=CANARY, min_length=1, max_length=50)
    roll_back: Literal["none", "group", "all"] = "group"
    forced: bool = False
    confirmation: bool = False
    start_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _covers_everybody(self) -> Self:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError("two groups have the same name")
        if not self.groups[-1].takes_the_rest:
            raise ValueError("the last group takes what is left: give it neither percent, count nor filter")
        early = next((group.name for group in self.groups[:-1] if group.takes_the_rest), "")
        if early:
            raise ValueError(f"group {early} takes all that is left, so it must be the last")
        return self

    @property
    def start_ms(self) -> int | None:
        return None if self.start_at is None else milliseconds(self.start_at)


def milliseconds(time: datetime) -> int:
    """UTC milliseconds of an aware time."""
    return round(time.timestamp() * 1000)
