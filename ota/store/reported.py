"""What a device says serves its slots: attributes like `model.action-fight: fight-stgcn 0.4.0` and `number.action-fight: 12`. Models are
exchanged without this server, too: by a person at the device, or by the server that was here before."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection

from ota.store import actions, devices, releases

_AGENT = "agent_version"
"""Only our agent says it, and our agent says of every slot what serves it."""
_MAX_DIGITS = 18


def titles(attributes: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Model and version by slot."""
    said = {}
    for key, value in attributes.items():
        kind, _, slot = key.partition(".")
        model, _, version = value.rpartition(" ")
        if kind == "model" and slot and model:
            said["action/" + slot.removeprefix("action-") if slot.startswith("action-") else slot] = (model, version)
    return said


def number(attributes: Mapping[str, str], slot: str) -> int | None:
    """Of the release that serves the slot; None: not said, so that it may be a model of the configuration."""
    text = attributes.get(f"number.{slot.replace('/', '-', 1)}", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None


def lacks(attributes: Mapping[str, str], slot: str) -> bool:
    """Whether the device says what serves its slots, and `slot` is none of them. A configuration goes to any device."""
    tells = _AGENT in attributes and any(key.startswith("model.") for key in attributes)
    return tells and slot != "configuration" and f"model.{slot.replace('/', '-', 1)}" not in attributes


def note(connection: Connection, device_id: int, attributes: Mapping[str, str], *, whole: bool, now_ms: int) -> None:
    """Bring what is known to be installed in line. whole: this is all that the device has to say, so that what it does not name is gone."""
    said = {slot: title for slot, title in titles(attributes).items() if number(attributes, slot) is not None}
    here = {one.slot: one.release_id for one in devices.installed(connection, [device_id])}
    known = releases.many(connection, list(here.values()))
    for slot in here.keys() - said.keys() if whole and _AGENT in attributes else ():
        actions.note_serving(connection, device_id, slot, None, now_ms=now_ms)
    for slot, title in said.items():
        if slot in here and (known[here[slot]].name, known[here[slot]].version) == title:
            continue
        release = releases.of_title(connection, slot, *title)
        if release is not None or slot in here:
            actions.note_serving(connection, device_id, slot, release, now_ms=now_ms)
