"""How many items a device bears at once: halved when its memory runs out, doubled again after a good while."""

from __future__ import annotations

_MAX_PATIENCE = 1 << 20


class BatchSize:
    """largest: the size to start with, which it never exceeds; patience: so many good batches in a row double a reduced one.

    Each time memory runs out the patience doubles, so that a device that is simply too small is bothered ever more rarely; a
    failed attempt costs time and no result.
    """

    def __init__(self, largest: int, patience: int) -> None:
        self.largest = self.now = largest
        self._patience = patience
        self._good = 0

    def halve(self, count: int) -> None:
        """`count` items at once were too many."""
        self.now, self._good = count // 2, 0
        self._patience = min(2 * self._patience, _MAX_PATIENCE)

    def note_success(self) -> bool:
        """After a good batch; whether larger ones are tried from now on."""
        if self.now == self.largest:
            return False
        self._good += 1
        if self._good < self._patience:
            return False
        self.now, self._good = min(2 * self.now, self.largest), 0
        return True
