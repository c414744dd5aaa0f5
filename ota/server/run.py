"""The server's life: database, first administrator, listening socket, stop."""

from __future__ import annotations

import asyncio
import errno
import gc
import resource
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web
from sqlalchemy import Connection

from agent.errors import ConfigError, ConfigProblem, FatalError, StorageError
from agent.private_files import credentials_of, read_private
from agent.sdnotify import Notifier
from ota.release.files import locked
from ota.server.app import create_app
from ota.server.catalogue import pinned_root
from ota.server.management_users import GATEWAY
from ota.server.services import Services, wall_ms
from ota.server.settings import ServerSettings
from ota.server.tls import ServerTls
from ota.server.tokens import MIN_LENGTH, hash_of, new_token, write_secret
from ota.store import action_ids, audit, settings, users
from ota.store.engines import open_backend
from ota.store.rows import Entry, Role
from ota.store.store import Store, open_store

_log = structlog.get_logger(__name__)
ADMIN_FILE = "admin-token"
_STOP_S = 5.0
_COLLECT_EVERY_S = 900.0
_GC_THRESHOLDS = (700, 10, 1_000_000)
_IDLE_S = 75.0
"""A connection without a request is closed; longer than the usual polling interval, so that devices keep theirs."""
_HINTS = {
    errno.EADDRINUSE: "another program uses it; choose another port",
    errno.EACCES: "ports below 1024 need a privilege; choose a higher one",
}


@dataclass(frozen=True, slots=True)
class Running:
    services: Services
    port: int


async def serve(given: ServerSettings, env: Mapping[str, str]) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigError, StorageError, TransientError (another server has the folder), FatalError when a part ends that should not."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = Notifier.from_environment(env)
    try:
        async with running(given, env) as server:
            server.services.tasks += (asyncio.create_task(collect_garbage(), name="fleet-garbage"),)
            notifier.ready(f"port {server.port}")
            _log.info("fleet_listening", host=given.host, port=server.port, tls=given.tls is not None)
            if given.unprotected:
                _log.warning(
                    "fleet_without_tls", host=given.host, hint="tokens go unencrypted: tls, or a proxy in proxy.trusted"
                )
            await _watch(server.services, notifier, stop)
            notifier.stopping()
    finally:
        notifier.close()


async def collect_garbage() -> None:
    """Full collections by the clock. By its own rule Python makes one whenever a quarter has been added: with the connections of ten
    thousand devices that is a third of a second every few seconds. Young garbage is still collected as it comes."""
    gc.freeze()  # what the start made stays
    gc.set_threshold(*_GC_THRESHOLDS)
    while True:
        await asyncio.sleep(_COLLECT_EVERY_S)
        gc.collect()


