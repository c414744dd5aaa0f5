"""What commands have in common when they print."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_NO_LIMIT = 1000
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it: control characters but tab and line end, and those that turn the direction of writing."""


def visible(text: str) -> str:
    """Steering characters as JSON writes them, `\\u001b`."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json(found: Any) -> None:
    """For programs, and for people at a terminal."""
    print(visible(json.dumps(found, indent=2, ensure_ascii=False)))


class _TableConsole(Console):
    """What it shows may come from a hostile device."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def table_console() -> Console:
    """For tables on standard output: in a file or pipe as wide as they are, since nobody greps wrapped cells."""
    return _TableConsole(file=sys.stdout, width=None if sys.stdout.isatty() else _NO_LIMIT)


def add_plain(table: Table, *cells: str) -> None:
    """A row of text from elsewhere: brackets in it are no markup."""
    table.add_row(*(escape(cell) for cell in cells))


def complain(text: str, code: int) -> int:
    """Say what is wrong on standard error; `code`, for the caller to return."""
    print(f"error: {text}", file=sys.stderr)
    return code
