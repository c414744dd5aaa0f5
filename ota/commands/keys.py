"""`recognizer-fleet keys`: who may sign what."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli import whole_number
from agent.errors import ConfigError, ConfigProblem
from ota.options import days_options, key_options, passphrases_of, repository_of, repository_option, signing_of

if TYPE_CHECKING:
    from ota.release.keys import PublicKey
    from ota.release.repository import Repository
    from ota.release.roots import Staged

_ROLES = ("root", "targets", "snapshot", "timestamp")
_KEYS, _THRESHOLDS = {"root": 3, "targets": 1, "snapshot": 1, "timestamp": 1}, {"root": 2}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`keys create|ceremony|rotate|revoke|renew|list`"""
    text = "make signing keys, and say which of them count"
    parser = commands.add_parser("keys", help=text, description=text[0].upper() + text[1:] + ".")
    actions = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    create = actions.add_parser("create", help="one key: its private half, and the public half for others")
    create.add_argument("role", choices=_ROLES)
    ceremony = actions.add_parser("ceremony", help="the first root of a new repository")
    _add_numbers(ceremony)
    rotate = actions.add_parser(
        "rotate", help="the next root: a role gets new keys, as many as it has (--keep: one more)"
    )
    rotate.add_argument("role", choices=_ROLES)
    rotate.add_argument("--keep", action="store_true", help="the old keys go on counting beside the new ones")
    revoke = actions.add_parser("revoke", help="the next root: a key no longer counts (lost, or in wrong hands)")
    revoke.add_argument("role", choices=_ROLES)
    revoke.add_argument("keyid", metavar="KEYID", help="or its beginning")
    renew = actions.add_parser("renew", help="the next root: nothing but a new expiry")
    listing = actions.add_parser("list", help="who may sign what, and until when it holds")
    listing.add_argument("--json", action="store_true", help="for programs: JSON on standard output")
    for action in (rotate, revoke):
        action.add_argument(
            "--threshold", type=whole_number, metavar="N", help="how many keys of the role have to sign"
        )
    for action in (create, ceremony, rotate):
        action.add_argument("--no-passphrase", action="store_true", help="do not encrypt new root and targets keys")
    for action in (ceremony, rotate):
        _add_places(action)
    for action in (create, ceremony, rotate, revoke, renew, listing):
        key_options(action)
    for action in (ceremony, rotate, revoke, renew, listing):
        repository_option(action)
    for action in (ceremony, rotate, revoke, renew):
        days_options(action, "root", "targets")


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    for role in _ROLES:
        keys, threshold = _KEYS[role], _THRESHOLDS.get(role, 1)
        parser.add_argument(
            f"--{role}-keys", type=whole_number, default=keys, metavar="N",
            help=f"make keys until there are N (default {keys})",
        )  # fmt: skip
        parser.add_argument(
            f"--{role}-threshold", type=whole_number, default=threshold, metavar="N",
            help=f"how many of them have to sign (default {threshold})",
        )  # fmt: skip


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--public", type=Path, action="append", default=[], metavar="FILE",
        help="public half of a key that someone else has; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--online-keys", type=Path, metavar="DIR",
        help="a folder of its own for new snapshot and timestamp keys, to be taken to the server (default: as --keys)",
    )  # fmt: skip


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """0: done, signatures may still be missing."""
    done: int = {
        "create": _create, "ceremony": _ceremony, "rotate": _rotate, "revoke": _revoke, "renew": _renew, "list": _list,
    }[args.what](args, env)  # fmt: skip
    return done


