"""`recognizer-agent events list|export`: the event history, beside a running agent or without one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TextIO

from rich.table import Table

from agent.cli import EXIT_GOOD, EXIT_USAGE
from agent.commands.output import table_console
from agent.config.load import load_config
from agent.events.cloudevents import parse
from agent.outbox.history import EventArchive, EventQuery, EventRow
from agent.timeparse import parse_time


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print or write the events that the arguments ask for."""
    try:
        query = EventQuery(
            since=parse_time(args.since), until=parse_time(args.until), kind=args.kind or "", camera_id=args.camera or "",
            limit=args.limit if args.what == "list" else None, newest_first=args.what == "list",
        )  # fmt: skip
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    config = load_config(args.config, env=env)
    with EventArchive(config.state_dir / config.outbox.file) as archive:
        if args.what == "list":
            _list(list(archive.events(query)), as_json=args.json)
        elif args.out is None:
            archive.export(query, sys.stdout, args.format)
        else:
            with args.out.open("w", encoding="utf-8", newline="") as file:
                _report(archive.export(query, file, args.format), file)
    return EXIT_GOOD


def _list(rows: list[EventRow], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([json.loads(row.payload) | {"delivery": row.delivery} for row in rows]))
        return
    table = Table("sequence", "time", "what", "camera", "for", "sure", "delivery", box=None, pad_edge=False)
    for row in rows:
        event = parse(row.payload)
        time = row.t_utc.astimezone().isoformat(sep=" ", timespec="seconds")
        table.add_row(
            str(row.sequence), time, f"{row.kind} {row.phase}", row.camera_id,
            f"{event.duration_s:.0f} s", f"{event.confidence:.0%}", row.delivery,
        )  # fmt: skip
    table_console().print(table if rows else "no events")


def _report(count: int, file: TextIO) -> None:
    print(f"{count} events written to {file.name}", file=sys.stderr)
