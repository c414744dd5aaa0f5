"""What commands have in common when they print."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_NO_LIMIT = 1000


def table_console() -> Console:
    """For tables on standard output: in a file or pipe as wide as they are, since nobody greps wrapped cells."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _NO_LIMIT)


def add_plain(table: Table, *cells: str) -> None:
    """A row of text from elsewhere: brackets in it are no markup."""
    table.add_row(*(escape(cell) for cell in cells))


def complain(text: str, code: int) -> int:
    """Say what is wrong on standard error; `code`, for the caller to return."""
    print(f"error: {text}", file=sys.stderr)
    return code
