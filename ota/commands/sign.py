"""`recognizer-fleet sign`: what may be installed. On the release machine, with the offline keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from agent.cli import fraction, positive_number
from ota.options import days_options, key_options, repository_of, repository_option, signing_of

_RUNTIMES = ("cpu", "cuda", "tensorrt")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`sign BUNDLE`, `sign --staged`, `sign --withdraw TARGET`, `sign --renew`"""
    text = "pack a model bundle or a configuration, and put it on the signed list"
    parser = commands.add_parser("sign", help=text, description=text[0].upper() + text[1:] + ".")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "source", nargs="?", type=Path, metavar="BUNDLE", help="a bundle folder, or a configuration (.yaml)"
    )
    what.add_argument("--staged", action="store_true", help="add signatures to what is staged (thresholds above 1)")
    what.add_argument("--withdraw", nargs="+", metavar="TARGET", help="take these off the list")
    what.add_argument("--renew", action="store_true", help="the same list with a new expiry")
    parser.add_argument(
        "--slot", default="", metavar="SLOT", help="pose, action/<service> (default: pose for pose models)"
    )
    parser.add_argument("--name", default="", help="of a configuration")
    parser.add_argument("--release-version", default="", metavar="VERSION", help="of a configuration")
    parser.add_argument(
        "--again", action="store_true", help="the same bytes under a new number: back to an older version"
    )
    parser.add_argument("--min-agent", default="0.0.0", metavar="X.Y.Z", help="oldest agent that may take it")
    parser.add_argument(
        "--runtime", action="append", choices=_RUNTIMES, default=[], help="may be repeated (default: all)"
    )
    parser.add_argument("--latency-ms", type=positive_number, metavar="N", help="must be reached on the device")
    parser.add_argument(
        "--latency-ratio", type=positive_number, metavar="N", help="times the running model's (default 1.5)"
    )
    parser.add_argument("--memory-mb", type=positive_number, metavar="N", help="what it may take at most")
    parser.add_argument("--agreement", type=fraction, metavar="0-1", help="with the running model, in the shadow run")
    parser.add_argument(
        "--allow-custom-ops", action="store_true", help="operators that onnxruntime does not bring along"
    )
    repository_option(parser)
    key_options(parser)
    days_options(parser, "targets")


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """0: staged, signatures may still be missing."""
    from ota.commands.keys import tell
    from ota.release.pack import Wishes
    from ota.release.roots import add_signatures
    from ota.release.targets import add_release, renew_targets, slots, withdraw

    repository, signing = repository_of(args), signing_of(args, env)
    if args.staged:
        staged = add_signatures(repository, signing)
    elif args.withdraw:
        staged = [withdraw(repository, signing, args.withdraw)]
    elif args.renew:
        staged = [renew_targets(repository, signing)]
    else:
        minimum = {name: getattr(args, name) for name in ("latency_ms", "latency_ratio", "memory_mb", "agreement")}
        wishes = Wishes(
            args.slot,
            args.name,
            args.release_version,
            args.min_agent,
            tuple(args.runtime),
            minimum,
            args.allow_custom_ops,
        )
        known = slots(repository)
        packed, one = add_release(repository, signing, args.source, wishes, again=args.again)
        release = packed.release
        print(f"{release.path}: {release.title} for {release.slot}, number {release.number}, {packed.length:,} bytes")
        if args.slot and known and release.slot not in known:  # a service that is new, or mistyped
            told = f"{release.slot} is new to the list, which has {', '.join(sorted(known))}"
            hint = f"a slip? `recognizer-fleet sign --withdraw {release.path}`"
            print(f"warning: {told} (hint: {hint})", file=sys.stderr)
        staged = [one]
    tell(repository, staged)
    return 0
