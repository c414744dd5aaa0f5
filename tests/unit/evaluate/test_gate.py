"""Bars in a file against the figures of a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.evaluate.gate import Bar, check, read_bars

GATE = """
bars:
  action/fight:
    accuracy: {min: 0.75}
    ece: {max: 0.05}
    confusion_matrix.false_positive: {min: 1, max: 3}
"""


def gate(folder: Path, text: str = GATE) -> Path:
    path = folder / "gate.yaml"
    path.write_text(text)
    return path


def test_every_figure_meets_its_bar(tmp_path: Path) -> None:
    bars = read_bars(gate(tmp_path), "action/fight")
    report = {"accuracy": 0.75, "ece": 0.05, "confusion_matrix": {"false_positive": 2}}
    outcomes = check(report, bars)
    assert [one.figure for one in outcomes] == ["accuracy", "ece", "confusion_matrix.false_positive"]
    assert all(one.passed for one in outcomes)


def test_what_is_missed_is_named_with_value_and_bar(tmp_path: Path) -> None:
    outcomes = check({"accuracy": 0.7123, "ece": 0.01}, read_bars(gate(tmp_path), "action/fight"))
    assert [str(one) for one in outcomes if not one.passed] == [
        "accuracy: 0.7123, wanted at least 0.75",
        "confusion_matrix.false_positive: not in the report, wanted at least 1 and at most 3",
    ]


@pytest.mark.parametrize("value", [None, float("nan"), "0.9", True, [1.0], {}])
def test_what_is_no_number_misses_its_bar(value: object) -> None:
    (outcome,) = check({"AP": value}, {"AP": Bar(min=0)})
    assert not outcome.passed
    assert "AP: " in str(outcome)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bars: {action/fight: {accuracy: {min: high}}}", "bars.action/fight.accuracy.min"),
        ("bars: {action/fight: {accuracy: {}}}", "min or max is needed"),
        ("bars: {action/fight: {accuracy: {min: 2, max: 1}}}", "min must not exceed max"),
        (
            "bars:\n  action/fight:\n    accuracy: {mim: 1}",
            r"gate.yaml:3:bars.action/fight.accuracy.mim: unknown key \(hint: did you mean 'min'\?\)",
        ),
        ("bars: {action/fall: {accuracy: {min: 1}}}", "no bars for 'action/fight'.*it has action/fall"),
        ("bars: {action/fight: {}}", "no bars for 'action/fight'"),
        ("", "bars: required key is missing"),
        ("bars: [", r"gate.yaml:1: not valid YAML.*hint: check"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_bars(gate(tmp_path, text), "action/fight")
    assert "gate.yaml" in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        read_bars(tmp_path / "none.yaml", "pose")
