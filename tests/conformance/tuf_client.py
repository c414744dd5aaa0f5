#!/usr/bin/env python3
"""The device's client under the command line that tuf-conformance calls (its CLIENT-CLI.md). `run.sh` beside runs the suite.

What is tested is `agent.update.trust.Trust` with its record, fetcher and limits; only the check of the clock against the age of the
agent is off, since the suite sets the clock back years.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from tuf.api.exceptions import LengthOrHashMismatchError

from agent.errors import RecognizerError
from agent.update.trust import Session, Trust

EMBEDDED = "embedded_root"
STATE = ".state"
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def main() -> int:
    """Run one command; its exit code."""
    args = _arguments()
    state = args.metadata_dir / STATE
    if args.command == "init":
        state.mkdir()
        shutil.copyfile(args.trusted_root, state / EMBEDDED)
        shutil.copyfile(args.trusted_root, args.metadata_dir / "root.json")
        return 0
    base = args.metadata_url.rstrip("/").removesuffix("/metadata")
    trust = Trust(state, base, (state / EMBEDDED).read_bytes(), not_before=LONG_AGO)
    try:
        with trust.session() as session:
            for name in args.target_name if args.command == "download" else ():
                _download(session, name, args.target_dir)
    except (RecognizerError, LookupError, LengthOrHashMismatchError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        _show(state / "metadata", args.metadata_dir)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args()


def _download(session: Session, name: str, folder: Path) -> None:
    info = session.updater.get_targetinfo(name)
    if info is None:
        raise LookupError(f"no target {name!r}")
    file = folder / quote(name, safe="")
    if file.exists():
        try:
            info.verify_length_and_hashes(file.read_bytes())
        except LengthOrHashMismatchError:
            pass
        else:
            return
    content = session.fetcher.download_bytes(session.address(info), info.length)
    info.verify_length_and_hashes(content)
    file.write_bytes(content)


def _show(workplace: Path, metadata_dir: Path) -> None:
    """What the client holds for true, where the suite looks for it."""
    for file in metadata_dir.glob("*.json"):
        file.unlink()
    for file in workplace.glob("*.json"):
        shutil.copyfile(file, metadata_dir / file.name)


if __name__ == "__main__":
    sys.exit(main())
