"""A mounted `powerloss_disk.Disk`, in a process of its own, and the handle that tests hold.

Usage of the process: powerloss_fs.py FOLDER MOUNT MODE [--ignore-sync]. FOLDER holds what is safe at the start and gets what
survives. One command per line of standard input. `lose FATE SEED MOMENT COUNT`: the power goes now, or instead of the COUNT-th
write or sync from now on; everything fails after that. `refuse NUMBER`: changes fail with this errno from now on, reads do not (a
disk that was remounted read-only, or is full); 0 = it works again.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from fakes.powerloss_disk import Disk, Fate, File, Mode

try:
    import mfusepy
except (ImportError, OSError, AttributeError) as _error:  # the last two: no libfuse on this machine
    _Base: Any = object
    REASON = f"needs mfusepy and libfuse 3: {_error}"
else:
    _Base = mfusepy.Operations
    REASON = ""

_SYS_ADMIN = 1 << 21


def _why_not() -> str:
    """Why this process may not mount; empty when it may."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    rights = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    if not rights & _SYS_ADMIN:
        return "needs the right to mount"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"needs /dev/fuse: {error.strerror}"
    return ""


REASON = REASON or _why_not()
"""Why there can be no such disk here; empty when there can."""

Moment = Literal["now", "write", "sync"]

_START_S = 10.0
_PATIENCE_S = 10.0
_MOMENTS: dict[str, Moment] = {"write": "write", "truncate": "write", "rename": "write", "unlink": "write",
                               "create": "write", "mkdir": "write", "rmdir": "write", "symlink": "write",
                               "fsync": "sync", "fsyncdir": "sync"}  # fmt: skip
_READS = ("getattr", "readdir", "readlink", "opendir", "open", "read")


class PowerLossMount:
    """The disk of `folder` mounted at `mount`; a context manager."""

    program: ClassVar[Path] = Path(__file__)

    def __init__(self, folder: Path, mount: Path, mode: Mode = "journalled", *, ignore_sync: bool = False) -> None:
        self._mount = mount
        folder.mkdir(exist_ok=True)
        mount.mkdir(exist_ok=True)
        arguments = [str(folder), str(mount), mode, *(["--ignore-sync"] if ignore_sync else [])]
        self._process = subprocess.Popen(
            [sys.executable, str(self.program), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )  # fmt: skip

    def __enter__(self) -> Self:
        deadline_s = time.monotonic() + _START_S
        while not os.path.ismount(self._mount):
            assert self._process.poll() is None, "the file system ended"
            assert time.monotonic() < deadline_s, "not mounted"
            time.sleep(0.01)
        return self

    def lose_power(self, fate: Fate, seed: int, moment: Moment = "now", count: int = 1) -> dict[str, Any]:
        """Everything unsynced meets its fate; what survives lies in the folder when this returns. How much was at stake.

        moment: now, or instead of the `count`-th write or sync; now all the same when none comes within ten seconds.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"lose {fate} {seed} {moment} {count}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def refuse(self, number: int) -> None:
        """Have every change fail with this errno (EROFS, ENOSPC, EIO); 0 = it works again."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"refuse {number}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "--lazy", str(self._mount)], check=False, stderr=subprocess.DEVNULL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Power:
    """The moment at which it goes. Used under one lock."""

    def __init__(self, disk: Disk) -> None:
        self.off = threading.Event()
        self.refusal = 0
        self.left: Any = None
        self.at_stake: dict[str, int] = {}
        self._disk = disk
        self._moment: Moment = "now"
        self._count = 0
        self._fate: Fate = "drop"
        self._seed = 0

    def arm(self, fate: Fate, seed: int, moment: Moment, count: int) -> None:
        """Decide when it goes."""
        self._fate, self._seed, self._moment, self._count = fate, seed, moment, count
        if moment == "now":
            self.cut()

    def cut(self) -> None:
        """It goes."""
        if not self.off.is_set():
            self.at_stake = {"unsynced": self._disk.unsynced(), "syncs": self._disk.syncs}
            self.left = self._disk.survivors(self._fate, random.Random(self._seed))
            self.off.set()

    def check(self, call: str) -> None:
        """Before each call. Raises OSError."""
        if self._count and _MOMENTS.get(call) == self._moment:
            self._count -= 1
            if not self._count:
                self.cut()
        if self.off.is_set():
            raise OSError(errno.EIO, "no power")
        if self.refusal and call in _MOMENTS:
            raise OSError(self.refusal, "refused")


