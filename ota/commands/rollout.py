"""`recognizer-fleet rollout`: let a release out to devices, over the management interface of a server."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli import positive_number, whole_number
from ota.commands.devices import present
from ota.remote import remote_options

if TYPE_CHECKING:
    from rich.table import Table

    from ota.remote import Remote

ENDED = ("aborted", "finished", "rolled_back")
_MOVES = {
    "start": "begin now; who takes part is settled by this",
    "pause": "no further device gets the release",
    "resume": "go on",
    "abort": "end it; what is open is taken back",
    "approve": "let the group begin that waits for a second person's word",
}
_POLL_S = 2.0

_present = partial(present, markup=True)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("rollout", help="let a release out to devices, in groups")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    _add_create(kinds.add_parser("create", help="a new rollout; nothing happens before its start"))
    listing = kinds.add_parser("list", help="rollouts, newest first")
    listing.add_argument("--state", metavar="STATE", help="only these: running, paused, finished, ...")
    remote_options(listing)
    show = kinds.add_parser("show", help="one rollout with the progress of its groups")
    show.add_argument("rollout", type=whole_number, metavar="ID")
    show.add_argument("--devices", action="store_true", help="also where each device stands")
    show.add_argument(
        "--wait",
        type=positive_number,
        metavar="SECONDS",
        help="until it has ended or stops; exit code 1 unless it finished",
    )
    remote_options(show)
    for name, text in _MOVES.items():
        move = kinds.add_parser(name, help=text)
        move.add_argument("rollout", type=whole_number, metavar="ID")
        if name == "resume":
            move.add_argument("--accept", action="store_true", help="although a group has failed")
        if name == "abort":
            move.add_argument("--roll-back", action="store_true", help="whoever runs it gets the version before")
        remote_options(move)


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--release", required=True, help="its id, `NAME VERSION` or target path")
    parser.add_argument(
        "--filter", default="", metavar="TEXT", help="which devices: site==berlin;pose.version=lt=0.7 (default: all)"
    )
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument(
        "--canary", type=positive_number, metavar="PERCENT", help="size of the first of two groups (default 10)"
    )
    groups.add_argument(
        "--plan", type=Path, metavar="FILE", help="groups and thresholds as YAML or JSON; options are laid over it"
    )
    parser.add_argument("--roll-back", choices=("none", "group", "all"), help="when a group fails (default group)")
    parser.add_argument("--forced", action="store_true", help="devices do not wait for their maintenance window")
    parser.add_argument("--confirmation", action="store_true", help="somebody at the device has to agree")
    parser.add_argument("--approval", action="store_true", help="a second person has to agree before it begins")
    parser.add_argument("--start-at", metavar="TIME", help="begin by itself then: 2026-12-01T03:00:00+01:00")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--start", action="store_true", help="begin at once")
    when.add_argument("--dry-run", action="store_true", help="only say how many devices it would take")
    remote_options(parser)


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """1 when `--wait` ends otherwise than well."""
    from ota.remote import remote_of

    remote = remote_of(args, env)
    if args.what == "create":
        return _create(remote, args, plan_of(args, env))
    if args.what == "list":
        _present(args, remote.all_of("/rollouts", "rollouts", state=args.state), _list_table)
        return 0
    if args.what == "show":
        return _show(remote, args)
    body = {name: getattr(args, name) for name in ("accept", "roll_back") if hasattr(args, name)}
    if body.get("roll_back"):
        _warn_of_those_who_stay(remote.get(f"/rollouts/{args.rollout}"))
    _present(args, remote.ask("POST", f"/rollouts/{args.rollout}/{args.what}", body or None), _one_table)
    return 0


def _warn_of_those_who_stay(rollout: dict[str, Any]) -> None:
    """Before anything happens: after a first release there is nothing that the server could send back."""
    counts = [group["counts"] for group in rollout["groups"]]
    if stay := sum(one["rooted"] for one in counts):
        well = sum(one["succeeded"] for one in counts)
        told = f"warning: of {well} devices that got it {stay} have no way back, and stay as they are"
        print(told, file=sys.stderr, flush=True)


# --- create -----------------------------------------------------------------------------------------------------------


def _create(remote: Remote, args: argparse.Namespace, plan: dict[str, Any]) -> int:
    from ota.remote import release_id

    given = {"release": release_id(remote, args.release), "filter": args.filter, "plan": plan}
    if args.dry_run:
        _present(args, remote.ask("POST", "/rollouts/preview", given), _preview_table)
        return 0
    made = remote.ask("POST", "/rollouts", {"name": args.name, **given})
    preview = made.pop("preview")
    if args.start:
        made = _start(remote, made["id"])
    if not args.json:
        print(_sentence(preview))
    _present(args, made if args.start else made | {"preview": preview}, _one_table)
    return 0


def _start(remote: Remote, rollout_id: int) -> Any:
    """Raises DataError: the rollout is there all the same."""
    from agent.errors import DataError, TransientError

    try:
        return remote.ask("POST", f"/rollouts/{rollout_id}/start")
    except (DataError, TransientError) as error:
        hint = f"hint: recognizer-fleet rollout start {rollout_id}, or abort {rollout_id}"
        raise DataError(f"rollout {rollout_id} now exists, but its start failed: {error} ({hint})") from error


def plan_of(args: argparse.Namespace, env: Mapping[str, str]) -> dict[str, Any]:
    """The plan as JSON: of `--plan`, with the other options over it. Raises ConfigError."""
    plan = _read_plan(args.plan, env) if args.plan else {}
    if args.canary is not None:
        plan["groups"] = [{"name": "canary", "percent": args.canary, "error_percent": 10}, {"name": "rest"}]
    if args.approval:
        plan.setdefault("groups", [{"name": "canary", "percent": 10, "error_percent": 10}, {"name": "rest"}])
        plan["groups"][0] = {**plan["groups"][0], "approval": True}
    if args.roll_back:
        plan["roll_back"] = args.roll_back
    if args.start_at:
        plan["start_at"] = args.start_at
    return plan | {name: True for name in ("forced", "confirmation") if getattr(args, name)}


def _read_plan(file: Path, env: Mapping[str, str]) -> dict[str, Any]:
    from agent.config.documents import read_document
    from ota.rollouts.plan import Plan

    return read_document(file, Plan, env=env).model_dump(mode="json", exclude_unset=True)


# --- show -------------------------------------------------------------------------------------------------------------


def _show(remote: Remote, args: argparse.Namespace) -> int:
    path = f"/rollouts/{args.rollout}"
    found = remote.get(path)
    if args.wait is not None:
        found = _wait(remote, path, found, time.monotonic() + args.wait)
    devices = remote.all_of(f"{path}/devices", "devices") if args.devices else None
    _present(args, found if devices is None else found | {"members": devices}, _one_table)
    return 0 if args.wait is None or found["state"] == "finished" else 1


def _wait(remote: Remote, path: str, found: Any, deadline_s: float) -> Any:
    """The rollout once it stands still, or as it is at the deadline; a server that does not answer may be restarting, and is asked
    again. Raises DataError, AccessError, TransientError."""
    from agent.errors import AccessError, TransientError

    told = False
    while found["state"] not in {*ENDED, "paused"} and (left_s := deadline_s - time.monotonic()) > 0:
        time.sleep(min(_POLL_S, left_s))
        try:
            found, told = remote.get(path), False
        except AccessError:
            raise
        except TransientError as error:
            if time.monotonic() >= deadline_s:
                raise
            if not told:
                print(f"{error}; trying again", file=sys.stderr, flush=True)
            told = True
    return found


# --- for people -------------------------------------------------------------------------------------------------------


def _sentence(preview: dict[str, Any]) -> str:
    parts = [f"{group['devices']} in {group['name']}" for group in preview["groups"]]
    told = f"{preview['matched']} devices match, {preview['devices']} would get it ({', '.join(parts)})"
    others = ((preview["already"], "run it already"), (preview["newer"], "run something newer"))
    for number, text in (*others, (preview["lacking"], "report no such slot")):
        told += f"; {number} {text}" if number else ""
    for name, number in preview["busy"].items():
        told += f"; {number} are in rollout {name}, which has not ended"
    return told


def _preview_table(preview: dict[str, Any]) -> list[str]:
    return [_sentence(preview)]


def _list_table(found: list[dict[str, Any]]) -> list[Table | str]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("ID", "Name", "Release", "State", "Devices", "Well", "Failed", "Started", box=box.SIMPLE)
    for rollout in found:
        sums = [sum(group["counts"][at] for group in rollout["groups"]) for at in ("succeeded", "failed")]
        table.add_row(
            str(rollout["id"]), escape(rollout["name"]), _title(rollout), rollout["state"], str(rollout["devices"]),
            str(sums[0]), str(sums[1]), (rollout["started"] or "")[:19],
        )  # fmt: skip
    return [table if found else "no rollouts"]


def _title(rollout: dict[str, Any]) -> str:
    return f"{rollout['release']['name']} {rollout['release']['version']}"


def _one_table(rollout: dict[str, Any]) -> list[Table | str]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    reason = f": {escape(rollout['reason'])}" if rollout["reason"] else ""
    lines: list[Table | str] = [
        f"[bold]{rollout['id']} {escape(rollout['name'])}[/] is [bold]{rollout['state']}[/]{reason}",
        f"{_title(rollout)} for {rollout['release']['slot']}; {escape(rollout['filter']) or 'all devices'}",
    ]
    if rollout["state"] == "ready":
        by_itself = f", or for {rollout['next'][:19]} UTC" if rollout["next"] else ""
        lines.append(f"waits for `recognizer-fleet rollout start {rollout['id']}`{by_itself}")
    if rollout["waits_for_approval"]:
        lines.append(f"group {escape(rollout['waits_for_approval'])} waits for approval")
    table = Table(
        "Group", "State", "Devices", "Waiting", "Open", "Well", "Failed", "Left", "Back", "Needed", box=box.SIMPLE
    )
    for group in rollout["groups"]:
        counts = group["counts"]
        numbers = (
            group["devices"], counts["waiting"], counts["open"] + counts["ending"] + counts["returning"],
            counts["succeeded"], counts["failed"], counts["left"], counts["returned"], group["needed"],
        )  # fmt: skip
        table.add_row(escape(group["name"]), group["state"], *map(str, numbers))
    lines.append(table)
    if members := rollout.get("members"):
        each = Table("Device", "Group", "Stands", "Last words", box=box.SIMPLE)
        for member in members:
            each.add_row(*(escape(member[name]) for name in ("id", "group", "at", "detail")))
        lines.append(each)
    return lines
