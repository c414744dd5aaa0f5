"""The devices as filters and plans see them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from ota.rollouts import filters, groups, records
from ota.rollouts.plan import Plan
from ota.store import devices, releases
from ota.store.rows import Device, ReleaseRow

NEVER, ONLINE, OFFLINE = "never", "online", "offline"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a filter and a plan make of the fleet.

    matched: devices that the filter takes; already: those of them that run the release; newer: that run one with a higher number, which
    no device leaves; busy: that are in another rollout of the slot, by its name; members: device ids of each group.
    """

    matched: int
    already: int
    newer: int
    busy: Mapping[str, int] = field(default_factory=dict)
    members: Sequence[Sequence[int]] = ()

    @property
    def total(self) -> int:
        return sum(map(len, self.members))


def status_of(device: Device, seen_after_ms: int) -> str:
    """seen_after_ms: whoever was not heard of since then is offline."""
    if device.last_seen_ms is None:
        return NEVER
    return ONLINE if device.last_seen_ms >= seen_after_ms else OFFLINE


def fields_of(device: Device, installed: Mapping[str, ReleaseRow], seen_after_ms: int) -> dict[str, list[str]]:
    """What filters ask for: the device's attributes; `<slot>.model`, `<slot>.version`, and `model`, `version` of any slot; `id`, `name`,
    `status` (online, offline, never), `update` (hawkBit's update status). installed: release by slot, as reported to this server; what
    the device says that it runs goes before."""
    fields = {key: [value] for key, value in device.attributes.items()}
    running = {slot: (release.name, release.version) for slot, release in installed.items()} | _said(device.attributes)
    for slot, (model, version) in running.items():
        fields[f"{slot}.model"], fields[f"{slot}.version"] = [model], [version]
    if running:
        fields["model"] = [model for model, _ in running.values()]
        fields["version"] = [version for _, version in running.values()]
    known = {"id": device.controller_id, "name": device.name, "status": status_of(device, seen_after_ms)}
    return fields | {key: [value] for key, value in known.items()} | {"update": [device.update_status.value]}


def _said(attributes: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Model and version by slot, of attributes like `model.action-fight: fight-stgcn 0.4.0`."""
    said = {}
    for key, value in attributes.items():
        kind, _, slot = key.partition(".")
        model, _, version = value.rpartition(" ")
        if kind == "model" and slot and model:
            said["action/" + slot.removeprefix("action-") if slot.startswith("action-") else slot] = (model, version)
    return said


def installed_by_device(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, ReleaseRow]]:
    """Release by slot, by device id."""
    rows = devices.installed(connection, ids)
    known = releases.many(connection, list({row.release_id for row in rows}))
    found: dict[int, dict[str, ReleaseRow]] = defaultdict(dict)
    for row in rows:
        found[row.device_id][row.slot] = known[row.release_id]
    return found


def matching(connection: Connection, text: str, seen_after_ms: int) -> list[Device]:
    """Every device that a filter takes, by id. Raises FilterError."""
    wanted = filters.parse(text)
    return [device for device, fields in _fleet(connection, seen_after_ms) if wanted.matches(fields)]


def choose(
    connection: Connection, plan: Plan, text: str, release: ReleaseRow, seen_after_ms: int, *, but: int = 0
) -> Choice:
    """Who would get the release now. text: the filter; but: id of the rollout itself. Raises FilterError."""
    wanted = filters.parse(text)
    chosen = [(device, fields) for device, fields in _fleet(connection, seen_after_ms) if wanted.matches(fields)]
    has = installed_by_device(connection, [device.id for device, _ in chosen])
    already, newer, due = 0, 0, {}
    for device, fields in chosen:
        here = has.get(device.id, {}).get(release.slot)
        if here is not None and here.id == release.id:
            already += 1
        elif here is not None and here.number > release.number:
            newer += 1
        else:
            due[device.controller_id] = (device.id, fields)
    busy = records.taken(connection, [device_id for device_id, _ in due.values()], release.slot, but=but)
    shared = groups.assign(plan.groups, {name: fields for name, (_, fields) in due.items()}, release.target)
    members = [[due[name][0] for name in group] for group in shared]
    return Choice(len(chosen), already, newer, _count(busy.values()), members)


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(counts)


def _fleet(connection: Connection, seen_after_ms: int) -> list[tuple[Device, dict[str, list[str]]]]:
    everybody = devices.all_of(connection)
    has = installed_by_device(connection, [device.id for device in everybody])
    return [(device, fields_of(device, has.get(device.id, {}), seen_after_ms)) for device in everybody]
