"""`recognizer-fleet devices`: the devices of a fleet server."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ota.remote import remote_options

if TYPE_CHECKING:
    from rich.table import Table

    from ota.remote import Remote


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("devices", help="the devices of a fleet server")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    listing = kinds.add_parser("list", help="devices, what they run and when they were last seen")
    listing.add_argument("--filter", default="", metavar="TEXT", help="site==berlin;pose.version=lt=0.7;status==online")
    show = kinds.add_parser("show", help="one device with its latest actions")
    add = kinds.add_parser("add", help="a new device; prints its token, this once")
    add.add_argument("--name", help="for people (default: the id)")
    remove = kinds.add_parser("remove", help="forget a device with its actions and reports")
    assign = kinds.add_parser(
        "assign", help="have one device install one release; in a rollout of it the device counts all the same"
    )
    token = kinds.add_parser("token", help="a new token instead of the old one; prints it, this once")
    for kind in (show, add, remove, assign, token):
        kind.add_argument("device", metavar="ID")
    assign.add_argument("release", metavar="RELEASE", help="its id, `NAME VERSION` or target path")
    assign.add_argument("--forced", action="store_true", help="not only in its maintenance window")
    assign.add_argument("--confirm", action="store_true", help="somebody at the device has to agree")
    for kind in (add, token):
        token_option(kind)
    for kind in kinds.choices.values():
        remote_options(kind)


def token_option(parser: argparse.ArgumentParser) -> None:
    """`--token-out`"""
    parser.add_argument(
        "--token-out", type=Path, metavar="FILE", help="write the token there (mode 0600), print nothing"
    )


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from ota.remote import part, remote_of

    remote = remote_of(args, env)
    if args.what == "list":
        present(args, remote.all_of("/devices", "devices", filter=args.filter), _list_table)
        return 0
    path = f"/devices/{part(args.device)}"
    if args.what == "show":
        present(args, remote.get(path), _one_table)
    elif args.what == "remove":
        remote.ask("DELETE", path)
        present(args, {"id": args.device}, lambda _: [f"{args.device} is forgotten"])
    elif args.what == "assign":
        _assign(remote, args, path)
    else:
        hand_over(args, lambda: _new_token(remote, args, path), args.device)
    return 0


def _assign(remote: Remote, args: argparse.Namespace, path: str) -> None:
    from ota.remote import release_id

    body = {"release": release_id(remote, args.release), "forced": args.forced, "confirm": args.confirm}
    action = remote.ask("POST", f"{path}/actions", body)
    present(args, action, lambda found: [f"{found['device']} is to install {found['title']} (action {found['id']})"])


def hand_over(args: argparse.Namespace, ask: Callable[[], Any], whose: str) -> None:
    """The token that the server says once, as `token_option` asks for it."""
    if args.token_out is None:
        present(args, ask(), lambda one: [one["token"]])
        return
    from ota.server.tokens import secret_file

    if args.token_out.exists():
        raise FileExistsError(17, "it is there already", str(args.token_out))
    with secret_file(args.token_out) as file:  # first: the server says the token this once
        found = ask()
        file.write(found.pop("token") + "\n")
    present(args, found, lambda _: [f"{whose}: its token is in {args.token_out}"])


def _new_token(remote: Remote, args: argparse.Namespace, path: str) -> Any:
    if args.what == "add":
        return remote.ask("POST", "/devices", {"id": args.device, **({"name": args.name} if args.name else {})})
    return remote.ask("POST", f"{path}/token")


def present(args: argparse.Namespace, found: Any, draw: Any, *, markup: bool = False) -> None:
    """As JSON, or as `draw` makes it: tables, and lines, with or without markup in these."""
    from agent.commands.output import print_json, table_console

    if args.json:
        print_json(found)
        return
    console = table_console()
    for one in draw(found):
        console.print(one, markup=markup or not isinstance(one, str))


def _list_table(found: list[dict[str, Any]]) -> list[Table | str]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("Device", "Name", "Status", "Update", "Runs", "Health", "Last seen", box=box.SIMPLE)
    for device in found:
        cells = (
            device["id"], device["name"], device["status"], device["update_status"], _runs(device),
            device["attributes"].get("health", ""), (device["last_seen"] or "never")[:19],
        )  # fmt: skip
        table.add_row(*map(escape, cells))
    return [table if found else "no devices"]


def _runs(device: dict[str, Any]) -> str:
    """What the device says that it runs, else what it was last given."""
    running = {slot: f"{one['name']} {one['version']}" for slot, one in device["installed"].items()}
    for name, value in device["attributes"].items():
        if name.startswith("model."):
            slot = name.removeprefix("model.")
            running["action/" + slot.removeprefix("action-") if slot.startswith("action-") else slot] = value
    return ", ".join(f"{slot} {title}" for slot, title in sorted(running.items()))


def _one_table(device: dict[str, Any]) -> list[Table | str]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    facts = Table(show_header=False, box=box.SIMPLE)
    known = {
        "id": device["id"], "name": device["name"], "status": device["status"], "update": device["update_status"],
        "runs": _runs(device), "last seen": device["last_seen"] or "never", "address": device["address"],
    }  # fmt: skip
    for name, value in (known | device["attributes"]).items():
        facts.add_row(escape(name), escape(value))
    actions = Table("Action", "Release", "State", "Updated", "Last words", box=box.SIMPLE)
    for action in device["actions"]:
        cells = (str(action["id"]), action["title"], action["state"], action["updated"][:19], action["detail"])
        actions.add_row(*map(escape, cells))
    return [facts, actions if device["actions"] else "nothing was ever sent to it"]