async def _watch(services: Services, notifier: Notifier, stop: asyncio.Event) -> None:
    """Feeds systemd's watchdog while the loop turns and the database answers."""
    stopping = asyncio.create_task(stop.wait(), name="fleet-stop")
    beside = set(services.tasks)
    try:
        while not stopping.done():
            done, _ = await asyncio.wait(
                {stopping, *beside}, timeout=notifier.feed_interval_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in beside & done:
                if task.cancelled() or (error := task.exception()) is not None:
                    raise FatalError(f"{task.get_name()} ended") from (None if task.cancelled() else error)
            beside -= done  # one that had nothing to do
            try:
                await services.store.read(settings.get, GATEWAY)
            except StorageError as error:  # it may come back; should it not, the watchdog ends this
                _log.error("fleet_database_does_not_answer", error=str(error))
            else:
                notifier.watchdog()
    finally:
        stopping.cancel()


def check(given: ServerSettings, env: Mapping[str, str]) -> None:
    """Open what the settings name, as a start does, but for the database, and change nothing. Raises ConfigError."""
    open_backend(given.database_url)
    if given.tls is not None:
        ServerTls(given.tls, credentials_of(env))
    if given.gateway_token_file is not None:
        _gateway_token(given.gateway_token_file, env)
    if given.repository is not None:
        pinned_root(given.data, given.repository, given.root, pin=False)


@asynccontextmanager
async def running(given: ServerSettings, env: Mapping[str, str]) -> AsyncGenerator[Running, None]:
    """The server at work, in this loop."""
    _raise_file_limit()
    tls = ServerTls(given.tls, credentials_of(env)) if given.tls is not None else None
    try:
        given.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError([ConfigProblem(f"{given.data}: {error.strerror}", path="data")]) from error
    async with AsyncExitStack() as stack:
        # SQLite may corrupt its file when two processes write the log back at once.
        stack.enter_context(
            locked(given.data, "another fleet server is at work in it (hint: each needs a folder of its own)")
        )
        store = await stack.enter_async_context(open_store(given.database_url))
        await store.write(action_ids.skip_those_given, wall_ms())
        await first_admin(store, given.data)
        root = pinned_root(given.data, given.repository, given.root) if given.repository is not None else None
        services = Services(given, store, gateway_hash=await _gateway_hash(store, given, env), root=root)
        runner = web.AppRunner(
            create_app(services), access_log=None, keepalive_timeout=_IDLE_S, shutdown_timeout=_STOP_S
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        if tls is not None:
            services.tasks += (asyncio.create_task(tls.keep_fresh(), name="fleet-certificates"),)
            stack.callback(services.tasks[-1].cancel)
        try:
            context = tls.context if tls is not None else None
            await web.TCPSite(runner, given.host, given.port, ssl_context=context, backlog=1024).start()
        except OSError as error:
            hint = _HINTS.get(error.errno or 0, "host must be an address of this machine")
            where = f"{given.host}:{given.port}"
            raise ConfigError(
                [ConfigProblem(f"cannot listen on {where}: {error.strerror}", path="port", hint=hint)]
            ) from error
        yield Running(services, int(runner.addresses[0][1]))


async def first_admin(store: Store, data: Path) -> None:
    """Without users there is one administrator, whose token lies in a file that only the server's user can read."""
    if await store.read(users.all_of):
        return
    path = data / ADMIN_FILE
    try:
        token = _admin_token(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            [ConfigProblem(f"{path}: {error}", path="data", hint="remove the file, or mend its rights")]
        ) from error

    def work(connection: Connection) -> None:
        now_ms = wall_ms()
        users.create(connection, "admin", Role.ADMIN, hash_of(token), by="first start", now_ms=now_ms)
        audit.add(
            connection, Entry(now_ms, "first start", Role.ADMIN, "", "user.create", "admin", {"role": Role.ADMIN})
        )

    await store.write(work)
    _log.warning("first_administrator", user="admin", token_file=str(path))


def _admin_token(path: Path) -> str:
    """That of the file, should the first start have been broken off, or the database be a new one; else one is made."""
    if path.exists():
        if token := read_private(path, None):
            return token
        path.unlink()  # broken off before the token was in it
    token = new_token()
    write_secret(path, token)
    return token


async def _gateway_hash(store: Store, given: ServerSettings, env: Mapping[str, str]) -> str | None:
    """Of the configured file, else what was made by the management interface."""
    if given.gateway_token_file is None:
        found = await store.read(settings.get, GATEWAY)
        return str(found) if found is not None else None
    return hash_of(_gateway_token(given.gateway_token_file, env))


def _gateway_token(path: Path, env: Mapping[str, str]) -> str:
    """Raises ConfigError."""
    make = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
    try:
        token = read_private(path, credentials_of(env))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        hint = make if isinstance(error, FileNotFoundError) else f"chmod 600 {path}; owned by the server's user"
        raise ConfigError([ConfigProblem(f"{path}: {why}", path="gateway_token_file", hint=hint)]) from error
    if len(token) < MIN_LENGTH:
        raise ConfigError(
            [ConfigProblem(f"{path}: shorter than {MIN_LENGTH} characters", path="gateway_token_file", hint=make)]
        )
    return token


def _raise_file_limit() -> None:
    """Ten thousand devices are ten thousand sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
