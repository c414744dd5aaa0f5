"""The release gate: bars that a report must reach, from a YAML file.

    bars:
      action/fight:                     # which report: evaluate takes `<kind>` or `action/<service>`, or what --bars names
        accuracy: {min: 0.75}
        ece: {max: 0.05}
      events:
        services.fall.delay_s.median: {max: 3}    # a dotted path into the report

A figure that the report lacks, or that is null or no number, misses its bar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from agent.config.documents import read_document
from agent.config.sections import Section
from agent.errors import ConfigError, ConfigProblem


class Bar(Section):
    """What one figure must reach: `min`, `max` or both, both included."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some_bar(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("min or max is needed")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not exceed max")
        return self

    def __str__(self) -> str:
        least = [f"at least {self.min:g}"] if self.min is not None else []
        most = [f"at most {self.max:g}"] if self.max is not None else []
        return " and ".join(least + most)

    def holds(self, value: object) -> bool:
        """Whether `value` is a number within the bar."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class _GateFile(Section):
    bars: dict[str, dict[str, Bar]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One figure against its bar. value: as it stands in the report, None when it does not."""

    figure: str
    value: object
    bar: Bar
    passed: bool

    def __str__(self) -> str:
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        have = f"{self.value:.4g}" if number else "not in the report" if self.value is None else repr(self.value)
        return f"{self.figure}: {have}, wanted {self.bar}"


def read_bars(path: Path, name: str) -> dict[str, Bar]:
    """The bars for the report `name`. Raises ConfigError: unreadable, malformed, or no bars of that name in it."""
    bars = read_document(path, _GateFile, env={}).bars
    if not bars.get(name):
        hint = f"it has {', '.join(bars) or 'none'}; --bars picks one"
        raise ConfigError([ConfigProblem(f"no bars for {name!r}", str(path), path="bars", hint=hint)])
    return bars[name]


def check(report: Mapping[str, Any], bars: Mapping[str, Bar]) -> list[Outcome]:
    """Every bar against the report's figure, in the order of the file."""
    values = {figure: _look_up(report, figure) for figure in bars}
    return [Outcome(figure, values[figure], bar, bar.holds(values[figure])) for figure, bar in bars.items()]


def _look_up(report: Mapping[str, Any], figure: str) -> object:
    """The value at a dotted path; the whole path as one key goes first."""
    if figure in report:
        return report[figure]
    value: object = report
    for part in figure.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
