"""`recognizer-agent ota status|rollback|check`: beside a running agent or without one.

A running agent is asked by a file in its state folder and does it itself, and it alone knows how the fleet server takes it; without one
the journal is written here.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.table import Table

from agent import __version__
from agent.cli import EXIT_FAILED, EXIT_GOOD
from agent.commands.output import add_plain, table_console, visible
from agent.config.load import load_config
from agent.errors import StorageError
from agent.update.boot import JOURNAL
from agent.update.journal import Journal, title_of
from agent.update.journal_file import InUseError, sole_owner
from agent.update.machine import after, report
from agent.update.models import VersionStore
from agent.update.requests import Answer, Request, RequestFolder
from agent.update.state import action_document, serving_document
from agent.update.trials import Refusal

_WAIT_S = 60.0
_DONE_S = 3600.0
"""For an agent that is at it: a model may need an engine built first."""
_SERVER_S = 5.0
_FOLDER = "updates"


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """What the arguments ask for. Raises ConfigError, StorageError."""
    config = load_config(args.config, env=env)
    root = config.state_dir / _FOLDER
    if args.what == "status":
        return _status(_look(root, args.limit, enabled=config.update.enabled), as_json=args.json)
    return _say(_roll_back(root, args.slot) if args.what == "rollback" else _check(root), as_json=args.json)


def _say(answer: Answer, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"good": answer.good, "text": answer.text}))
    elif answer.good:
        print(answer.text)
    else:
        print(f"error: {answer.text}", file=sys.stderr)
    return EXIT_GOOD if answer.good else EXIT_FAILED


# --- status -----------------------------------------------------------------------------------------------------------


def _status(document: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(document))
        return EXIT_GOOD
    print(f"agent {document['agent']}{'' if document['running'] else ', not running'}")
    if server := document["server"]:
        told = f"{server['state']}: {server['detail']}" if server["detail"] else server["state"]
        print(f"server: {visible(told)}; last good answer: {server['polled'] or 'none since the start'}")
    console = table_console()
    if not document["versions"]:
        print("every slot has what the configuration names")
    else:
        table = Table("slot", "serves", "number", "before", box=None, pad_edge=False)
        for slot, one in document["versions"].items():
            add_plain(table, slot, one["version"], str(one["number"] or ""), one["before"] or "")
        console.print(table)
    if document["actions"]:
        table = Table("update", "slot", "release", "phase", "since", "why", box=None, pad_edge=False)
        for one in document["actions"]:
            why = f"{one['reason']}: {one['text']}" if one["reason"] else one["text"]
            add_plain(table, one["action_id"], one["slot"], one["release"], one["phase"], one["changed"], why)
        console.print(table)
    if document["waiting_feedback"]:
        print(f"{document['waiting_feedback']} reports wait for the fleet server")
    return EXIT_GOOD


def _look(root: Path, limit: int, *, enabled: bool) -> dict[str, Any]:
    """server: as the agent that runs has it; None where none does, or it does not say."""
    running = _is_running(root)
    document: dict[str, Any] = {
        "agent": __version__, "running": running, "server": _server(root) if running and enabled else None,
        "versions": {}, "actions": [], "waiting_feedback": 0,
    }  # fmt: skip
    if (root / JOURNAL).exists():
        with closing(Journal.open_to_read(root / JOURNAL)) as journal:
            document["versions"] = {slot: serving_document(one) for slot, one in journal.slots().items()}
            document["actions"] = [action_document(one) for one in journal.recent(limit)]
            document["waiting_feedback"] = len(journal.waiting())
    return document


def _server(root: Path) -> Any:
    try:
        return json.loads(RequestFolder(root / "requests").ask(Request("server", "", _who()), _SERVER_S).text)
    except (StorageError, ValueError):
        return None


def _is_running(root: Path) -> bool:
    if not (root / JOURNAL).exists():
        return False
    try:
        with sole_owner(root / JOURNAL):
            return False
    except InUseError:
        return True


# --- rollback, check --------------------------------------------------------------------------------------------------


def _roll_back(root: Path, slot: str) -> Answer:
    if not (root / JOURNAL).exists():
        raise StorageError(f"{root}: no update has come to this device")
    try:
        with sole_owner(root / JOURNAL), closing(Journal.open(root / JOURNAL)) as journal:
            return roll_back_here(journal, VersionStore(root), slot)
    except InUseError:
        folder = RequestFolder(root / "requests")
        return folder.ask(Request("rollback", slot, _who()), _WAIT_S, _DONE_S, _say_taken)


def _say_taken() -> None:
    print("taken by the agent, under way", file=sys.stderr)


def roll_back_here(journal: Journal, store: VersionStore, slot: str) -> Answer:
    """Without an agent: what it finds at its next start. What is under way for `slot` ends here, else the version before comes back."""
    for action in (one for one in journal.unsettled() if one.slot == slot and not one.over):
        refusal = Refusal("command", f"rolled back by {_who()}")
        ended = journal.enter(action, after(action.phase, refusal), None, refusal=refusal)
        store.switch(slot, journal.serving(slot).current)
        journal.settle(ended, report(ended.phase, text=ended.text, reason=ended.reason, figures=ended.flat_figures))
        return Answer(True, f"{action.title}: taken back")
    before = journal.serving(slot).before
    if before is not None and (problem := store.problem(before)):
        return Answer(False, f"{slot}: the version before cannot be used: {problem}")
    serving = journal.exchange(slot, "by command", _who())
    store.switch(slot, serving.current)
    return Answer(True, f"{slot}: {title_of(serving.current)} serves from the next start on")


def _check(root: Path) -> Answer:
    if not _is_running(root):
        return Answer(False, "the agent is not running, or update.enabled is false")
    return RequestFolder(root / "requests").ask(Request("check", "", _who()), _WAIT_S)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this number
        return "the command line"
