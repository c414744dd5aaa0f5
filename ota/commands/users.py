"""`recognizer-fleet users`: the people who may look at a fleet server, work with it, or administer it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ota.commands.devices import hand_over, present, token_option
from ota.remote import remote_options

if TYPE_CHECKING:
    from rich.table import Table

ROLES = ("viewer", "operator", "admin")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("users", help="who may do what on a fleet server; for administrators")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    kinds.add_parser("list", help="users and their roles")
    add = kinds.add_parser("add", help="a new user; prints the token, this once")
    role = kinds.add_parser("role", help="another role")
    token = kinds.add_parser("token", help="a new token instead of the old one; prints it, this once")
    disable = kinds.add_parser("disable", help="take every right; a user is never deleted, the audit log names it")
    enable = kinds.add_parser("enable", help="give the rights of the role again")
    for kind in (add, role, token, disable, enable):
        kind.add_argument("user", metavar="NAME")
    add.add_argument(
        "--role", choices=ROLES, default="viewer", help="each may do what those before it may (default viewer)"
    )
    role.add_argument("role", choices=ROLES)
    for kind in (add, token):
        token_option(kind)
    for kind in kinds.choices.values():
        remote_options(kind)


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from ota.remote import part, remote_of

    remote = remote_of(args, env)
    path = f"/users/{part(args.user)}" if args.what != "list" else "/users"
    if args.what == "list":
        present(args, remote.all_of(path, "users"), _list_table)
    elif args.what == "add":
        hand_over(args, lambda: remote.ask("POST", "/users", {"name": args.user, "role": args.role}), args.user)
    elif args.what == "token":
        hand_over(args, lambda: remote.ask("POST", f"{path}/token"), args.user)
    else:
        change = {"role": args.role} if args.what == "role" else {"active": args.what == "enable"}
        present(args, remote.ask("PATCH", path, change), lambda one: [f"{one['name']} is {_standing(one)}"])
    return 0


def _standing(user: dict[str, Any]) -> str:
    return str(user["role"]) if user["active"] else f"{user['role']}, disabled"


def _list_table(found: list[dict[str, Any]]) -> list[Table | str]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("User", "Role", "Since", "By", box=box.SIMPLE)
    for user in found:
        table.add_row(*map(escape, (user["name"], _standing(user), user["created"][:19], user["created_by"])))
    return [table]
