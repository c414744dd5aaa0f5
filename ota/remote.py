"""The management interface of a fleet server, for the command line: one request after the other, with a token from a file."""

from __future__ import annotations

import argparse
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from agent.errors import AccessError, BusyError, ConfigError, ConfigProblem, DataError, TransientError
from agent.hosts import is_loopback
from agent.private_files import credentials_of, read_private

SERVER_VARIABLE, TOKEN_VARIABLE = "RECOGNIZER_FLEET_SERVER", "RECOGNIZER_FLEET_TOKEN_FILE"
TIMEOUT_S = 30.0
_MAX_ANSWER = 64 << 20
_PAGE = 500


def remote_options(parser: argparse.ArgumentParser) -> None:
    """`--server`, `--token-file`, `--ca`, `--allow-http`, `--json`"""
    parser.add_argument("--server", metavar="URL", help=f"of the fleet server (default: ${SERVER_VARIABLE})")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"mode 0600, holds your token (default: ${TOKEN_VARIABLE})"
    )
    parser.add_argument("--ca", type=Path, metavar="FILE", help="PEM certificates to trust instead of the system's")
    parser.add_argument("--allow-http", action="store_true", help="send the token unencrypted, also to another machine")
    parser.add_argument("--json", action="store_true", help="the server's answer as JSON")


def remote_of(args: argparse.Namespace, env: Mapping[str, str]) -> Remote:
    """What `remote_options` parsed. Raises ConfigError."""
    url = (args.server or env.get(SERVER_VARIABLE, "")).rstrip("/")
    if not url:
        raise _problem("which server?", "--server", f"--server URL, or {SERVER_VARIABLE} in the environment")
    parts = _parts_of(url)
    if parts.scheme == "http" and not args.allow_http and not is_loopback(parts.hostname or ""):
        raise _problem("the token would go unencrypted over the network", "--server", "https://, or --allow-http")
    file = args.token_file or (Path(env[TOKEN_VARIABLE]) if env.get(TOKEN_VARIABLE) else None)
    if file is None:
        raise _problem("no token", "--token-file", f"--token-file FILE, or {TOKEN_VARIABLE} in the environment")
    return Remote(url, _token(file, env), _context(args.ca))


def _parts_of(url: str) -> SplitResult:
    """Raises ConfigError for what no request can be sent to."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        bare = not (parts.query or parts.fragment or "@" in parts.netloc)
        writable = parts.path.isascii() and url.isprintable()
        if parts.scheme in {"http", "https"} and host and parts.port != 0 and bare and writable:
            return parts
    except ValueError:  # brackets, the port, a part of the name that is empty or too long
        pass
    raise _problem(f"{url} is no address of a server", "--server", "http://HOST:PORT or https://HOST:PORT")


def _token(file: Path, env: Mapping[str, str]) -> str:
    try:
        token = read_private(file, credentials_of(env))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        hint = (
            f"chmod 600 {file}" if isinstance(error, PermissionError) else "the file holds the token and nothing else"
        )
        raise _problem(f"{file}: {why}", "--token-file", hint) from None
    if not token or not token.isprintable() or " " in token:
        raise _problem(f"{file}: holds no token", "--token-file", "the file holds the token and nothing else")
    return token


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise _problem(f"{ca}: {error.strerror or error}", "--ca", "a file with PEM certificates") from error


def _problem(text: str, option: str, hint: str) -> ConfigError:
    return ConfigError([ConfigProblem(text, path=option, hint=hint)])


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token to wherever it says."""

    def redirect_request(  # noqa: PLR0917  as the base class has it
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Remote:
    """A signed-in server. Methods raise DataError (it says no), AccessError, BusyError, TransientError."""

    url: str
    token: str
    context: ssl.SSLContext

    def get(self, path: str, **query: str | int | None) -> Any:
        given = {key: value for key, value in query.items() if value not in (None, "")}
        return self.ask("GET", path + (f"?{urlencode(given)}" if given else ""))

    def all_of(self, path: str, name: str, **query: str | int | None) -> list[Any]:
        """Every item of a list, page by page."""
        items: list[Any] = []
        offset: int | None = 0
        while offset is not None:
            page = self.get(path, limit=_PAGE, offset=offset or None, **query)
            items += page[name]
            offset = page["next"]
        return items

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """JSON of the answer; None where there is none."""
        request = urllib.request.Request(  # noqa: S310  http or https: checked above
            f"{self.url}/api/v1{path}", method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )  # fmt: skip
        handlers = (_NoRedirect(), urllib.request.HTTPSHandler(context=self.context), urllib.request.ProxyHandler({}))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as answer:
                content = answer.read(_MAX_ANSWER)
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, HTTPException) as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise TransientError(f"{self.url} does not answer: {why}") from error
        try:
            return json.loads(content) if content else None
        except (ValueError, RecursionError) as error:
            raise TransientError(f"{self.url} is no fleet server: its answer is no JSON") from error


def _refusal(error: urllib.error.HTTPError) -> Exception:
    with error:
        content = error.read(1 << 16)
    try:
        told = str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        told = f"HTTP {error.code} {error.reason}"
    wait = error.headers.get("Retry-After", "")
    if error.code in {429, 503} and wait.isdecimal():
        return BusyError(f"{told}; try again in {wait} s", float(wait))
    if error.code in {401, 403}:
        return AccessError(told)
    return TransientError(told) if error.code >= 500 or error.code < 400 else DataError(told)


def part(text: str) -> str:
    """One part of a path."""
    return quote(text, safe="")


def release_id(remote: Remote, text: str) -> int:
    """Of `7`, `pose-nano 0.7.0`, `pose-nano-0.7.0` or a target path. Raises DataError."""
    if text.isascii() and text.isdecimal():
        return int(text)
    known = remote.all_of("/releases", "releases")
    found = [
        one for one in known
        if text in {f"{one['name']} {one['version']}", f"{one['name']}-{one['version']}", one["target"]}
    ]  # fmt: skip
    if len(found) == 1:
        return int(found[0]["id"])
    if found:
        raise DataError(
            f"{text} is in several slots: give its target path ({', '.join(one['target'] for one in found)})"
        )
    names = ", ".join(sorted({f"{one['name']} {one['version']}" for one in known})[-10:]) or "none"
    raise DataError(f"the server knows no release {text} (it knows {names})")
