"""`recognizer-agent events list|export|dead|audit|backup`: the event history, beside a running agent or without one."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from rich.table import Table

from agent.cli import EXIT_GOOD, EXIT_USAGE
from agent.commands.output import add_plain, table_console, visible
from agent.config.load import load_config
from agent.errors import DataError
from agent.events.cloudevents import parse
from agent.events.gaps import parse_gap
from agent.outbox.audit import CommandEntry
from agent.outbox.backup import back_up
from agent.outbox.history import EventArchive, EventQuery, EventRow
from agent.outbox.tables import DeadLetter
from agent.timeparse import parse_time
from agent.types import GAP


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print or write what the arguments ask for."""
    try:
        query = _query(args) if args.what in {"list", "export"} else EventQuery()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    config = load_config(args.config, env=env)
    database = config.state_dir / config.outbox.file
    if args.what == "backup":
        size = back_up(database, args.file)
        print(f"{size / 1e6:.1f} MB written to {args.file}", file=sys.stderr)
        return EXIT_GOOD
    with EventArchive(database) as archive:
        if args.what == "dead":
            _list_dead(archive.dead_letters(args.limit), as_json=args.json)
        elif args.what == "audit":
            _list_commands(archive.commands(args.limit), as_json=args.json)
        elif args.what == "list":
            _list(list(archive.events(query)), config.state_dir / "evidence", as_json=args.json)
        elif args.out is None:
            archive.export(query, sys.stdout, args.format)
        else:
            with args.out.open("w", encoding="utf-8", newline="") as file:
                _report(archive.export(query, file, args.format), file)
    return EXIT_GOOD


def _query(args: argparse.Namespace) -> EventQuery:
    """Raises ValueError for a time that is none."""
    listing = args.what == "list"
    return EventQuery(
        since=parse_time(args.since), until=parse_time(args.until), kind=args.kind or "", camera_id=args.camera or "",
        limit=args.limit if listing else None, newest_first=listing,
    )  # fmt: skip


def _list(rows: list[EventRow], evidence: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([row.as_json() for row in rows]))
        return
    table = Table("sequence", "time", "what", "camera", "for", "sure", "delivery", box=None, pad_edge=False)
    folders: dict[str, int] = {}  # an incident has one for all its steps; the sequence of the first that is listed
    for row in rows:
        time = row.t_utc.astimezone().isoformat(sep=" ", timespec="seconds")
        *what, folder = _what(row)
        add_plain(table, str(row.sequence), time, *what, row.delivery)
        if folder:
            folders.setdefault(folder, row.sequence)
    table_console().print(table if rows else "no events")
    if folders:
        print("\nsequence  evidence")
    for folder, sequence in folders.items():  # no column of the table: a path that is wrapped there cannot be copied
        print(f"{sequence:<8}  {visible(str(evidence / folder))}")


def _what(row: EventRow) -> tuple[str, str, str, str, str]:
    """What happened, where, for how long, how sure, and the folder of its evidence."""
    try:
        if row.kind == GAP:
            loss = parse_gap(row.payload).loss
            return f"gap {loss.ranges[0][0]}-{loss.ranges[-1][1]}: {loss.reason}", "", "", "", ""
        event = parse(row.payload)
    except (DataError, IndexError):  # damaged, or of another version: the others are to be seen all the same
        return f"{row.kind} {row.phase} (unreadable)", row.camera_id, "", "", ""
    folder = str(event.attributes.get("evidence", ""))
    return f"{row.kind} {row.phase}", row.camera_id, f"{event.duration_s:.0f} s", f"{event.confidence:.0%}", folder


def _list_dead(letters: list[DeadLetter], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_readable(letter) for letter in letters]))
        return
    table = Table("sequence", "refused", "topic", "attempts", "why", box=None, pad_edge=False)
    for letter in letters:
        time = letter.t_dead_utc.astimezone().isoformat(sep=" ", timespec="seconds")
        add_plain(table, str(letter.sequence or ""), time, letter.topic, str(letter.attempts), letter.reason)
    table_console().print(table if letters else "no dead letters")


def _list_commands(entries: list[CommandEntry], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_command(entry) for entry in entries]))
        return
    table = Table("time", "command", "from", "role", "state", "why", "id", "arguments", box=None, pad_edge=False)
    for entry in entries:
        time = entry.t_utc.astimezone().isoformat(sep=" ", timespec="seconds")
        who = entry.client or ("unsigned" if entry.role else "unverified")
        why = json.loads(entry.answer or b"{}").get("detail", "")
        add_plain(table, time, entry.name, who, entry.role, entry.state, why, entry.command_id, entry.arguments)
    table_console().print(table if entries else "no commands")


def _command(entry: CommandEntry) -> dict[str, object]:
    return {
        "id": entry.command_id,
        "command": entry.name,
        "client": entry.client,
        "role": entry.role,
        "arguments": json.loads(entry.arguments),
        "received_at": entry.t_utc.isoformat(),
        "state": entry.state,
        "answer": json.loads(entry.answer) if entry.answer is not None else None,
    }


def _readable(letter: DeadLetter) -> dict[str, object]:
    return {
        "sequence": letter.sequence,
        "event_id": letter.event_id,
        "lane": letter.lane.name.lower(),
        "topic": letter.topic,
        "refused_at": letter.t_dead_utc.isoformat(),
        "attempts": letter.attempts,
        "reason": letter.reason,
        "payload_base64": base64.b64encode(letter.payload).decode("ascii"),
    }


def _report(count: int, file: TextIO) -> None:
    print(f"{count} events written to {file.name}", file=sys.stderr)
