"""Plans and how devices are shared among their groups."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ota.rollouts.groups import assign
from ota.rollouts.plan import CANARY, GroupPlan, Plan


def devices(number: int) -> dict[str, dict[str, list[str]]]:
    return {f"box-{index}": {"id": [f"box-{index}"]} for index in range(number)}


def sizes(number: int, groups: tuple[GroupPlan, ...] = CANARY) -> list[int]:
    return [len(group) for group in assign(groups, devices(number), "pose 1")]


@pytest.mark.parametrize(
    ("number", "expected"), [(0, [0, 0]), (1, [1, 0]), (2, [1, 1]), (10, [1, 9]), (11, [2, 9]), (1000, [100, 900])]
)
def test_the_canary_is_one_device_in_ten_and_one_at_least(number: int, expected: list[int]) -> None:
    assert sizes(number) == expected


def test_groups_by_count_percent_and_filter() -> None:
    groups = (
        GroupPlan(name="bench", filter="id==box-3,id==box-5"),
        GroupPlan(name="few", count=5),
        GroupPlan(name="half", percent=50),
        GroupPlan(name="rest"),
    )
    shared = assign(groups, devices(100), "x")
    assert sorted(shared[0]) == ["box-3", "box-5"]
    assert [len(group) for group in shared] == [2, 5, 50, 43]


@given(st.integers(0, 200), st.lists(st.floats(0.1, 100), max_size=4), st.text(max_size=5))
def test_everybody_is_in_one_group_and_always_the_same(number: int, percents: list[float], salt: str) -> None:
    groups = (*(GroupPlan(name=str(n), percent=percent) for n, percent in enumerate(percents)), GroupPlan(name="rest"))
    fleet = devices(number)
    shared = assign(groups, fleet, salt)
    assert sorted(device for group in shared for device in group) == sorted(fleet)
    assert assign(groups, dict(reversed(fleet.items())), salt) == shared


def test_another_release_takes_other_canaries() -> None:
    fleet = devices(200)
    assert set(assign(CANARY, fleet, "pose 1")[0]) != set(assign(CANARY, fleet, "pose 2")[0])


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ({"groups": []}, "at least 1 item"),
        ({"groups": [{"name": "a", "percent": 10}]}, "the last group takes what is left"),
        ({"groups": [{"name": "a"}, {"name": "b"}]}, "group a takes all that is left"),
        ({"groups": [{"name": "a", "count": 1}, {"name": "a"}]}, "the same name"),
        ({"groups": [{"name": "a", "count": 1, "percent": 5}, {"name": "b"}]}, "not both"),
        ({"groups": [{"name": "a", "filter": "site=berlin"}, {"name": "b"}]}, "column 5"),
        ({"groups": [{"name": "a", "error_percent": 101}]}, "less than or equal to 100"),
        ({"roll_back": "maybe"}, "'none', 'group' or 'all'"),
        ({"start_at": "2026-12-01T03:00:00"}, "timezone"),
        ({"speed": 3}, "Extra inputs"),
    ],
)
def test_a_plan_that_does_not_hold_is_refused(plan: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Plan.model_validate(plan)


def test_the_default_plan() -> None:
    plan = Plan()
    assert [(group.name, group.percent, group.success_percent, group.error_percent) for group in plan.groups] == [
        ("canary", 10, 90, 10),
        ("rest", None, 90, 20),
    ]
    assert plan.roll_back == "group"
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
