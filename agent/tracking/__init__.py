"""Multi-person tracking: pure NumPy, no input or output, no clock."""

from agent.tracking.bytetrack import PALACE, ByteTracker, Matched

__all__ = ["PALACE", "ByteTracker", "Matched"]
