"""What fits a device is known before anything is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.tuf_repository import release

from agent.update.fit import DeviceFacts, objection
from agent.update.records import Serving, Version
from agent.update.release import Contract

FIGHT = release().contract
POSE = Contract.model_validate(
    {"task": "pose", "inputs": [{"name": "input", "shape": ["n", 3, 64, 96], "meaning": "letterbox"}],
     "outputs": [{"name": "dets", "shape": ["n", "people", 5], "meaning": "detections"}]}
)  # fmt: skip
FACTS = DeviceFacts("1.2.3", "cpu", {"pose": POSE, "action/fight": FIGHT, "action/fall": None}, 1_000_000)
NOW = Serving("action/fight", Version("ab" * 32, release(number=7)), Version("cd" * 32, release(number=5)), True, 7)


def changed(contract: Contract, **fields: Any) -> dict[str, Any]:
    return contract.model_dump() | fields


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, ""),
        ({"number": 8}, ""),
        ({"number": 7}, ""),
        ({"number": 6}, "number"),
        ({"number": 5}, ""),
        ({"number": 4}, "number"),
        ({"min_agent": "1.2.3"}, ""),
        ({"min_agent": "1.3.0"}, "agent"),
        ({"min_agent": "1.2.10"}, "agent"),
        ({"runtimes": ("cuda", "tensorrt")}, "runtime"),
        ({"unpacked_bytes": 1_000_001}, "memory"),
        ({"slot": "action/theft"}, "contract"),
        ({"slot": "action/fall"}, ""),
        ({"slot": "pose"}, "contract"),
        ({"contract": changed(FIGHT, labels=("other", "theft"))}, "contract"),
        ({"contract": changed(FIGHT, labels=("fight", "other"))}, ""),
        ({"contract": changed(FIGHT, inputs=[{"name": "x", "shape": [1, 4], "meaning": "letterbox"}])}, "contract"),
        ({"contract": changed(FIGHT, inputs=[{"name": "x", "shape": [1, 9], "meaning": "skeleton"}])}, ""),
        ({"contract": changed(FIGHT, inputs=[{"name": "x", "shape": [1, 2, 4], "meaning": "skeleton"}])}, "contract"),
        ({"contract": changed(FIGHT, outputs=[])}, "contract"),
    ],
)
def test_what_gets_in(fields: dict[str, Any], reason: str) -> None:
    wanted = {"number": 9} | fields
    found = objection(release(**wanted), 1000, NOW, FACTS)
    assert (found.reason if found else "") == reason


def test_a_large_archive_is_not_downloaded() -> None:
    found = objection(release(number=9), 1_000_001, NOW, FACTS)
    assert found is not None
    assert "1,000,001 bytes" in found.text


def test_a_configuration_needs_neither_runtime_nor_contract() -> None:
    sent = release("configuration", number=1, runtimes=("cuda",))
    assert objection(sent, 10, Serving("configuration"), FACTS) is None


@pytest.mark.parametrize(("agent", "fits"), [("1.2.3rc1", True), ("1.2", False), ("2", True), ("0.9.9", False)])
def test_versions_of_all_kinds_are_compared(agent: str, fits: bool) -> None:
    facts = DeviceFacts(agent, "cpu", FACTS.contracts, FACTS.max_bytes)
    assert (objection(release(number=9, min_agent="1.2.3"), 10, NOW, facts) is None) is fits


def test_a_device_that_does_not_know_its_runtime_yet_does_not_judge_by_it() -> None:
    facts = DeviceFacts("1.2.3", "", FACTS.contracts, FACTS.max_bytes)
    assert objection(release(number=9, runtimes=("cuda",)), 10, NOW, facts) is None