class Calls(_Base):  # type: ignore[misc]
    """FUSE's calls as calls of the disk."""

    use_ns = True

    def __init__(self, disk: Disk, power: Power, lock: threading.Lock) -> None:
        self._disk, self._power, self._lock = disk, power, lock
        self._open: dict[int, File] = {}
        self._next = 1

    def __getattribute__(self, name: str) -> Any:
        """One lock around all, and nothing works without power."""
        method = super().__getattribute__(name)
        if name not in _MOMENTS and name not in _READS:
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                self._power.check(name)
                return method(*arguments, **named)

        return call

    def _handle(self, file: File) -> int:
        self._open[self._next] = file
        self._next += 1
        return self._next - 1

    def _file(self, path: str | None, fh: int | None) -> File:
        return self._open[fh] if fh else self._disk.file((path or "")[1:])

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        owner = {"st_uid": os.geteuid(), "st_gid": os.getegid()}
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **owner}
        file = self._file(path, fh)
        return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": len(file.cache), **owner}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._disk.names]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return self._handle(self._disk.create(path[1:]))

    def open(self, path: str, flags: int) -> int:
        if self._power.refusal == errno.EROFS and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, path)
        return self._handle(self._disk.file(path[1:]))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._open[fh].cache[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._disk.write(self._open[fh], offset, data)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._disk.truncate(self._file(path, fh), length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._disk.sync(self._open[fh])
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._disk.sync_folder()
        return 0

    def release(self, path: str, fh: int) -> int:
        self._open.pop(fh, None)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._disk.rename(old[1:], new[1:])
        return 0

    def unlink(self, path: str) -> int:
        self._disk.unlink(path[1:])
        return 0

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bfree": 1 << 19, "f_bavail": 1 << 19,
                "f_files": 1 << 16, "f_ffree": 1 << 15, "f_favail": 1 << 15, "f_namemax": 255}  # fmt: skip


def _load(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _save(folder: Path, left: dict[str, bytes]) -> None:
    for name, data in left.items():
        (folder / name).write_bytes(data)


def _obey(power: Power, lock: threading.Lock, folder: Path, save: Callable[[Path, Any], None]) -> None:
    """Commands until standard input ends."""
    for line in sys.stdin:
        command, *words = line.split()
        if command == "refuse":
            with lock:
                power.refusal = int(words[0])
            print("{}", flush=True)
            continue
        fate, seed, moment, count = words
        with lock:
            power.arm(fate, int(seed), moment, int(count))  # type: ignore[arg-type]
        power.off.wait(_PATIENCE_S)
        with lock:
            power.cut()
        shutil.rmtree(folder)
        folder.mkdir()
        save(folder, power.left)
        print(json.dumps(power.at_stake), flush=True)


def serve(
    disk: type[Disk] = Disk,
    calls: type[Calls] = Calls,
    load: Callable[[Path], Any] = _load,
    save: Callable[[Path, Any], None] = _save,
) -> None:
    """Until unmounted. load, save: what lies in a real folder for `disk`, and what it leaves."""
    folder, mount, mode, *flags = sys.argv[1:]
    contents = disk(mode, load(Path(folder)), ignore_sync="--ignore-sync" in flags)  # type: ignore[arg-type]
    power, lock = Power(contents), threading.Lock()
    threading.Thread(target=_obey, args=(power, lock, Path(folder), save), daemon=True).start()
    mfusepy.FUSE(calls(contents, power, lock), mount, foreground=True, nothreads=True, hard_remove=True)


if __name__ == "__main__":
    serve()
