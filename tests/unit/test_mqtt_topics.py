"""Topic names and what they refuse."""

from __future__ import annotations

import doctest

import pytest

from agent.mqtt import topics
from agent.mqtt.topics import Topics


def test_every_topic_of_the_contract() -> None:
    names = Topics("recognizer", "lobby-1")
    assert names.status == "recognizer/lobby-1/status"
    assert names.health == "recognizer/lobby-1/health"
    assert names.camera_state("door") == "recognizer/lobby-1/cameras/door/state"
    assert names.event("door", "fight") == "recognizer/lobby-1/events/door/fight"
    assert names.ota_state == "recognizer/lobby-1/ota/state"
    assert names.commands == "recognizer/lobby-1/cmd/+"
    assert names.command("reload") == "recognizer/lobby-1/cmd/reload"
    assert names.command_result("reload") == "recognizer/lobby-1/cmd/reload/result"


def test_a_base_may_have_several_levels() -> None:
    assert Topics("site/berlin/recognizer", "box").status == "site/berlin/recognizer/box/status"


@pytest.mark.parametrize("base", ["", "/a", "a/", "a/#", "+", "$SYS", "a\x00", "x" * 65_535])
def test_bases_that_would_make_another_topic_are_refused(base: str) -> None:
    with pytest.raises(ValueError, match="base topic"):
        Topics(base, "box")


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "-a", "ä", "a b", "x" * 65, "a\n"])
def test_names_of_more_than_one_plain_level_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="device"):
        Topics("recognizer", name)
    with pytest.raises(ValueError, match="kind"):
        Topics("recognizer", "box").event("door", name)


def test_examples() -> None:
    assert doctest.testmod(topics).failed == 0
