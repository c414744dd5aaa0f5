"""A real PostgreSQL for the tests: a cluster in a folder of its own, a Unix socket, no network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg

NEEDED = "needs PostgreSQL: initdb and postgres (Debian: postgresql)"
_START_S = 30.0


def _find(name: str) -> str | None:
    """In the PATH, or where Debian hides it."""
    found = shutil.which(name)
    return found or next((str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)


class Postgres:
    """Runs until closed. It refuses to run as root: then `nobody` runs it."""

    def __init__(self) -> None:
        initdb, postgres = _find("initdb"), _find("postgres")
        assert initdb is not None
        assert postgres is not None
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        self._program = postgres
        self._run(
            initdb, "-D", str(self.folder / "data"), "-U", "fleet", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self._program, "-D", str(self.folder / "data"), "-k", str(self.folder), "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=log, stderr=log, user=self._user, cwd=self.folder,
            )  # fmt: skip
        end = time.monotonic() + _START_S
        while not self._is_up():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, "PostgreSQL does not start"
            time.sleep(0.05)

    def _is_up(self) -> bool:
        with ThreadPoolExecutor(1) as thread:  # there may be a loop in this one
            return thread.submit(lambda: asyncio.run(self._answers())).result()

    async def _answers(self) -> bool:
        """It listens some time before it does."""
        try:
            connection = await asyncpg.connect(self.url("postgres"))
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True

    def stop(self) -> None:
        """At once, as at a power loss of the server's machine."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(20)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self) -> str:
        """URL of a new, empty database. Blocks."""
        name = f"t{uuid.uuid4().hex}"

        async def work() -> None:
            connection = await asyncpg.connect(self.url("postgres"))
            try:
                await connection.execute(f"CREATE DATABASE {name}")
            finally:
                await connection.close()

        asyncio.run(work())
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://fleet@/{database}?host={self.folder}"

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=self.folder, timeout=60)


def available() -> bool:
    return _find("initdb") is not None and _find("postgres") is not None


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    server = Postgres()
    try:
        yield server
    finally:
        server.close()
