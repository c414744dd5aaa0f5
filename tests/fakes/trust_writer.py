"""Keeps one state after the other in a record of trust, and tells each number once it is safe: `trust_writer.py FOLDER WORKPLACE FIRST`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from agent.update.trust_record import Held, TrustRecord


def main() -> None:
    """Until the disk fails or somebody ends it."""
    folder, workplace, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    record = TrustRecord(folder)
    record.workplace = workplace
    while True:
        held = record.load()
        record.unfold(Held({"timestamp.json": b"%d" % number, "targets.json": b"x" * 20_000}))
        record.keep(held, datetime.now(UTC))
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    main()
