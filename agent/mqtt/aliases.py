"""Topic aliases of one connection (MQTT 5, 3.3.2.3.4): two bytes instead of a topic that was sent before. Pure."""

from __future__ import annotations

_MOST = 64
"""Aliases used at most, whatever the broker offers."""
_MOST_COUNTED = 256
_WORTH_BYTES = 4
"""The alias itself costs three bytes; a shorter topic is not worth it."""


class TopicAliases:
    """Gives the most used topics the aliases that there are. Packets must be sent in the order of the calls.

    maximum: how many the broker takes, 0 = none. A topic gets an alias when it is used for the second time; when all are
    taken, when it was used more often than one that has an alias.
    """

    def __init__(self, maximum: int) -> None:
        self._free = list(range(min(maximum, _MOST), 0, -1))
        self._aliases: dict[str, int] = {}
        self._uses: dict[str, int] = {}

    def choose(self, topic: str) -> tuple[str, int]:
        """The topic to put into the packet (empty when the alias stands for it) and the alias, 0 = none."""
        if not self._free and not self._aliases:
            return topic, 0
        uses = self._count(topic)
        alias = self._aliases.get(topic, 0)
        if alias:
            return "", alias
        if uses < 2 or len(topic) < _WORTH_BYTES:
            return topic, 0
        alias = self._free.pop() if self._free else self._take_over(uses)
        if alias:
            self._aliases[topic] = alias
        return topic, alias

    def forget(self, topic: str) -> None:
        """Send `topic` in full next time: nobody knows whether the broker kept its alias."""
        alias = self._aliases.pop(topic, 0)
        if alias:
            self._free.append(alias)

    def _take_over(self, uses: int) -> int:
        least = min(self._aliases, key=self._uses.__getitem__)
        return self._aliases.pop(least) if self._uses[least] < uses else 0

    def _count(self, topic: str) -> int:
        if topic not in self._uses and len(self._uses) >= _MOST_COUNTED:
            self._uses = {
                name: self._uses[name] for name in self._aliases
            }  # the rest starts again: memory stays bounded
        uses = self._uses[topic] = self._uses.get(topic, 0) + 1
        return uses
