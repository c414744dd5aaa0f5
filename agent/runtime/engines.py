"""TensorRT engines: a cache on disk and builds in the background.

onnxruntime names cached engines after the graph, and has served stale ones after a change of shapes or versions
(microsoft/onnxruntime#22382, #32254). So every combination of model, GPU, versions, precision and shapes has a folder of
its own here, which appears by one atomic rename when it is complete. Nothing in this module knows onnxruntime: what builds
and what activates an engine are callables.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from agent.durable import give
from agent.errors import ModelError, RecognizerError

_log = structlog.get_logger(__name__)
_KEY = "key.json"
_BUILDING = ".building-"
_LOCK_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that makes an engine unfit when it changes."""

    model_sha256: str
    gpu: str
    ort_version: str
    tensorrt_version: str
    driver: str
    precision: str
    shapes: str

    @property
    def digest(self) -> str:
        """Folder name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


class EngineState(StrEnum):
    """Life of an upgrade, in order; the last three are final."""

    WAITING = "waiting"  # for another process or service that builds the same engine
    BUILDING = "building"
    LOADING = "loading"
    SERVING = "serving"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class EngineProgress:
    """Where an upgrade stands. elapsed_s: since it was started; detail: a reason or the builder's last word."""

    state: EngineState
    elapsed_s: float
    detail: str = ""


Report = Callable[[str], None]
Build = Callable[[Path, threading.Event, Report], None]
"""`build(folder, cancelled, report)` fills `folder`; returns early when cancelled; raises ModelError."""


class RejectedEngineError(ModelError):
    """This very engine was built before and found unfit; building it again would give the same."""


class CancelledBuildError(ModelError):
    """The build was told to stop."""


