"""What of a device a filter can ask for."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ota.rollouts.filters import parse
from ota.rollouts.fleet import DeviceFields
from ota.store.rows import Device, ReleaseRow, UpdateStatus

NOW = 1_800_000_000_000


def device(*, seen_ms: int | None = NOW, **attributes: str) -> Device:
    named = {name.replace("__", ".").replace("_of_", "-"): value for name, value in attributes.items()}
    return Device(1, "box-1", "Gate", None, named, 0, seen_ms, "", UpdateStatus.IN_SYNC, False, None)


def release(slot: str, name: str, version: str) -> ReleaseRow:
    return ReleaseRow(1, slot, name, version, 1, "t", 1, "", "", "", {}, 0, True)


def fields_of(device: Device, installed: Mapping[str, ReleaseRow], seen_after_ms: int) -> DeviceFields:
    return DeviceFields(device, lambda _: installed, seen_after_ms)


def test_status_and_names() -> None:
    for seen_ms, status in ((None, "never"), (NOW, "online"), (NOW - 1, "offline")):
        fields = fields_of(device(seen_ms=seen_ms, status="x", id="y"), {}, NOW)
        assert (fields["status"], fields["id"], fields["name"]) == ([status], ["box-1"], ["Gate"])
    assert fields_of(device(), {}, NOW)["update"] == ["in_sync"]


def test_what_was_installed_by_slot_and_over_all() -> None:
    installed = {
        "pose": release("pose", "pose-nano", "0.7.0"),
        "action/fight": release("action/fight", "fight-stgcn", "0.4.0"),
    }
    fields = fields_of(device(site="berlin"), installed, NOW)
    assert parse("site==berlin;pose.version==0.7.0;action/fight.model==fight-stgcn").matches(fields)
    assert parse("model==pose-nano;version=lt=0.5").matches(fields)
    assert not parse("pose.version=lt=0.5").matches(fields)


def test_what_a_device_says_that_it_runs_goes_before_what_it_was_given() -> None:
    """A model of the image was never installed by this server; a roll-back by hand it may not have heard of."""
    said = device(model__pose="pose-nano 0.6.0", model__action_of_fall="fall-stgcn 0.3.1", model__odd="odd")
    fields = fields_of(said, {"pose": release("pose", "pose-nano", "0.7.0")}, NOW)
    assert parse("pose.version==0.6.0;action/fall.version==0.3.1").matches(fields)
    assert sorted(fields["model"]) == ["fall-stgcn", "pose-nano"]


def test_everything_that_can_be_asked_for() -> None:
    said = device(site="berlin", status="x", model="y", odd__model="z", model__pose="pose-nano 0.6.0")
    fields = fields_of(said, {"action/fall": release("action/fall", "fall-stgcn", "0.3.1")}, NOW)
    assert dict(fields) == {
        "site": ["berlin"], "model.pose": ["pose-nano 0.6.0"], "odd.model": ["z"],
        "model": ["fall-stgcn", "pose-nano"], "version": ["0.3.1", "0.6.0"],
        "action/fall.model": ["fall-stgcn"], "action/fall.version": ["0.3.1"],
        "pose.model": ["pose-nano"], "pose.version": ["0.6.0"],
        "id": ["box-1"], "name": ["Gate"], "status": ["online"], "update": ["in_sync"],
    }  # fmt: skip
    assert len(fields) == 13


def test_who_runs_nothing_has_attributes_alone() -> None:
    fields = fields_of(device(model="y", x__version="1"), {}, NOW)
    assert (fields["model"], fields["x.version"]) == (["y"], ["1"])
    assert list(fields) == ["model", "x.version", "id", "name", "status", "update"]
    for name in ("version", "x.model", "pose.version", ".model", "none"):
        assert name not in fields
        with pytest.raises(KeyError):
            _ = fields[name]
