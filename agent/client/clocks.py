"""Time as a device's events can come: it stands still while the device, or the subscriber itself, is not connected. Pure."""

from __future__ import annotations


class DeviceClocks:
    """One clock per device. A device that has said nothing of itself counts as online."""

    def __init__(self) -> None:
        self._linked = False
        self._offline: set[str] = set()
        self._stood_s: dict[str, float] = {}
        self._since_s: dict[str, float] = {}

    def link(self, linked: bool, now_s: float) -> None:
        """The subscriber's own connection came or went."""
        devices = {*self._since_s, *self._stood_s}
        self._advance(devices, now_s)
        self._linked = linked

    def device(self, device_id: str, online: bool, now_s: float) -> None:
        """The device came or went."""
        self._advance({device_id}, now_s)
        if online:
            self._offline.discard(device_id)
        else:
            self._offline.add(device_id)

    def running(self, device_id: str) -> bool:
        """Whether the device's time goes on."""
        return self._linked and device_id not in self._offline

    def time_s(self, device_id: str, now_s: float) -> float:
        """The device's time, never going back."""
        self._advance({device_id}, now_s)
        return self._stood_s[device_id]

    def _advance(self, devices: set[str], now_s: float) -> None:
        for device_id in devices:
            since_s = self._since_s.get(device_id, now_s)
            ran_s = now_s - since_s if self.running(device_id) else 0.0
            self._stood_s[device_id] = self._stood_s.get(device_id, 0.0) + ran_s
            self._since_s[device_id] = now_s
