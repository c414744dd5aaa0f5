"""`recognizer-fleet serve`: the fleet server."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.cli import natural_number


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve", help="the fleet server: devices ask it what to install",
        description="The fleet server. The first start makes an administrator, whose token lies in DIR/admin-token.",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings as YAML; options given here are laid over it"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of what the server remembers (default: fleet)")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=natural_number, help="to listen on (default 8090; 0: any)")
    parser.add_argument("--database", metavar="URL", help="postgresql://USER@HOST/NAME (default: SQLite in DIR)")
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", help="published TUF repository; served below /repository/"
    )
    parser.add_argument(
        "--root", type=Path, metavar="FILE", help="its trusted root.json (default: that of the first start)"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM certificate of this server")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its PEM key")
    parser.add_argument("--client-ca", type=Path, metavar="FILE", help="who signs the certificates of devices")
    parser.add_argument(
        "--check", action="store_true", help="only look at the settings and what they name; 78 when they are wrong"
    )
    parser.add_argument("--polling", metavar="HH:MM:SS", help="how often devices ask (default 00:00:30)")


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Until SIGTERM or SIGINT; 1 when a part of it fails, so that systemd starts it again."""
    import os

    from agent.commands.loop import run_loop
    from agent.config.schema import LogConfig
    from agent.observe.logging import configure_logging
    from ota.server.settings import load_settings

    given = load_settings(args.config, options_of(args), env=env)
    from ota.server.run import check, serve  # heavy: what is wrong with the settings is said before

    if args.check:
        check(given, env)
        return 0
    configure_logging(LogConfig.model_validate({"level": given.log_level}))
    os.umask(0o077)  # tokens and what they open are nobody else's
    return run_loop(lambda: serve(given, env))


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was given on the command line, in the shape of the file."""
    names = ("data", "host", "port", "database", "repository", "root", "polling")
    found: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    tls = {"cert": args.tls_cert, "key": args.tls_key, "client_ca": args.client_ca}
    if given := {name: value for name, value in tls.items() if value is not None}:
        found["tls"] = given
    if "data" not in found and args.config is None:
        found["data"] = Path("fleet")
    return found
