"""Variables for `${NAME}`: those of the environment, and of the `agent.env` that the service has, for whoever types a command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

FILE = "agent.env"
"""Beside a configuration file. systemd reads it for the service (`EnvironmentFile=`)."""

_ENTRY = re.compile(
    r"""^[ \t\r]*+(?:
        [#;](?:\\.|[^\\\n])*
        |(?P<name>[^=\n]*+)=(?P<quoted>(?:[ \t\r]*(?:'[^']*(?:'|\Z)|"(?:\\.|[^"\\])*(?:"|\Z)))*)
            [ \t\r]*(?P<plain>(?:(?:\\.|[^\\\n])*(?:\\.|[^\\\n \t\r]))?)
    )""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
"""A comment or an assignment; both go on after a backslash at the end of a line, and a value in quotes over lines."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"""'([^']*)'?|"((?:\\.|[^"\\])*)"?""", re.DOTALL)


def with_env_file(env: Mapping[str, str], files: Iterable[Path]) -> dict[str, str]:
    """`env`, and for names that it does not have, what the `agent.env` beside each of `files` says; later files win."""
    found: dict[str, str] = {}
    for file in files:
        try:
            text = file.with_name(FILE).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):  # none, or for others to read: whoever needs a variable of it is told
            continue
        found |= assignments(text)
    return found | dict(env)


def assignments(text: str) -> dict[str, str]:
    """What systemd makes of an environment file (systemd.exec(5), EnvironmentFile=).

    >>> assignments("# names\\nBOX = 'gate 7'  \\nexport NO=1\\nPASSWORD=a\\\\$b c")
    {'BOX': 'gate 7', 'PASSWORD': 'a$b c'}
    """
    return {name: value for name, value in _read(text) if _NAME.fullmatch(name)}


def _read(text: str) -> Iterator[tuple[str, str]]:
    for entry in _ENTRY.finditer(text):
        if entry["name"] is not None:
            quoted = "".join(part[1] or _escapes(part[2] or "", '"\\`$') for part in _QUOTED.finditer(entry["quoted"]))
            yield entry["name"].rstrip(" \t\r"), quoted + _escapes(entry["plain"])


def _escapes(text: str, escaped: str = "") -> str:
    """Without its backslashes before line ends and `escaped`, which is anything where it is empty."""
    kept = rf"([{re.escape(escaped)}])" if escaped else "(.)"
    return re.sub(rf"\\(?:\n|{kept})", lambda found: found[1] or "", text, flags=re.DOTALL)