class EngineCache:
    """Finished engines, one folder each. Several processes may share it."""

    def __init__(self, folder: Path, *, keep: int = 8) -> None:
        self._folder = folder
        self._keep = keep

    def find(self, key: EngineKey) -> Path | None:
        """The finished engine for `key`, if its files still have the sizes they had. Raises RejectedEngineError."""
        entry = self._folder / key.digest
        try:
            content = json.loads((entry / _KEY).read_bytes())
            if content["key"] != asdict(key):
                return None
            if reason := content["rejected"]:
                raise RejectedEngineError(f"{reason} (hint: delete {entry} to try again)")
            whole = all((entry / name).stat().st_size == size for name, size in content["files"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if not whole:
            return None
        with suppress(OSError):  # a read-only cache still serves
            os.utime(entry)
        return entry

    def build(self, key: EngineKey, build: Build, cancelled: threading.Event, report: Report) -> Path:
        """Build `key` unless someone else has meanwhile; its folder. Raises ModelError, CancelledBuildError."""
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True)
                give(self._folder, self._folder.parent)
            with self._lock(key.digest, cancelled):
                if found := self.find(key):
                    return found
                report("building")
                return self._build_locked(key, build, cancelled, report)
        except OSError as error:
            raise ModelError(f"engine cache {self._folder}: {error}") from error

    def _build_locked(self, key: EngineKey, build: Build, cancelled: threading.Event, report: Report) -> Path:
        for leftover in self._folder.glob(f"{_BUILDING}{key.digest}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{key.digest}-", dir=self._folder))
        try:
            build(temporary, cancelled, report)
            if cancelled.is_set():
                raise CancelledBuildError("cancelled")
            files = {path.name: path.stat().st_size for path in temporary.iterdir() if path.is_file()}
            if not files:
                raise ModelError("the build left no engine")
            return self._publish(temporary, key, files)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path, key: EngineKey, files: dict[str, int], rejected: str = "") -> Path:
        content = {"key": asdict(key), "files": files, "rejected": rejected}
        (temporary / _KEY).write_text(json.dumps(content, indent=2) + "\n")
        for path in (*temporary.iterdir(), temporary):
            path.chmod(0o755 if path.is_dir() else 0o644)
            give(path, self._folder)
        entry = self._folder / key.digest
        shutil.rmtree(entry, ignore_errors=True)
        temporary.replace(entry)
        self._prune()
        return entry

    def discard(self, key: EngineKey) -> None:
        """Forget an engine that does not load any more."""
        shutil.rmtree(self._folder / key.digest, ignore_errors=True)

    def reject(self, key: EngineKey, reason: str) -> None:
        """Delete an engine and remember why, so that the next start does not spend minutes on it again."""
        with suppress(OSError):
            temporary = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{key.digest}-", dir=self._folder))
            self._publish(temporary, key, {}, reason)

    def _prune(self) -> None:
        """Keep the engines used last: an upgrade of driver or model leaves hundreds of megabytes behind."""
        with suppress(OSError):  # another process may prune too
            entries = [entry for entry in self._folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            entries.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
            for entry in entries[self._keep :]:
                shutil.rmtree(entry, ignore_errors=True)

    @contextmanager
    def _lock(self, digest: str, cancelled: threading.Event) -> Iterator[None]:
        lock = self._folder / f".{digest}.lock"
        with lock.open("w") as handle:
            give(lock, self._folder)
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if cancelled.wait(_LOCK_POLL_S):
                        raise CancelledBuildError("cancelled") from None
            yield


class EngineUpgrade:
    """One engine from cache or build to service, on a thread of its own.

    activate: opens the engine in the given folder, checks it, moves the traffic; raises a RecognizerError to refuse it.
    on_progress: called on that thread at each change and each word of the builder.
    """

    def __init__(
        self,
        cache: EngineCache,
        key: EngineKey,
        build: Build,
        activate: Callable[[Path], None],
        on_progress: Callable[[EngineProgress], None] | None = None,
    ) -> None:
        self._cache = cache
        self._key = key
        self._build = build
        self._activate = activate
        self._on_progress = on_progress
        self._cancelled = threading.Event()
        self._started_s = time.monotonic()
        self._last = (EngineState.WAITING, "")
        self._thread = threading.Thread(target=self._run, name=f"engine-{key.digest[:8]}", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    @property
    def progress(self) -> EngineProgress:
        """Where it stands now."""
        state, detail = self._last
        return EngineProgress(state, time.monotonic() - self._started_s, detail)

    def wait(self, timeout_s: float | None = None) -> EngineProgress:
        """Block until it has ended, or `timeout_s` is over."""
        self._thread.join(timeout_s)
        return self.progress

    def cancel(self, timeout_s: float = 10.0) -> None:
        """Stop it and wait for the builder to be gone. An engine in service stays so."""
        self._cancelled.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._upgrade()
        except CancelledBuildError:
            self._say(EngineState.CANCELLED)
        except RecognizerError as error:
            self._say(EngineState.FAILED, str(error))
        else:
            self._say(EngineState.SERVING)

    def _upgrade(self) -> None:
        if found := self._cache.find(self._key):
            try:
                self._load(found)
            except ModelError as error:
                _log.warning("cached engine refused, building it anew", reason=str(error))
                self._cache.discard(self._key)
            else:
                return
        built = self._cache.build(self._key, self._build, self._cancelled, self._say_building)
        try:
            self._load(built)
        except ModelError as error:
            self._cache.reject(self._key, str(error))
            raise

    def _load(self, folder: Path) -> None:
        if self._cancelled.is_set():
            raise CancelledBuildError("cancelled")
        self._say(EngineState.LOADING)
        self._activate(folder)

    def _say_building(self, detail: str) -> None:
        self._say(EngineState.BUILDING, detail)

    def _say(self, state: EngineState, detail: str = "") -> None:
        self._last = (state, detail)
        progress = self.progress
        log = _log.error if state is EngineState.FAILED else _log.info
        log("engine", state=state.value, elapsed_s=round(progress.elapsed_s, 1), detail=detail)
        if self._on_progress:
            self._on_progress(progress)
