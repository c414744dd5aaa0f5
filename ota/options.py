"""Arguments that several commands of `recognizer-fleet` share, and what they mean."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli import positive_number
from agent.errors import ConfigError, ConfigProblem
from agent.private_files import credentials_of

if TYPE_CHECKING:
    from ota.release.repository import Periods, Repository, Signing

DAYS = {"root": 365.0, "targets": 180.0, "snapshot": 14.0, "timestamp": 3.0}
"""How long a signature holds."""


def repository_option(parser: argparse.ArgumentParser) -> None:
    """`--repository DIR`"""
    parser.add_argument(
        "--repository", type=Path, required=True, metavar="DIR", help="with metadata/, targets/ and staged/ in it"
    )


def key_options(parser: argparse.ArgumentParser) -> None:
    """`--keys`, `--passphrase-file`"""
    parser.add_argument(
        "--keys", type=Path, action="append", default=[], metavar="PLACE",
        help="a key file, or a folder of them; may be given several times (default: systemd's $CREDENTIALS_DIRECTORY)",
    )  # fmt: skip
    parser.add_argument(
        "--passphrase-file", type=Path, action="append", default=[], metavar="FILE",
        help="mode 0600, holds a passphrase that opens keys (default: ask); may be given several times",
    )  # fmt: skip


def days_options(parser: argparse.ArgumentParser, *roles: str) -> None:
    """`--root-days` and its like."""
    for role in roles:
        parser.add_argument(
            f"--{role}-days", type=positive_number, default=DAYS[role], metavar="N",
            help=f"how long the {role} signature holds (default {DAYS[role]:g})",
        )  # fmt: skip


def periods_of(args: argparse.Namespace) -> Periods:
    """What `days_options` parsed."""
    from ota.release.repository import Periods

    return Periods(**{role: getattr(args, f"{role}_days", days) for role, days in DAYS.items()})


def signing_of(args: argparse.Namespace, env: Mapping[str, str]) -> Signing:
    """The keys that were named, as of now. Raises ConfigError."""
    from datetime import UTC, datetime

    from ota.release.keys import KeyRing
    from ota.release.repository import Signing

    ring = KeyRing(places_of(args, env), passphrases_of(args), credentials_of(env))
    return Signing(ring, datetime.now(UTC), periods_of(args))


def places_of(args: argparse.Namespace, env: Mapping[str, str]) -> list[Path]:
    """Where keys are. Raises ConfigError when nobody says."""
    credentials = credentials_of(env)
    places = list(args.keys) or ([credentials] if credentials else [])
    if not places:
        raise ConfigError([ConfigProblem("where are the keys?", path="--keys", hint="a key file, or a folder of them")])
    return places


def repository_of(args: argparse.Namespace) -> Repository:
    """With the root that is remembered beside the keys."""
    from ota.release.pin import Pin
    from ota.release.repository import Repository

    return Repository(args.repository, Pin.beside(args.keys))


def passphrases_of(args: argparse.Namespace) -> AskedPassphrases:
    """The same ones for the whole command, so that nobody is asked twice. Raises ConfigError."""
    if not hasattr(args, "passphrases"):
        args.passphrases = AskedPassphrases(args.passphrase_file)
    found: AskedPassphrases = args.passphrases
    return found


class AskedPassphrases:
    """From files, else from the person at the terminal: what is typed once is tried at, and given to, the keys after it as well."""

    def __init__(self, files: list[Path]) -> None:
        from ota.release.keys import read_secret

        self._known = []
        for file in files:
            phrase = read_secret(file, None)
            if not phrase or b"\n" in phrase:
                raise ConfigError([ConfigProblem("should hold one line, the passphrase", file=str(file))])
            self._known.append(phrase)

    def new(self, title: str) -> bytes:
        """The first one that is known, else asked for twice. Raises ConfigError."""
        if self._known:
            return self._known[0]
        if not sys.stdin.isatty():
            hint = "--passphrase-file FILE, or --no-passphrase"
            raise ConfigError(
                [ConfigProblem(f"{title} wants a passphrase, and there is no terminal to ask at", hint=hint)]
            )
        phrase = getpass.getpass(f"new passphrase for {title}: ")
        if not phrase or getpass.getpass("again: ") != phrase:
            raise ConfigError([ConfigProblem("the two are not the same, or empty")])
        self._known.append(os.fsencode(phrase))
        return self._known[0]

    def known(self, file: Path) -> Iterator[bytes]:
        """Those of the files and those typed so far, then asks."""
        yield from list(self._known)
        if sys.stdin.isatty():
            phrase = os.fsencode(getpass.getpass(f"passphrase of {file}: "))
            self._known.append(phrase)
            yield phrase