def _create(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    _new_key(args, args.role)
    return 0


def _ceremony(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from ota.release.keys import ROLES, KeyRing, read_public
    from ota.release.roots import create_repository, require_new

    repository = repository_of(args)
    require_new(repository)
    folders = [folder for folder in (_folder(args), args.online_keys) if folder and folder.is_dir()]
    here = KeyRing(folders, passphrases_of(args)).publics
    publics = _distinct([*here, *(read_public(file) for file in args.public)])
    for role in ROLES:
        for _ in range(getattr(args, f"{role}_keys") - sum(public.role == role for public in publics)):
            publics.append(_new_key(args, role))
    thresholds = {role: getattr(args, f"{role}_threshold") for role in ROLES}
    tell(repository, create_repository(repository, signing_of(args, env), publics, thresholds))
    return 0


def _rotate(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from ota.release.keys import read_public
    from ota.release.roots import Change, newest_root

    old = newest_root(repository_of(args)).signed.roles[args.role].keyids
    add = [read_public(file) for file in args.public]
    wrong = [public for public in add if public.role != args.role]
    if wrong:
        raise ConfigError([ConfigProblem(f"made for {wrong[0].role}, not for {args.role}", path="--public")])
    if not add:
        add = [_new_key(args, args.role) for _ in range(1 if args.keep else len(old))]
    remove = [] if args.keep else [(args.role, keyid) for keyid in old]
    return _change(args, env, Change(add, remove, _threshold(args)))


def _revoke(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from ota.release.roots import Change

    return _change(args, env, Change((), [(args.role, args.keyid)], _threshold(args)))


def _renew(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from ota.release.roots import Change

    return _change(args, env, Change())


def _change(args: argparse.Namespace, env: Mapping[str, str], change: Any) -> int:
    from ota.release.roots import change_keys

    repository = repository_of(args)
    tell(repository, change_keys(repository, signing_of(args, env), change))
    return 0


def _list(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    from ota.release.keys import ROLES, KeyRing
    from ota.release.roots import require_published

    state = require_published(repository_of(args))
    ring = KeyRing(args.keys, passphrases_of(args)) if args.keys else None
    here = {public.keyid for public in ring.publics} if ring else set()
    found: dict[str, Any] = {}
    for role in ROLES:
        named, metadata = state.root.signed.roles[role], getattr(state, role)
        found[role] = {
            "threshold": named.threshold,
            "keys": [{"keyid": keyid, "here": keyid in here} for keyid in named.keyids],
            "version": metadata.signed.version if metadata else None,
            "expires": metadata.signed.expires.isoformat() if metadata else None,
        }
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    now = datetime.now(UTC)
    for name, entry in found.items():
        metadata = getattr(state, name)
        until = (
            "not published"
            if metadata is None
            else f"version {entry['version']}, {_until(metadata.signed.expires, now)}"
        )
        print(f"{name}: {entry['threshold']} of {len(entry['keys'])} keys; {until}")
        for key in entry["keys"]:
            print(f"  {key['keyid']}{'  (here)' if key['here'] else ''}")
    return 0


def _until(expires: datetime, now: datetime) -> str:
    days = (expires - now).total_seconds() / 86_400
    return (
        f"EXPIRED on {expires:%Y-%m-%d}" if days < 0 else f"holds until {expires:%Y-%m-%d %H:%M} UTC ({days:.0f} days)"
    )


def _new_key(args: argparse.Namespace, role: Any) -> PublicKey:
    from ota.release.keys import OFFLINE, create_key

    passphrase = None
    if role in OFFLINE and not args.no_passphrase:
        passphrase = passphrases_of(args).new(f"the new {role} key")
    online = None if role in OFFLINE else getattr(args, "online_keys", None)
    folder = online or _folder(args)
    public = create_key(folder, role, passphrase)
    print(
        f"{folder / public.stem}.pem: new {role} key {public.keyid}, {'encrypted' if passphrase else 'NOT encrypted'}"
    )
    return public


def _folder(args: argparse.Namespace) -> Path:
    """The one folder that new keys go to."""
    if len(args.keys) != 1 or args.keys[0].is_file():
        raise ConfigError([ConfigProblem("give one folder for new keys", path="--keys")])
    folder: Path = args.keys[0]
    return folder


def _distinct(publics: Sequence[PublicKey]) -> list[PublicKey]:
    return list({public.keyid: public for public in publics}.values())


def _threshold(args: argparse.Namespace) -> dict[Any, int] | None:
    return {args.role: args.threshold} if args.threshold else None


def tell(repository: Repository, staged: Sequence[Staged]) -> None:
    """What was done; and the newest root is remembered beside the keys."""
    from ota.release.roots import remember

    for one in staged:
        print(f"{repository.staged.folder}: {one.role} {one.version}: signatures: {one.text}")
    if all(one.complete for one in staged):
        print("complete (next: `recognizer-fleet publish`, with the snapshot and timestamp keys)")
    else:
        print("signatures are missing (next: `recognizer-fleet sign --staged`, with further keys)")
    try:
        if first := remember(repository):
            print(first)
    except OSError as error:  # keys on a medium that cannot be written
        print(f"the root is not remembered beside the keys: {error}", file=sys.stderr)
