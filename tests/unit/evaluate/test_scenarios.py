"""Plans of simulated scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.evaluate.scenarios import plan_of, read_plan
from agent.simulation.scripts import MAX_PEOPLE, SCENARIOS


def plan(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def test_a_plan_lists_every_scene(tmp_path: Path) -> None:
    made = read_plan(
        plan(
            tmp_path, "fps: 15\nruns:\n- {scenario: crowd, seeds: [1, 2], people: 3, seconds: 90}\n- {scenario: empty}"
        )
    )
    assert [(one.scenario, one.seed, one.people, one.seconds) for one in made.scenes()] == [
        ("crowd", 1, 3, 90), ("crowd", 2, 3, 90), ("empty", 1, 4, 60),
    ]  # fmt: skip
    assert (made.fps, made.size) == (15, (640, 480))
    assert made.hours == pytest.approx(240 / 3600)


def test_without_a_file_every_scenario_gets_its_share_of_the_time() -> None:
    made = plan_of(10, [1, 2], 5)
    assert [run.scenario for run in made.runs] == list(SCENARIOS)
    assert made.hours == pytest.approx(10 / 60)
    assert {run.people for run in made.runs} == {5}
    assert [run.scenario for run in plan_of(10, [1], 5, ["crowd"]).runs] == ["crowd"]
    with pytest.raises(ConfigError, match=r"unknown scenario 'ballet'.*crowd"):
        plan_of(10, [1], 5, ["ballet"])
    with pytest.raises(ConfigError, match=rf"--people: at most {MAX_PEOPLE} people"):
        plan_of(10, [1], MAX_PEOPLE + 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs: []", "runs"),
        ("runs:\n  - {scenario: ballet}", r"plan.yaml:2:runs\.0\.scenario: unknown scenario 'ballet'.*crowd"),
        ("runs: [{scenario: crowd, people: 0}]", r"runs\.0\.people"),
        ("runs: [{scenario: crowd, seconds: -1}]", r"runs\.0\.seconds"),
        ("runs: [{scenario: crowd, seconds: .inf}]", r"runs\.0\.seconds: Input should be a finite number"),
        (
            "runs: [{scenario: crowd, poeple: 2}]",
            r"plan.yaml:1:runs\.0\.poeple: unknown key \(hint: did you mean 'people'\?\)",
        ),
        ("runs: [", "not valid YAML"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_plan(plan(tmp_path, text))
    assert "plan.yaml" in str(caught.value)


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")
