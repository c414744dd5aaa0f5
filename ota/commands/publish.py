"""`recognizer-fleet publish`: lets out what was signed. Where the repository is served, with the online keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from ota.options import days_options, key_options, repository_option, signing_of


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`publish`, `publish --from DIR`, `publish --renew`"""
    text = "let out what is staged, and keep the repository fresh"
    parser = commands.add_parser("publish", help=text, description=text[0].upper() + text[1:] + ".")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="a staged/ folder that was brought from the release machine",
    )
    what.add_argument(
        "--renew", action="store_true", help="only sign anew what has less than half of its time left; for a timer"
    )
    repository_option(parser)
    key_options(parser)
    days_options(parser, "snapshot", "timestamp")


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """0: out; warnings about offline signatures that will expire go to stderr. 1: they have expired, or keys are missing for a renewal."""
    from ota.release.publish import publish, renew
    from ota.release.repository import Layout, Repository

    repository, signing = Repository(args.repository), signing_of(args, env)
    if args.renew:
        done = renew(repository, signing)
    else:
        done = publish(repository, signing, Layout(args.source) if args.source else None)
    for name in done.written:
        print(f"{repository.folder}: {name}")
    if not done.written:
        print(f"{repository.folder}: fresh enough, nothing was signed")
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 1 if done.expired or done.unable else 0
