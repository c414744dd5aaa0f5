"""Which simulated scenes are run: from a YAML file, or every scenario for as long as asked.

fps: 30                    # as rendered
size: [640, 480]
runs:
  - {scenario: fight, seeds: [1, 2], people: 4, seconds: 120}
  - {scenario: hug, seeds: [1], seconds: 60}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from agent.config.documents import read_document
from agent.config.sections import Section
from agent.errors import ConfigError, ConfigProblem
from agent.simulation.scripts import MAX_PEOPLE, SCENARIOS


def _known() -> str:
    return f"known: {', '.join(SCENARIOS)}"


def _scenario(name: str) -> str:
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}; {_known()}")
    return name


Scenario = Annotated[str, AfterValidator(_scenario)]
People = Annotated[int, Field(ge=1, le=MAX_PEOPLE)]
Pixels = Annotated[int, Field(ge=64, le=4096)]


class ScenarioRuns(Section):
    """One scenario, as often as there are seeds."""

    scenario: Scenario
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1,), min_length=1)
    people: People = 4
    seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)


class SceneRun(Section):
    """One scene."""

    scenario: str
    seed: int
    people: int
    seconds: float


class ScenePlan(Section):
    """Everything that is run, at one frame rate and size."""

    fps: float = Field(default=30.0, gt=0, le=240)
    size: tuple[Pixels, Pixels] = (640, 480)
    runs: tuple[ScenarioRuns, ...] = Field(min_length=1)

    def scenes(self) -> Iterator[SceneRun]:
        """Each scene in order."""
        for run in self.runs:
            for seed in run.seeds:
                yield SceneRun(scenario=run.scenario, seed=seed, people=run.people, seconds=run.seconds)

    @property
    def hours(self) -> float:
        """Length of all scenes together."""
        return sum(scene.seconds for scene in self.scenes()) / 3600


def read_plan(path: Path) -> ScenePlan:
    """The plan in a YAML file. Raises ConfigError with file, line and key."""
    return read_document(path, ScenePlan, env={})


def plan_of(minutes: float, seeds: Sequence[int], people: int, only: Sequence[str] = ()) -> ScenePlan:
    """Every scenario (or `only` these) with every seed, `minutes` in all.

    Raises ConfigError: unknown scenario, too many people.
    """
    problems = [
        ConfigProblem(f"unknown scenario {name!r}", path="--only", hint=_known())
        for name in only
        if name not in SCENARIOS
    ]
    if people > MAX_PEOPLE:
        problems.append(ConfigProblem(f"at most {MAX_PEOPLE} people fit on the stage, got {people}", path="--people"))
    if problems:
        raise ConfigError(problems)
    chosen = only or SCENARIOS
    seconds = minutes * 60 / (len(chosen) * len(seeds))
    return ScenePlan(
        runs=tuple(ScenarioRuns(scenario=name, seeds=tuple(seeds), people=people, seconds=seconds) for name in chosen)
    )
