"""What the sources share: a close that may come from another thread, and the two-step read."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from agent.errors import SourceError
from agent.masking import MASK, mask_text
from agent.ports import StreamInfo, VideoSource
from agent.types import ImageArray

NS_PER_S = 1_000_000_000

_CREDENTIALS = re.compile(r"(?<=://)[^/?#]*@")
_UNESCAPED = re.compile(r"(?<=://)[^/?#:@]+:.*@.*", re.DOTALL)
"""A colon before and an @ after the first / ? #: most likely a password with one of these in it, as people type it."""
_QUERY = re.compile(r"\?.*", re.DOTALL)


class SourceDeniedError(SourceError):
    """The camera refuses our credentials: asking again quickly only gets the account locked."""


@runtime_checkable
class TwoStepSource(Protocol):
    """A VideoSource that can step over a picture without paying for its conversion."""

    def grab(self) -> int | None:
        """Advance by one picture: its presentation time in ns since open, or None at the end. Raises SourceError."""
        ...

    def retrieve(self) -> ImageArray:
        """The picture `grab` stopped at, (H, W, 3) uint8 BGR. Raises SourceError."""
        ...


class OneStepAdapter:
    """A TwoStepSource over a source that only knows `read`: stepping over a picture saves nothing."""

    def __init__(self, source: VideoSource) -> None:
        self._source = source
        self._image: ImageArray | None = None

    def grab(self) -> int | None:
        """See TwoStepSource."""
        picture = self._source.read()
        if picture is None:
            return None
        if not isinstance(picture, tuple) or len(picture) != 2:
            raise SourceError(f"read() gave a {type(picture).__name__}, expected an image and its time, or None")
        self._image, pts_ns = picture
        return pts_ns

    def retrieve(self) -> ImageArray:
        """See TwoStepSource."""
        if self._image is None:
            raise SourceError("nothing was read")
        return self._image


def in_two_steps(source: VideoSource) -> TwoStepSource:
    """`source` itself where it can step over pictures, else an adapter."""
    return source if isinstance(source, TwoStepSource) else OneStepAdapter(source)


@runtime_checkable
class ReportingSource(Protocol):
    """A VideoSource that goes on past faults and says which."""

    @property
    def problem(self) -> str:
        """What was lost so far (files skipped, a file cut off), empty when nothing was."""
        ...


def redact(url: str) -> str:
    """`url` without credentials and query, fit for logs and status messages. Where nobody can tell how far a password goes,
    nothing but the scheme is left.

    >>> redact("rtsp://user:secret@cam.local:554/stream?token=1")
    'rtsp://cam.local:554/stream'
    >>> redact("rtsp://user:se/cret@cam.local/stream")
    'rtsp://***'
    >>> redact("rtsp://cam.local/user=admin_password=secret_channel=1.sdp")
    'rtsp://cam.local/user=admin_password=***'
    """
    if "://" in url:
        url = _QUERY.sub("", _UNESCAPED.sub(MASK, _CREDENTIALS.sub("", url)))
    return mask_text(url)


def redact_in(text: str, source: str) -> str:
    """`text`, which a library or a plug-in wrote about `source`, without the credentials in it."""
    return mask_text(text.replace(source.strip(), redact(source.strip())))


class GuardedSource(ABC):
    """Base of the sources over native decoders, which must never be freed while another thread is inside them.

    `close` from the reader's thread releases at once. From another thread it makes the current call the last one: the
    reader releases on its way out, no later than the read time-out.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._closing = threading.Event()

    def open(self) -> StreamInfo:
        """Connect. Raises SourceError."""
        self._closing.clear()
        with self._entered():
            return self._open()

    def grab(self) -> int | None:
        """See TwoStepSource."""
        with self._entered():
            return self._grab()

    def retrieve(self) -> ImageArray:
        """See TwoStepSource."""
        with self._entered():
            return self._retrieve()

    def read(self) -> tuple[ImageArray, int] | None:
        """See VideoSource."""
        pts_ns = self.grab()
        return None if pts_ns is None else (self.retrieve(), pts_ns)

    def close(self) -> None:
        """See VideoSource."""
        self._closing.set()
        if self._busy.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._busy.release()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with self._busy:
            if self._closing.is_set():
                raise SourceError("the source was closed")
            try:
                yield
            finally:
                if self._closing.is_set():
                    self._release()

    @abstractmethod
    def _open(self) -> StreamInfo: ...

    @abstractmethod
    def _grab(self) -> int | None: ...

    @abstractmethod
    def _retrieve(self) -> ImageArray: ...

    @abstractmethod
    def _release(self) -> None:
        """Free the native handle; must bear being called twice."""
