"""The devices as filters and plans see them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from sqlalchemy import Connection

from ota.rollouts import filters, groups, records
from ota.rollouts.plan import Plan
from ota.store import devices, releases, reported
from ota.store.rows import Device, ReleaseRow

NEVER, ONLINE, OFFLINE = "never", "online", "offline"
_OF_SLOTS = {"model": 0, "version": 1}
_OF_ALL = ("id", "name", "status", "update")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a filter and a plan make of the fleet.

    matched: devices that the filter takes; already: those of them that run the release; newer: that run one with a higher number, which
    no device leaves; busy: that are in another rollout of the slot, by its name; members: device ids of each group; lacking: devices
    that the filter takes and that say what serves their slots, this one not among them.
    """

    matched: int
    already: int
    newer: int
    busy: Mapping[str, int] = field(default_factory=dict)
    members: Sequence[Sequence[int]] = ()
    lacking: int = 0

    @property
    def total(self) -> int:
        return sum(map(len, self.members))


def status_of(device: Device, seen_after_ms: int) -> str:
    """seen_after_ms: whoever was not heard of since then is offline."""
    if device.last_seen_ms is None:
        return NEVER
    return ONLINE if device.last_seen_ms >= seen_after_ms else OFFLINE


class DeviceFields(Mapping[str, Sequence[str]]):
    """What filters ask for: the device's attributes; `<slot>.model`, `<slot>.version`, and `model`, `version` of any slot; `id`, `name`,
    `status` (online, offline, never), `update` (hawkBit's update status). Made when asked for: a filter names few of them.

    installed: the release by slot of a device id, as reported to this server; what the device says that it runs goes before."""

    __slots__ = ("_device", "_installed", "_known", "_seen_after_ms")

    def __init__(
        self, device: Device, installed: Callable[[int], Mapping[str, ReleaseRow]], seen_after_ms: int
    ) -> None:
        self._device = device
        self._installed = installed
        self._seen_after_ms = seen_after_ms
        self._known: dict[str, tuple[str, str]] | None = None

    def __getitem__(self, name: str) -> list[str]:
        device = self._device
        match name:
            case "id":
                return [device.controller_id]
            case "name":
                return [device.name]
            case "status":
                return [status_of(device, self._seen_after_ms)]
            case "update":
                return [device.update_status.value]
        return self._of_slots(name) or [device.attributes[name]]

    def _of_slots(self, name: str) -> list[str]:
        slot, dot, kind = name.rpartition(".")
        if kind not in _OF_SLOTS:
            return []
        at, running = _OF_SLOTS[kind], self._running()
        return [facts[at] for of, facts in running.items() if not dot or of == slot]

    def __iter__(self) -> Iterator[str]:
        running = self._running()
        of_slots = [f"{slot}.{kind}" for slot in running for kind in _OF_SLOTS]
        return iter(dict.fromkeys((*self._device.attributes, *of_slots, *(_OF_SLOTS if running else ()), *_OF_ALL)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _running(self) -> dict[str, tuple[str, str]]:
        """Model and version by slot."""
        if self._known is None:
            given = {
                slot: (release.name, release.version) for slot, release in self._installed(self._device.id).items()
            }
            self._known = given | reported.titles(self._device.attributes)
        return self._known


def installed_by_device(connection: Connection, ids: Sequence[int] | None) -> dict[int, dict[str, ReleaseRow]]:
    """Release by slot, by device id. ids: None = all there are."""
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
        if here is not None and here.id == release.id and not _signed_anew_since(device, release):
            already += 1
        elif here is not None and here.number > release.number:
            newer += 1
        else:
            due[device.controller_id] = (device.id, fields)
    busy = records.taken(connection, [device_id for device_id, _ in due.values()], release.slot, but=but)
    shared = groups.assign(plan.groups, {name: fields for name, (_, fields) in due.items()}, release.target)
    members = [[due[name][0] for name in group] for group in shared]
    lacking = sum(reported.lacks(device.attributes, release.slot) for device, _ in chosen)
    return Choice(len(chosen), already, newer, _count(busy.values()), members, lacking)


def _signed_anew_since(device: Device, release: ReleaseRow) -> bool:
    """Whether the device has these bytes under a lower number: offered once more, it takes over the new one."""
    said = reported.number(device.attributes, release.slot)
    return said is not None and said < release.number and not device.ask_attributes


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(counts)


def _fleet(connection: Connection, seen_after_ms: int) -> Iterator[tuple[Device, DeviceFields]]:
    """One at a time: whoever keeps few of many keeps the garbage collector quiet."""
    everything = cache(lambda: installed_by_device(connection, None))

    def installed(device_id: int) -> Mapping[str, ReleaseRow]:
        return everything().get(device_id, {})

    for device in devices.all_of(connection):
        yield device, DeviceFields(device, installed, seen_after_ms)
