"""A process that appends to a `LineFile` until it is killed or its disk is gone.

Usage: line_writer.py PATH FIRST
Lines are objects with a rising `sequence`; prints the next one after each batch that is on disk.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from agent.sinks.lines import LineFile


def main() -> None:
    """Batches of seven."""
    file = LineFile(Path(sys.argv[1]), max_bytes=40_000, keep_files=500)
    number = int(sys.argv[2])
    while True:
        lines = [b'{"sequence":"%016d","text":"%s"}' % (n, b"x" * (700 + n % 7)) for n in range(number, number + 7)]
        file.append(lines, number)
        number += 7
        os.write(1, b"%d\n" % number)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"the disk is gone: {error}")
